"""What each runtime makes of an integer network: the same layers and scales under its own rounding rules."""
