"""Where drivers are: H3 cells, distances, the live index and the feed that keeps it."""
