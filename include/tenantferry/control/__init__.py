"""The control schema in the target: the only runtime state there is."""
