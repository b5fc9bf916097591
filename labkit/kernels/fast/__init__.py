"""The fast tier: the operations of `labkit.kernels.reference`, compiled by Numba. docs/kernels.md explains it.

`simd` and `tile` hold the inner loops, `packing` the order in which they read weights, the other modules one kind of
operation each.
"""
