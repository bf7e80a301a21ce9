"""Prove that source and target hold the same rows at one position."""
