"""`.env` in the state folder: variables for this process and those it starts, and what Node does with one of them."""

from __future__ import annotations

import os
from pathlib import Path


def load(home: Path) -> None:
    """What is set already stays."""
    if (home / ".env").exists():
        for line in (home / ".env").read_text().splitlines():
            name, _, value = line.partition("=")
            os.environ.setdefault(name, value)
    require()


def require() -> None:
    """As each Node begins; here it is a program in Python."""
    option, _, program = os.environ.get("NODE_OPTIONS", "").partition(" ")
    if option == "--require":
        exec(Path(program).read_text(), {})
