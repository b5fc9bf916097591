"""Transformers in integers."""
