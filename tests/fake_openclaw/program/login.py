"""Linking WhatsApp by a code: `web.login.*` as both versions answer, and a phone that tests hold."""

from __future__ import annotations

import base64
import random
import struct
import threading
import time
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: What either version answers while WhatsApp cannot be reached.
UNREACHABLE = {
    "old": "Failed to get QR: Error: Timed out waiting for WhatsApp QR",
    "new": "WhatsApp login failed: WebSocket Error (getaddrinfo ENOTFOUND web.whatsapp.com)",
}
START = {"accountId", "force", "timeoutMs", "verbose"}
WAIT = {"accountId", "timeoutMs"}
PARAMS = {
    "old": {"start": START, "wait": WAIT},
    "new": {"start": START | {"channel"}, "wait": WAIT | {"channel", "sessionKey", "currentQrDataUrl"}},
}
SCAN, SCALE, MARGIN, SIZE = "Scan it in WhatsApp → Linked Devices.", 6, 4, 29


class Logins:
    """One account a gateway; it stays linked as long as its folder is there."""

    def __init__(self, home: Path, version: str, faults) -> None:
        self._folder, self._version, self._faults = home / "credentials" / "whatsapp" / "default", version, faults
        self._news = threading.Condition()
        self._codes: list[str] = []
        self._over = ""
        self.waits = 0

    @property
    def is_linked(self) -> bool:
        return self._folder.is_dir()

    def start(self) -> dict:
        if self.is_linked:
            return {"message": "WhatsApp is already linked (+4200001). Say “relink” if you want a fresh QR."}
        if self._faults.whatsapp_unreachable:
            return {"message": UNREACHABLE[self._version]}
        with self._news:
            if self._codes and not self._over:
                return {
                    "qrDataUrl": self._codes[-1],
                    "message": f"QR already active. {SCAN}",
                }
            self._codes, self._over = [picture(matrix(random.random()))], ""
            return {"qrDataUrl": self._codes[-1], "message": SCAN}

    def wait(self, seconds: float, known: str | None) -> dict:
        hurry = self._faults.login_hurries
        end = time.monotonic() + (0 if hurry else max(1.0, seconds))
        if hurry == "fresh":
            self.happens("refresh")
        with self._news:
            self.waits += 1
            while True:
                if not self._codes:
                    return {"connected": False, "message": "No active WhatsApp login in progress."}
                if self._over:
                    self._codes = []
                    return {"connected": False, "message": f"WhatsApp login failed: {self._over}"}
                if self.is_linked:
                    self._codes = []
                    return {"connected": True, "message": "✅ Linked! WhatsApp is ready."}
                if known and known != self._codes[-1]:
                    refreshed = f"QR refreshed. {SCAN}"
                    return {"connected": False, "message": refreshed, "qrDataUrl": self._codes[-1]}
                if (left := end - time.monotonic()) <= 0:
                    still = "Still waiting for the QR scan. Let me know when you’ve scanned it."
                    return {"connected": False, "message": still}
                self._news.wait(left)

    def happens(self, event: str) -> None:
        """`refresh`: the next code; `over`: the last one ended; `break`: it fails; `scan`: somebody's phone took it."""
        with self._news:
            match event:
                case "refresh":
                    self._codes.append(picture(matrix(random.random())))
                case "over":
                    self._over = "status=408 Request Time-out QR refs attempts ended"
                case "break":
                    self._over = "status=500 the secret is secret-of-whatsapp-0123456789"
                case "scan":
                    self._folder.mkdir(parents=True)
            self._news.notify_all()

    def forget(self) -> None:
        if self.is_linked:
            self._folder.rmdir()


def matrix(seed: float) -> list[list[bool]]:
    """Something of a code's shape: its three corners and noise between them."""
    noise = random.Random(seed)
    rows = [[noise.random() < 0.5 for _ in range(SIZE)] for _ in range(SIZE)]
    for top, left in ((0, 0), (0, SIZE - 7), (SIZE - 7, 0)):
        for y in range(-1, 8):
            for x in range(-1, 8):
                if 0 <= top + y < SIZE and 0 <= left + x < SIZE:
                    ring = max(abs(x - 3), abs(y - 3))
                    rows[top + y][left + x] = ring in {0, 1, 3}
    return rows


def picture(rows: list[list[bool]]) -> str:
    """A PNG as old OpenClaw draws it: 8 bits of red, green, blue and alpha, without filters."""
    width = (SIZE + 2 * MARGIN) * SCALE
    dark, light = b"\0\0\0\xff" * SCALE, b"\xff\xff\xff\xff" * SCALE
    lines = [light * (SIZE + 2 * MARGIN)] * MARGIN
    lines += [light * MARGIN + b"".join(dark if each else light for each in row) + light * MARGIN for row in rows]
    lines += [light * (SIZE + 2 * MARGIN)] * MARGIN
    data = b"".join(b"\0" + line for line in lines for _ in range(SCALE))
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, width, 8, 6, 0, 0, 0), b"IDAT" + zlib.compress(data), b"IEND")
    body = b"".join(struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()
