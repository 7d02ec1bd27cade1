"""What an installed version can do: one small table, which a test may mix as real in-between versions do."""

from __future__ import annotations

#: The first version that behaves as the new era.
FIRST_NEW = (2026, 3)

#: trait -> (old, new)
TRAITS = {
    "dialect": ("old", "new"),  # which config keys are accepted, and the words of the log
    "protocol": (3, 4),  # of the WebSocket
    "health": (False, True),  # /health, /healthz, /ready, /readyz
    "store": ("jsonl", "sqlite"),  # where conversations are written
    "validates": (False, True),  # `config validate --json`
    "refused": (1, 78),  # exit code for a refused config and for a home that is taken
    "broker": (False, True),  # a helper in a session of its own
    "subscribes": (False, True),  # sessions.subscribe and its events
}


class Era:
    """The traits of one installed version."""

    def __init__(self, version: str, mixed: dict | None = None) -> None:
        self.version = version
        self.is_new = number(version) >= FIRST_NEW
        for name, (old, new) in TRAITS.items():
            setattr(self, name, new if self.is_new else old)
        for name, value in (mixed or {}).items():
            if name not in TRAITS:
                raise ValueError(f"unknown trait {name!r}; there are {', '.join(TRAITS)}")
            setattr(self, name, value)


def number(version: str) -> tuple[int, ...]:
    """2026.9.6 -> (2026, 9, 6); what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("-", maxsplit=1)[0].split("."))
