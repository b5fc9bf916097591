"""Networks as frozen data, and the files that hold them."""
