"""How a running gateway takes a changed configuration: which changes it can take, and what became of one.

OpenClaw watches its file and says in its log what it made of it. The log is the only witness: `config.get` answers
with what lies on disk, whether the process has taken it or not (2026.2.1 reads the file anew for each answer).
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread

from app.gateway import files
from app.gateway.config import Dialect
from app.gateway.home import opened

#: Seconds until the gateway says that it saw the file change; it usually takes half of one.
SEEN_WITHIN = 10.0
#: Seconds from there until it has taken it: a channel's old connection may end slowly.
TAKEN_WITHIN = 30.0
#: Seconds it may put a change off until its conversations are done, as it says in its log.
PUT_OFF_WITHIN = 330.0
#: Seconds after which a change that takes no work, and of which nothing more is said, is taken.
QUIET = 1.5
#: Seconds between two looks into the log, and bytes of it that are read at a time.
LOOK, CHUNK = 0.1, 1_048_576

Path_ = tuple[str, ...]


def _paths(*texts: str) -> list[Path_]:
    return [tuple(text.split(".")) for text in texts]


#: What both versions take while they run, as their own tables of rules say. Everything else is read by a new process.
_HOT = _paths(
    *("agents", "audio", "bindings", "cron", "hooks", "logging", "messages", "models", "session", "skills"),
    *("talk", "tools", "ui"),
)
#: Old loads a channel's plugin when it starts: a channel that comes or goes needs a start, a change within one none.
_HOT_OLD = _paths("browser", "channels.*.*")
_HOT_NEW = _paths("channels", "plugins", "gateway.http.endpoints", "update.checkOnStart")
#: What new reads at its next use and says nothing more of.
_QUIET_NEW = _paths("audio", "bindings", "logging", "messages", "session", "skills", "talk", "ui")


def needing_restart(before: Mapping[str, Any], after: Mapping[str, Any], dialect: Dialect) -> list[str]:
    """The changed paths that a running gateway does not take; none: it can go on running."""
    hot = _HOT + (_HOT_NEW if dialect.agents_entries else _HOT_OLD)
    return [".".join(path) for path in changed(before, after) if not _lies_in(path, hot)]


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Path_]:
    """Each path whose value differs. What stands on one side only is one path, and so is a list."""
    return list(_differences(before, after, ()))


def _differences(before: Any, after: Any, path: Path_) -> Iterator[Path_]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        old, new = cast("Mapping[str, Any]", before), cast("Mapping[str, Any]", after)
        for name in sorted(old.keys() | new.keys()):
            if name in old and name in new:
                yield from _differences(old[name], new[name], (*path, name))
            else:
                yield (*path, name)
    elif before != after:
        yield path


def _lies_in(path: Path_, patterns: Sequence[Path_]) -> bool:
    return any(
        len(path) >= len(each) and all(part in ("*", name) for part, name in zip(each, path, strict=False))
        for each in patterns
    )


class Outcome(Enum):
    """What a gateway made of a changed file."""

    TAKEN = auto()
    #: It runs on with what it had.
    REFUSED = auto()
    #: Only a new process is sure to have it.
    UNSURE = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is OpenClaw's own sentence, which may quote a secret of the configuration."""

    outcome: Outcome
    why: str = ""


_REFUSED = re.compile(r"config reload skipped \(invalid config\):? ?(.*)", re.DOTALL)
_TAKEN = re.compile(r"config (?:hot reload|change) applied")
_SEEN = re.compile(r"config change detected")
_PUT_OFF = re.compile(r"requires channel reload .* deferring until")
#: A reload that was overtaken by a newer file says so, and the newer one goes on.
_OVERTAKEN = re.compile(r"superseded")
_UNSURE = re.compile(r"requires gateway restart|config (?:hot )?reload (?:\w+ )?(?:failed|committed|skipped|disabled)")


class Watch:
    """Reads in a gateway's log what it makes of a change; made before the file is written."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._inode, self._offset = self._end()

    async def verdict(self, before: Mapping[str, Any], after: Mapping[str, Any], dialect: Dialect) -> Verdict:
        """Waits for the gateway's word on the change from one tree to the other."""
        is_quiet = dialect.agents_entries and all(_lies_in(path, _QUIET_NEW) for path in changed(before, after))
        verdict = Verdict(Outcome.UNSURE, "it did not say in its log that it saw the change")
        with anyio.move_on_after(SEEN_WITHIN) as patience:
            while True:
                for said in await anyio.to_thread.run_sync(self._news):
                    if _SEEN.search(said):
                        patience.deadline = anyio.current_time() + (QUIET if is_quiet else TAKEN_WITHIN)
                        verdict = Verdict(Outcome.TAKEN if is_quiet else Outcome.UNSURE, "it did not finish")
                    elif _PUT_OFF.search(said):
                        patience.deadline = anyio.current_time() + PUT_OFF_WITHIN
                    elif found := _understood(said):
                        return found
                await anyio.sleep(LOOK)
        return verdict

    def _end(self) -> tuple[int, int]:
        """Where the log ends now; what is written from here on is news."""
        seen = self._stat()
        return (0, 0) if seen is None else (seen.st_ino, seen.st_size)

    def _stat(self) -> os.stat_result | None:
        with opened(self._home) as base, opened(Path("logs"), base) as logs:
            try:
                return os.stat("gateway.log", dir_fd=logs, follow_symlinks=False)
            except OSError:
                return None

    def _news(self) -> list[str]:
        """What the reloader said since the last look."""
        return [said for line in self._lines() if (said := _said(line))]

    def _lines(self) -> list[bytes]:
        with opened(self._home) as base, opened(Path("logs"), base) as logs:
            try:
                log = files.opened("gateway.log", logs)
            except OSError:
                return []
        with log:
            seen = os.fstat(log.fileno())
            if seen.st_ino != self._inode or seen.st_size < self._offset:
                self._inode, self._offset = seen.st_ino, 0
            log.seek(self._offset)
            whole, newline, _ = log.read(CHUNK).rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            return whole.splitlines()


def _said(line: bytes) -> str | None:
    """The message of a line of the JSON log that the reloader wrote; nothing else may speak in its name."""
    if b"reload" not in line:
        return None
    try:
        entry: Any = json.loads(line)
        is_reloader = str(json.loads(entry["0"])["subsystem"]).split("/")[-1] == "reload"
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    texts = [str(entry[name]) for name in ("1", "2") if isinstance(entry.get(name), str)]
    return " ".join(texts) if is_reloader else None


def _understood(said: str) -> Verdict | None:
    if _OVERTAKEN.search(said):
        return None
    if refused := _REFUSED.search(said):
        return Verdict(Outcome.REFUSED, refused[1].strip().lstrip(": ") or "no reason was given")
    if _TAKEN.search(said):
        return Verdict(Outcome.TAKEN)
    return Verdict(Outcome.UNSURE, said) if _UNSURE.search(said) else None
