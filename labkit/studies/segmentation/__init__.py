"""A small network that labels pixels, trained on drawn pictures: what the studies of segmentation measure."""
