"""Listeners in this process and the rooms they sit in: a wake-up, never a message.

What was said stands in the table; a listener that is woken reads on from its own position. So there is no queue
to overflow, and a slow listener costs nobody anything.
"""

from collections import defaultdict
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import anyio


class HubClosed(Exception):
    """The server goes down; listeners end."""


class Listener:
    """One subscription's seat in its rooms. Enter it before reading the present, so that nothing is missed."""

    def __init__(self, hub: "Hub", names: Iterable[str]) -> None:
        self._hub = hub
        self.names = frozenset(names)
        self._news = anyio.Event()

    def __enter__(self) -> Self:
        self._hub.seat(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hub.leave(self)

    def ring(self) -> None:
        self._news.set()

    async def wait(self) -> None:
        """Returns once any of the rooms had news since the last call. Raises `HubClosed`."""
        if self._hub.is_closed:
            raise HubClosed
        await self._news.wait()
        self._news = anyio.Event()
        if self._hub.is_closed:
            raise HubClosed


class Hub:
    """Who listens where."""

    def __init__(self) -> None:
        self._rooms: defaultdict[str, set[Listener]] = defaultdict(set)
        self.is_closed = False

    def join(self, names: Iterable[str]) -> Listener:
        return Listener(self, names)

    def seat(self, listener: Listener) -> None:
        for name in listener.names:
            self._rooms[name].add(listener)

    def leave(self, listener: Listener) -> None:
        for name in listener.names:
            seats = self._rooms[name]
            seats.discard(listener)
            if not seats:
                del self._rooms[name]

    def wake(self, names: Iterable[str]) -> None:
        for name in names:
            for listener in self._rooms.get(name, ()):
                listener.ring()

    def occupied(self) -> list[str]:
        """Names of the rooms somebody listens in."""
        return list(self._rooms)

    def close(self) -> None:
        """Ends every listener; later ones end at once."""
        self.is_closed = True
        self.wake(self.occupied())
