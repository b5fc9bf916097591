"""Quantization-aware training: a network is fine-tuned while it computes as the integer engine will."""
