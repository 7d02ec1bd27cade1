"""What old OpenClaw says of its channels in its log and nowhere else: that somebody else polls with the same token.

`channels.status` calls such a channel running and well. New OpenClaw has the same as the channel's `lastError`.
"""

import json
import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from app.domain.errors import SpawnFailed
from app.gateway import files
from app.gateway.home import opened

#: Bytes of news that are read at a look; what lies before them is passed by.
CHUNK = 256 * 1024
#: Longest line that is looked at, in bytes: OpenClaw's own is far shorter, and an agent may write anything there.
MAX_LINE = 8 * 1024
#: How long a line holds beyond the pause that it names: a poll that somebody else ends lasts half of this at most.
LASTS = timedelta(seconds=60)
#: Longest pause that is believed; OpenClaw makes none over half a minute.
LONGEST_PAUSE = timedelta(minutes=2)

_CONFLICT = re.compile(r"Telegram getUpdates conflict: (.{1,2000}); retrying in ([0-9.]{1,10})(ms|s|m)\b", re.DOTALL)
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Conflicts:
    """Follows one gateway's log.

    Args:
        home: The bot's.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._inode, self._offset = 0, 0
        self._said = ""
        self._at = self._until = datetime.min.replace(tzinfo=UTC)

    def telegram(self, since: datetime) -> str | None:
        """What the gateway said of a conflict that is not over; None where there is none. Secrets are still in it.

        Args:
            since: What was said earlier is about another process, or other credentials.
        """
        for line in self._news():
            self._take(line)
        if self._at < since:
            return None
        return self._said if datetime.now(UTC) < self._until else None

    def _take(self, line: bytes) -> None:
        if len(line) > MAX_LINE or b"getUpdates conflict" not in line:
            return
        try:
            entry: Any = json.loads(line)
            # Nothing else, least of all what somebody wrote to the bot, may speak in the channel's name.
            is_telegram = str(json.loads(entry["0"])["subsystem"]).split("/")[-1] == "telegram"
            found = _CONFLICT.match(str(entry["1"])) if is_telegram else None
            if found:
                pause = timedelta(seconds=float(found[2]) * _UNITS[found[3]])
                at = min(datetime.fromisoformat(entry["time"]).astimezone(UTC), datetime.now(UTC))
                self._said, self._at, self._until = found[1], at, at + min(pause, LONGEST_PAUSE) + LASTS
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return

    def _news(self) -> list[bytes]:
        """Whole lines since the last look, the last ones of many."""
        try:
            with opened(self._home) as base, opened(Path("logs"), base) as logs:
                log = files.opened("gateway.log", logs)
        except (OSError, SpawnFailed):
            return []
        with log:
            seen = os.fstat(log.fileno())
            if seen.st_ino != self._inode or seen.st_size < self._offset:
                self._inode, self._offset = seen.st_ino, 0
            self._offset = max(self._offset, seen.st_size - CHUNK)
            log.seek(self._offset)
            whole, newline, _ = log.read(CHUNK).rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            return whole.splitlines()
