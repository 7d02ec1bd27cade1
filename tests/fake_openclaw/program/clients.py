"""The operators' sockets: who is connected, what each follows, and telling them."""

from __future__ import annotations

import contextlib
from threading import Lock
from typing import TYPE_CHECKING, Any

from .websocket import Closed

if TYPE_CHECKING:
    from .websocket import WebSocket


class Client:
    """One socket; `seq` counts the events it was sent."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.seq = 0
        self.subscribed = False
        self.follows: set[str] = set()
        self._lock = Lock()

    def tell(self, event: str, payload: Any) -> None:
        with self._lock, contextlib.suppress(Closed):
            self.seq += 1
            self.socket.send({"type": "event", "event": event, "payload": payload, "seq": self.seq})


class Clients:
    """All sockets that finished the handshake."""

    def __init__(self) -> None:
        self._clients: list[Client] = []

    def add(self, client: Client) -> None:
        self._clients.append(client)

    def remove(self, client: Client) -> None:
        with contextlib.suppress(ValueError):
            self._clients.remove(client)

    def tell(self, event: str, payload: Any, subscribed: bool = False, follows: str | None = None) -> None:
        """Send an event to everybody, to those who subscribed, or to those who follow one session."""
        for client in list(self._clients):
            if (client.subscribed or not subscribed) and (follows is None or follows in client.follows):
                client.tell(event, payload)

    def close(self, code: int, reason: str) -> None:
        for client in list(self._clients):
            client.socket.close(code, reason)
        self._clients.clear()
