"""Object types, one file a noun."""
