"""Compose the parts into the steps of a move. Every step may be run again, at any moment."""
