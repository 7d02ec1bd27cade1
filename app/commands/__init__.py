"""What the `clawnet` command does besides serving: each works on the database, with or without a running server."""
