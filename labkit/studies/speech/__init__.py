"""Speech recognition in integers."""
