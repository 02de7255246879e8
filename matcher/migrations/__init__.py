"""The revisions of the schema, run by matcher.migrate."""
