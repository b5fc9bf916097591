"""Nagel et al. 2020, *Up or Down? Adaptive Rounding for Post-Training Quantization*: its tables and figures."""
