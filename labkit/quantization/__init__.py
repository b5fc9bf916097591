"""From a float network and some images to an integer network."""
