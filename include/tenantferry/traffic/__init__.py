"""Hold a tenant's clients, hand them over, and keep everybody else out."""
