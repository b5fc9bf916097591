"""Integer operations in two tiers of the same names: `reference` to read, `fast` to run."""
