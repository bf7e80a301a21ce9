"""A whole fleet on one machine: for the demo and the tests. Never part of a production run."""
