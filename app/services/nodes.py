"""Machines that supervise bots: one row each, leased by the folder that holds the bots' homes.

All times are the database's. Whoever takes a lease from another folder's server raises the machine's epoch and, in the
same transaction, that of every bot of it: what the earlier holder writes from then on changes nothing.
"""

import time
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import anyio
import asyncpg

from app import __version__
from app.db.engine import DB
from app.domain.errors import ClawNetError, Unavailable

#: Seconds after which a lease that was not renewed may be taken.
LEASE = 15.0


class LeaseLost(ClawNetError):
    """Another server supervises this machine's bots by now; nothing was written."""


@dataclass(slots=True)
class Lease:
    """The right to run a machine's bots and to write of them, as long as their rows carry its epoch."""

    node: str
    holder: UUID
    epoch: int
    #: Seconds it holds from one renewal to the next.
    seconds: float
    #: It was another folder's before: processes of that folder's server may still run here.
    is_inherited: bool = False
    #: By this process's clock, and from before the database was asked: never later than the row says.
    renewed_at: float = field(default_factory=time.monotonic)

    @property
    def may_be_taken(self) -> bool:
        """It was not renewed in time, say because this process was paused; somebody else may have it."""
        return time.monotonic() - self.renewed_at >= self.seconds


@dataclass(frozen=True, slots=True)
class Load:
    """What a machine says of itself when it renews its lease."""

    #: Bots it can hold, and starts it runs at once.
    capacity: int
    start_slots: int
    #: Share of all its processors in use since the last look, 0 to 1.
    cpu_ratio: float
    #: Memory in use.
    memory_bytes: int


async def take(name: str, holder: UUID, seconds: float = LEASE) -> Lease | None:
    """The machine's lease for a folder of bots; None while another folder's server has it.

    The folder's own lock lets one process in, so the same folder has its lease back at once, also after a kill.
    """
    asked_at = time.monotonic()
    async with DB.transaction():
        before = await DB.fetch_one("SELECT holder FROM node WHERE name = $1 FOR UPDATE", name)
        row = await DB.fetch_one(
            "INSERT INTO node (name, state, epoch, version, heartbeat_at, created_at, holder, public_id) "
            "VALUES ($1, 'READY', 1, $2, now(), now(), $3, gen_random_uuid()) ON CONFLICT (name) DO UPDATE SET "
            "heartbeat_at = now(), version = excluded.version, holder = excluded.holder, "
            "epoch = node.epoch + (node.holder IS DISTINCT FROM excluded.holder)::int "
            "WHERE node.holder IS NULL OR node.holder = $3 OR node.heartbeat_at < now() - make_interval(secs => $4) "
            "RETURNING epoch",
            name, __version__, holder, seconds,
        )  # fmt: skip
        if row is None:
            return None
        await DB.fetch(
            "UPDATE bot_process SET lease_epoch = $2 WHERE node_id = $1 AND lease_epoch <> $2", name, row["epoch"]
        )
    is_inherited = before is not None and before["holder"] not in (None, holder)
    return Lease(name, holder, row["epoch"], seconds, is_inherited, asked_at)


async def take_over(lease: Lease) -> list[str]:
    """Bots in this folder belong to this machine, whatever it was called before; the earlier names."""
    rows = await DB.fetch(
        "UPDATE bot_process p SET node_id = $1, lease_epoch = $3 FROM node n "
        "WHERE p.node_id = n.name AND n.holder = $2 AND n.name <> $1 RETURNING n.name",
        lease.node, lease.holder, lease.epoch,
    )  # fmt: skip
    return sorted({row["name"] for row in rows})


async def holder_of(bot_id: UUID) -> UUID | None:
    """The folder whose server last supervised the bot; its process, if it has one, runs on that folder's machine."""
    row = await DB.fetch_one(
        "SELECT n.holder FROM bot_process p JOIN node n ON n.name = p.node_id WHERE p.bot = $1", bot_id
    )
    return None if row is None else row["holder"]


class Renewal:
    """Renews a lease, on a connection of its own: no crowd at the pool may make a machine lose its bots."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._connection: Any = None

    async def once(self, load: Load, patience: float) -> bool:
        """Renews it, and says how the machine is; False when somebody else has it by now.

        Raises:
            Unavailable: The database did not answer within `patience` (s).
        """
        asked_at, lease = time.monotonic(), self._lease
        try:
            with anyio.fail_after(patience):
                if self._connection is None:
                    self._connection = await DB.connect()
                row = await self._connection.fetchrow(
                    "UPDATE node SET heartbeat_at = now(), version = $4, capacity = $5, start_slots = $6, "
                    "cpu_ratio = $7, memory_bytes = $8 WHERE name = $1 AND holder = $2 AND epoch = $3 RETURNING name",
                    lease.node, lease.holder, lease.epoch, __version__,
                    load.capacity, load.start_slots, load.cpu_ratio, load.memory_bytes,
                )  # fmt: skip
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            self.close()
            raise Unavailable("the database does not answer") from error
        if row is not None:
            lease.renewed_at = asked_at
        return row is not None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            connection.terminate()
