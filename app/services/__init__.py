"""What ClawNet does, in terms of rows and rooms; no transport, no process."""
