"""Simulated and recorded cities, load, and measurements against named peers."""
