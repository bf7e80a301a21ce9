"""Wait while others suffer: what is measured, and the work that asks before it goes on."""
