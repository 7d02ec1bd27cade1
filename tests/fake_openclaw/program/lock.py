"""OpenClaw's own lock on a home: <TMPDIR>/openclaw-<uid>/gateway.<hash>.lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import ids

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the kernel's lock on a folder, so that look-then-take is one step."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class HomeLock:
    """Held while a gateway runs; left behind by kill -9, and then taken over."""

    def __init__(self, config: Path) -> None:
        self._config = config
        folder = Path(os.environ.get("TMPDIR") or "/tmp") / f"openclaw-{os.getuid()}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"gateway.{hashlib.sha256(str(config).encode()).hexdigest()[:8]}.lock"
        self._held = False

    def take(self) -> int | None:
        """Take the lock, or answer the pid of the gateway that has it."""
        mine = {"pid": os.getpid(), "createdAt": ids.iso(), "configPath": str(self._config)}
        with locked(self.path.parent):
            if owner := self._living_owner():
                return owner
            self.path.write_text(json.dumps(mine | {"startTime": ids.start_ticks(os.getpid())}))
            self.path.chmod(0o600)
        self._held = True
        return None

    def release(self) -> None:
        if self._held:
            self.path.unlink(missing_ok=True)
            self._held = False

    def owner(self) -> int | None:
        """The pid of the gateway that has it."""
        with locked(self.path.parent):
            return self._living_owner()

    def _living_owner(self) -> int | None:
        try:
            owner = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return None
        return owner["pid"] if ids.start_ticks(owner["pid"]) == owner["startTime"] else None
