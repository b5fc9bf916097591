"""How large each layer's sums can become, how large they are on real images, and what the clamp after them cuts off."""
