"""Tables and figures of the literature, reproduced at lab scale: `labkit study`."""
