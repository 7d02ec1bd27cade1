"""The server's half of RFC 6455, as far as a gateway's clients use it."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import struct
from threading import Lock
from typing import Any

from .errors import Planned

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
#: A client that takes nothing for this long is dropped.
SEND_TIMEOUT_S = 5
#: Bytes of one message.
MAX_MESSAGE = 26_214_400


class Closed(Planned):
    """The other side has gone."""


def accept_key(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()


class WebSocket:
    """One connection after its upgrade."""

    def __init__(self, sock: socket.socket, reader) -> None:
        self._sock, self._reader, self._lock = sock, reader, Lock()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))

    def send(self, value: Any) -> None:
        self._frame(TEXT, json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())

    def receive(self) -> Any:
        """The next message, parsed. Raises: Closed; ValueError when it is no JSON."""
        message = b""
        while True:
            final, kind, data = self._read_frame()
            if kind == PING:
                self._frame(PONG, data)
            elif kind == CLOSE:
                with contextlib.suppress(Closed):
                    self._frame(CLOSE, data[:2])
                raise Closed
            elif kind != PONG:
                message += data
                if final:
                    return json.loads(message)

    def close(self, code: int, reason: str = "") -> None:
        with contextlib.suppress(Closed):
            self._frame(CLOSE, struct.pack(">H", code) + reason.encode()[:123])
        self.drop()

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _frame(self, kind: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = struct.pack(">BB", 0x80 | kind, size)
        elif size < 65536:
            head = struct.pack(">BBH", 0x80 | kind, 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | kind, 127, size)
        try:
            with self._lock:
                self._sock.sendall(head + data)
        except OSError:
            self.drop()
            raise Closed from None

    def _read_frame(self) -> tuple[bool, int, bytes]:
        first, second = self._read(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack(">H", self._read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self._read(8))
        if size > MAX_MESSAGE:
            self.close(1009, "message too big")
            raise Closed
        mask = self._read(4) if second & 0x80 else b"\0\0\0\0"
        return bool(first & 0x80), first & 0x0F, unmasked(self._read(size), mask)

    def _read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except (OSError, ValueError):
            raise Closed from None
        if len(data) < size:
            raise Closed
        return data


def unmasked(data: bytes, mask: bytes) -> bytes:
    """XOR as one big number: Python has nothing faster without a library."""
    size = len(data)
    pattern = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pattern, "big")).to_bytes(size, "big")
