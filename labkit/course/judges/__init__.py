"""How a value is compared with the right one: small frozen classes, described by data, so that a file can name them."""
