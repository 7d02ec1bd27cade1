"""Everything that knows OpenClaw: its files, its flags, its process."""
