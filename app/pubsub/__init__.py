"""How listeners in this process hear that a room has news."""
