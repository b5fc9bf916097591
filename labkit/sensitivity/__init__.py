"""How much the loss grows when a layer's weights get fewer bits."""
