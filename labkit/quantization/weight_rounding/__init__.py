"""Which of the neighbouring integers a weight becomes: the layer's output decides, not the weight alone."""
