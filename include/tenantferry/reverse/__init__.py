"""The way back: what live tenants write in the target is applied to their sources."""
