"""Sockets that are open, and whether who opened them may still be here.

A socket's token is looked at when it comes, when somebody says that its person's rights changed, at its end, and every
now and then in any case. What it may not do any more it does not go on doing: the socket is closed, and its client
comes back with what it has.
"""

from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar
from uuid import UUID

import anyio
import anyio.abc
import structlog

from app.domain.errors import RateLimited
from app.domain.states import TokenKind
from app.domain.viewer import Viewer
from app.log import barrier
from app.pubsub.hub import Hub, HubClosed
from app.services import accounts, rooms, tokens

log = structlog.get_logger()

T = TypeVar("T")

#: Close codes: somebody was shut out for good (clients give up), or may come again with what it has then.
SHUT_OUT, COME_AGAIN = 4401, 4403
#: Seconds between two looks for tokens that ended, and between two looks at all of them.
TICK, BACKSTOP = 0.5, 30.0
#: Seconds that the answer to the very mutation that ended a token has to go out.
FAREWELL = 0.05
#: Seconds before a listener that broke listens again.
PAUSE = 1.0
#: Tokens asked about at a time.
CHUNK = 1_000
#: Seconds a client that is told to come later might wait.
LATER = 5.0


class Peer(Protocol):
    """An open socket."""

    async def shut(self, code: int, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Seat:
    peer: Peer
    viewer: Viewer
    expires_at: datetime | None


class Connections:
    """The sockets of this server."""

    def __init__(self, hub: Hub, per_user: int) -> None:
        self._hub = hub
        self._per_user = per_user
        self._seats: dict[Peer, _Seat] = {}
        self._of_user: dict[UUID, set[Peer]] = {}
        #: People whose rights changed, and the bell that says so.
        self._changed: set[UUID] = set()
        self._news = anyio.Event()
        self._tasks: anyio.abc.TaskGroup | None = None

    def admit(self, peer: Peer, viewer: Viewer) -> None:
        """Lets a socket in. Raises `RateLimited` where its person has as many open as are allowed."""
        peers = self._of_user.setdefault(viewer.user_id, set())
        if self._per_user and len(peers) >= self._per_user:
            raise RateLimited(f"you have {self._per_user} sockets open already; close one first", LATER)
        peers.add(peer)
        self._seats[peer] = _Seat(peer, viewer, viewer.expires_at)

    def release(self, peer: Peer) -> None:
        """The socket has ended; again changes nothing."""
        seat = self._seats.pop(peer, None)
        if seat is not None:
            peers = self._of_user[seat.viewer.user_id]
            peers.discard(peer)
            if not peers:
                del self._of_user[seat.viewer.user_id]

    def __len__(self) -> int:
        return len(self._seats)

    async def watch(self) -> None:
        """Closes what must be closed. Runs until cancelled, or until the hub is."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._look)
            tasks.start_soon(self._settle)
            while not self._hub.is_closed:
                with barrier(log, "rights_not_watched"), suppress(HubClosed):
                    await self._listen()
                await anyio.sleep(PAUSE)
            tasks.cancel_scope.cancel()

    async def _listen(self) -> None:
        async with aclosing(rooms.follow(self._hub, [tokens.ROOM], None)) as items:
            async for item in items:
                if isinstance(item, rooms.Said):
                    self._changed.add(UUID(item.event.payload["userId"]))
                else:
                    self._changed.update(self._of_user)
                self._news.set()

    async def _settle(self) -> None:
        """Looks at everybody whose rights changed, all at once: one person's many changes hold up nobody else's."""
        while True:
            await self._news.wait()
            await anyio.sleep(FAREWELL)
            self._news = anyio.Event()
            changed, self._changed = self._changed, set[UUID]()
            with barrier(log, "rights_not_looked_at") as look:
                await self._check([seat for user_id in changed for seat in self._seats_of(user_id)])
            if look.has_failed:
                self._changed |= changed
                self._news.set()
                await anyio.sleep(PAUSE)

    def _seats_of(self, user_id: UUID) -> list[_Seat]:
        return [self._seats[peer] for peer in self._of_user.get(user_id, ())]

    async def _look(self) -> None:
        next_backstop = anyio.current_time() + BACKSTOP
        while True:
            await anyio.sleep(TICK)
            with barrier(log, "tokens_not_looked_at"):
                await self._end_expired()
                if anyio.current_time() >= next_backstop:
                    next_backstop = anyio.current_time() + BACKSTOP
                    await self._keep_alive()
                    await self._check(list(self._seats.values()))

    async def _end_expired(self) -> None:
        now = datetime.now(UTC)
        ended = [seat for seat in self._seats.values() if seat.expires_at is not None and seat.expires_at <= now]
        fixed = [seat for seat in ended if seat.viewer.kind is not TokenKind.SESSION]
        for seat in fixed:
            self._shut(seat, COME_AGAIN, "the token has expired")
        # A sign-in may have been used elsewhere meanwhile, which makes it last longer.
        await self._check([seat for seat in ended if seat.viewer.kind is TokenKind.SESSION])

    async def _keep_alive(self) -> None:
        """An open socket is a sign-in in use."""
        keys = {seat.viewer.token_id for seat in self._seats.values() if seat.viewer.kind is TokenKind.SESSION}
        for some in _chunks(sorted(keys)):
            await accounts.touch(some)

    async def _check(self, seats: list[_Seat]) -> None:
        """Compares what each token could do when its socket came with what it may do now."""
        for some in _chunks(seats):
            now = await tokens.standings(sorted({seat.viewer.token_id for seat in some}))
            for seat in some:
                standing = now.get(seat.viewer.token_id)
                if standing is None or standing.is_revoked:
                    self._shut(seat, SHUT_OUT, "the token does not count any more")
                elif standing.is_expired:
                    self._shut(seat, COME_AGAIN, "the token has expired")
                elif standing.role is not seat.viewer.role or standing.scopes != seat.viewer.scopes:
                    self._shut(seat, COME_AGAIN, "your rights have changed; connect again")
                else:
                    seat.expires_at = standing.expires_at

    def _shut(self, seat: _Seat, code: int, reason: str) -> None:
        """Closes a socket in a task of its own: one that reads nothing any more must not keep the others open."""
        self.release(seat.peer)
        assert self._tasks is not None  # Whoever calls this was started by `watch`.
        self._tasks.start_soon(self._close, seat.peer, code, reason)

    async def _close(self, peer: Peer, code: int, reason: str) -> None:
        with barrier(log, "socket_not_closed"):
            await peer.shut(code, reason)


def _chunks(items: list[T]) -> list[list[T]]:
    return [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
