"""What the runtimes themselves compute: each module runs one of them and gives every tensor that it exposes."""
