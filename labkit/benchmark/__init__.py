"""Paired timing against other runtimes, after the answers were compared: `labkit bench`."""
