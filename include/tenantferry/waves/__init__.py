"""Moving a fleet night by night: what to move next, and when to stop."""
