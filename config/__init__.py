"""Settings of a deployment: this package imports nothing else of the project."""
