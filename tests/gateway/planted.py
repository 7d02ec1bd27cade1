"""A home whose bot has its own code run by whatever reads `.env` there, and what that code could see."""

import json
from pathlib import Path
from typing import Any

#: What the fence leaves of privileges.
FENCED = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0, "NoNewPrivs": 1}

_PROGRAM = """
import json, os, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
fence = {name: int(status[name], 16) for name in json.loads(NAMES)}
with open(PLACE, "a") as seen:
    seen.write(json.dumps({"program": sys.argv[0], "fence": fence, "environ": dict(os.environ)}) + "\\n")
"""


def plant(home: Path) -> None:
    """As a program in Python, which stand-ins for Node's programs run."""
    evil = home / "evil.py"
    names, place = json.dumps(json.dumps(list(FENCED))), json.dumps(str(home / "seen"))
    evil.write_text(f"NAMES = {names}; PLACE = {place}\n{_PROGRAM}")
    (home / ".env").write_text(f"NODE_OPTIONS=--require {evil}\n")


def seen(home: Path) -> list[dict[str, Any]]:
    """Each run of it so far."""
    place = home / "seen"
    return [json.loads(line) for line in place.read_text().splitlines()] if place.exists() else []
