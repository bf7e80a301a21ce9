"""The single-tenant schema of a source, and the multi-tenant one made of it."""
