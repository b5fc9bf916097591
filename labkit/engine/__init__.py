"""Prepare a graph once, then run it in integers."""
