"""From integer networks to the files of other runtimes."""
