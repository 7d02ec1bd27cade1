"""One port for everything: health, chat completions and the WebSocket's upgrade, a thread for each connection."""

from __future__ import annotations

import contextlib
import json
import socket
from threading import Thread
from typing import TYPE_CHECKING, Any

from .websocket import WebSocket, accept_key

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of a request's body.
MAX_BODY = 20_000_000
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 405: "Method Not Allowed",
           413: "Payload Too Large", 500: "Internal Server Error", 503: "Service Unavailable"}  # fmt: skip


class Request:
    """What a client sent, with the ways to answer it."""

    def __init__(self, sock: socket.socket, reader, method: str, path: str, headers: dict[str, str]) -> None:
        self._sock, self._reader = sock, reader
        self.method, self.path, self.headers = method, path.partition("?")[0], headers
        self.body = b""

    @property
    def bearer(self) -> str:
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if kind.lower() == "bearer" else ""

    def reply(self, status: int, value: Any) -> None:
        if isinstance(value, str):
            data, kind = value.encode(), "text/plain; charset=utf-8"
        else:
            data, kind = json.dumps(value, ensure_ascii=False).encode(), "application/json; charset=utf-8"
        data = b"" if self.method == "HEAD" else data
        self._head(status, kind, f"content-length: {len(data)}")
        self._sock.sendall(data)

    def stream(self) -> None:
        """Begin server-sent events, ended by closing the connection."""
        self.headers["connection"] = "close"
        self._head(200, "text/event-stream; charset=utf-8", "cache-control: no-cache\r\nconnection: close")

    def event(self, text: str) -> None:
        self._sock.sendall(f"data: {text}\n\n".encode())

    def upgrade(self) -> WebSocket:
        key = accept_key(self.headers["sec-websocket-key"])
        head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
        self._sock.sendall(f"{head}sec-websocket-accept: {key}\r\n\r\n".encode())
        return WebSocket(self._sock, self._reader)

    def _head(self, status: int, kind: str, more: str) -> None:
        line = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\ncontent-type: {kind}\r\n{more}\r\n\r\n"
        self._sock.sendall(line.encode())


class Server:
    """Listens, reads requests and hands each to `handle`; a handler that upgraded answers True."""

    def __init__(self, handle: Callable[[Request], bool | None]) -> None:
        self._handle, self._sockets = handle, []

    def listen(self, host: str, port: int) -> None:
        """Raises: OSError when the port is taken."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(511)
        except OSError:
            listener.close()
            raise
        self._sockets.append(listener)
        Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        for listener in self._sockets:
            # Closing alone would leave accept(), and with it the port, alive.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self._sockets.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), sock, sock.makefile("rb") as reader:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while request := self._read(sock, reader):
                if self._handle(request) or request.headers.get("connection", "").lower() == "close":
                    return

    def _read(self, sock: socket.socket, reader) -> Request | None:
        words = reader.readline(65536).decode("latin-1").split()
        if len(words) != 3:
            return None
        headers = {}
        while (line := reader.readline(65536).decode("latin-1").strip()) and len(headers) < 200:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        request = Request(sock, reader, words[0], words[1], headers)
        size = int(headers.get("content-length") or 0)
        if size > MAX_BODY:
            request.reply(413, {"error": {"message": "request entity too large"}})
            return None
        request.body = reader.read(size)
        return request
