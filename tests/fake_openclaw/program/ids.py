"""Ids, times and process facts, without the weight of uuid, datetime and psutil."""

from __future__ import annotations

import os
import time
from pathlib import Path


def uuid4() -> str:
    raw = bytearray(os.urandom(16))
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def short() -> str:
    return os.urandom(4).hex()


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def iso(at_ms: int | None = None) -> str:
    at_ms = now_ms() if at_ms is None else at_ms
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_ms // 1000)) + f".{at_ms % 1000:03d}Z"


def start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat, or None for a process that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])
