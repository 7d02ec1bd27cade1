"""Uvicorn's WebSocket protocol, whose connections also end when the other side reads nothing any more.

A transport that is closed first sends what it holds. To a client that does not read, that is for ever: its tasks, its
memory and its place among the sockets of its address would stay with it.
"""

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.domain.ports import ABORT

#: Seconds that what was written last has to go out, once the connection is over.
LAST_WORDS = 1.0


class SocketProtocol(WebSocketsSansIOProtocol):
    """One client's connection."""

    async def run_asgi(self) -> None:
        scope: Any = self.scope
        scope.setdefault("extensions", {})[ABORT] = self.transport.abort
        await super().run_asgi()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.close":
            self._end_in(self.close_timeout + LAST_WORDS)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._end_in(LAST_WORDS)

    def _end_in(self, seconds: float) -> None:
        self.loop.call_later(seconds, self.transport.abort)
