"""Who may come in by a socket: so many of one address at a time, and so many in a minute.

A socket is counted from its upgrade on, before anything is allocated for it, so one that never says who it is counts
as well. It is counted until its handler has ended, however it ended.
"""

import ipaddress
import math
from collections import Counter

from litestar.types import ASGIApp, Receive, Scope, Send

from app.domain.errors import RateLimited
from app.services.limits import Limits, network

#: Seconds after which a client that found the house full may come again.
LATER = 5.0
#: "Try again later" for a socket, where the server cannot refuse it in HTTP's words.
TRY_AGAIN = 1013
#: Longest address there is, with the name of an interface.
MAX_ADDRESS = 64


class Doors:
    """An ASGI application that lets clients in to another one."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._inside = Counter[str]()

    @property
    def open_sockets(self) -> int:
        return self._inside.total()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["client"] and not _is_address(scope["client"][0]):
            scope["client"] = None  # A proxy passed on what is none: nobody knows where this comes from.
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        address = scope["client"][0] if scope["client"] else None
        try:
            self._enter(address)
        except RateLimited as refusal:
            await _refuse(scope, send, refusal)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._leave(address)

    def _enter(self, address: str | None) -> None:
        most, key = self._limits.sockets_per_address, network(address)
        if most and self._inside[key] >= most:
            raise RateLimited(f"your address has {most} sockets open already; close one first", LATER)
        self._limits.connect(address)
        self._inside[key] += 1

    def _leave(self, address: str | None) -> None:
        key = network(address)
        self._inside[key] -= 1
        if not self._inside[key]:
            del self._inside[key]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return len(text) <= MAX_ADDRESS


async def _refuse(scope: Scope, send: Send, refusal: RateLimited) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN, "reason": refusal.message})
        return
    body = refusal.message.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(math.ceil(refusal.wait)).encode()),
    ]
    await send({"type": "websocket.http.response.start", "status": 429, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body, "more_body": False})
