"""Certificates: the same integers computed a second time, by somebody else."""
