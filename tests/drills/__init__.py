"""Drills. A package, so that their fleet is stopped after the last of them."""
