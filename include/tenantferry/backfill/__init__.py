"""Copy a tenant's rows under one exported snapshot, chunk by chunk."""
