"""The fast tier: the operations of `labkit.kernels.reference`, compiled by Numba. docs/kernels.md explains it.

`simd`, `tile`, `transform` and `finish` append the inner loops' instructions, `packing` and `winograd` put weights into the
order in which those read them, and the other modules hold one kind of operation each.
"""
