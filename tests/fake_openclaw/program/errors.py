"""The root of what this program raises itself."""


class Planned(Exception):
    """Something the fake is ready for."""
