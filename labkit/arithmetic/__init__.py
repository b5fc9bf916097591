"""What a quantized number is: scales, fixed-point multipliers, rounding rules, bounds, packing."""
