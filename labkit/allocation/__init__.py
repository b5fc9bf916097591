"""Which layer gets how many bits: the least predicted loss within budgets of size, bit operations and latency."""
