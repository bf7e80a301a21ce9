"""The dump of a retired source: written, read back, restored once, and proved to hold every row."""
