"""A card for each network: what it is made of, what its bit plans cost, and what they keep of its accuracy."""
