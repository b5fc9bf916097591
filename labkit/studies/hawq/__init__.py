"""Studies of the slides on HAWQ and integer-only inference, one file each."""
