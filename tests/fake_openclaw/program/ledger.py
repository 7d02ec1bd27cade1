"""Proof for tests: every start is written down, and two at once of one bot are caught."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from . import ids
from .lock import locked


class Ledger:
    """The books of one installed version, kept beside its wrapper.

    A bot that may not write there (another user, a sandbox) keeps its books in its own home.
    """

    def __init__(self, install: Path, home: Path) -> None:
        self._folder = install if is_writable(install / "starts.log") else home / "fake_openclaw"
        self._mine: Path | None = None

    def open(self, agent_id: str, nonce: str) -> None:
        witnesses = self._folder / "witness"
        witnesses.mkdir(parents=True, exist_ok=True)
        line = {"at": time.time(), "pid": os.getpid(), "agentId": agent_id, "nonce": nonce}
        self._append("starts.log", line)
        # The file is what a test looks at; the lock only keeps two starts from both taking over a dead one's file.
        with locked(witnesses):
            other = self._take(witnesses / agent_id)
        if other:
            self._append("violations.log", line | {"other": other})

    def close(self) -> None:
        if self._mine is not None:
            self._mine.unlink(missing_ok=True)
            self._mine = None

    def _take(self, witness: Path) -> int | None:
        """Hold the witness file, or say whose it is."""
        if owner := living_owner(witness):
            return owner
        witness.unlink(missing_ok=True)
        fd = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, f"{os.getpid()} {ids.start_ticks(os.getpid())}".encode())
        os.close(fd)
        self._mine = witness
        return None

    def _append(self, name: str, line: dict) -> None:
        # One write of an O_APPEND file: lines of 50 starts at once do not mix.
        fd = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, (json.dumps(line) + "\n").encode())
        os.close(fd)


def note(path: Path, **line: object) -> None:
    """Something that is counted by tests."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(fd, (json.dumps(line | {"at": time.time(), "pid": os.getpid()}) + "\n").encode())
    os.close(fd)


def is_writable(path: Path) -> bool:
    """By trying: os.access knows nothing of Landlock."""
    try:
        path.open("a").close()
    except OSError:
        return False
    return True


def living_owner(witness: Path) -> int | None:
    """The process that holds a witness file, unless it is dead."""
    try:
        pid, started = witness.read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if str(ids.start_ticks(int(pid))) == started else None
