"""What the target's own log says about a move: it changes no row of another tenant."""
