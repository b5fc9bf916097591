"""Ranges that cut something off: each file has one idea, from a `Histogram` and a grid to the interval (low, high)."""
