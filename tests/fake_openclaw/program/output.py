"""What OpenClaw prints, and the JSON log file it keeps beside."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from . import ids

if TYPE_CHECKING:
    from .eras import Era


class Output:
    """Lines on stdout as the era stamps them. A closed pipe ends the process, as EPIPE ends Node."""

    def __init__(self, era: Era, colour: bool) -> None:
        self._era, self._colour, self._lock = era, colour, Lock()
        self._file: Path | None = None

    def keep_file(self, path: str) -> None:
        self._file = Path(path)
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def log(self, subsystem: str, text: str) -> None:
        name = f"\x1b[36m[{subsystem}]\x1b[39m" if self._colour else f"[{subsystem}]"
        self.raw(f"{self._stamp()} {name} {text}\n".encode())
        self._record(subsystem, text)

    def say(self, text: str) -> None:
        """The agent's own words, printed for runs over HTTP."""
        self.raw(f"{self._stamp()} {text}\n".encode())

    def plain(self, text: str) -> None:
        self.raw(f"{text}\n".encode())

    def error(self, text: str) -> None:
        self._write(2, f"{text}\n".encode())

    def raw(self, data: bytes) -> None:
        self._write(1, data)

    def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        with self._lock:
            try:
                while view:
                    view = view[os.write(fd, view) :]
            except OSError:
                os._exit(1)

    def _stamp(self) -> str:
        return ids.iso().replace("Z", "+00:00") if self._era.is_new else ids.iso()

    def _record(self, subsystem: str, text: str) -> None:
        if self._file is None:
            return
        full = "gateway/reload" if subsystem == "reload" else subsystem
        name = json.dumps({"subsystem": full}, separators=(",", ":"))
        meta = {"runtime": "node", "runtimeVersion": "24.21.0", "name": name, "parentNames": ["openclaw"]}
        meta |= {"date": ids.iso(), "logLevelId": 3, "logLevelName": "INFO"}
        with self._file.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"0": name, "1": text, "_meta": meta, "time": ids.iso()}, ensure_ascii=False) + "\n")
