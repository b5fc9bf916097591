"""Studies of the MPQCO supplement, one file each."""
