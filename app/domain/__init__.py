"""The words of ClawNet: states, events, rooms and errors. Standard library only."""
