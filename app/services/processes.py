"""All SQL on what machines write of a bot: its process, its port, its runs."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.states import BotStatus, DesiredState, RestartMode
from app.services.nodes import Lease, LeaseLost

#: Columns a transition or a note may set; everything else of the row is out of reach.
WRITABLE = frozenset({
    "phase", "phase_progress", "error", "nonce", "pid", "port", "generation", "config_revision", "config_sha256",
    "config_rendered", "config_synced_at", "config_error", "openclaw_version", "started_at", "ready_at", "ended_at",
    "last_seen_at", "exit_code", "exit_signal", "failures", "restart_count", "next_retry_at", "memory_bytes",
    "good_revision",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Wanted and observed state of one bot, as its runner compares them."""

    #: Under which its runner acts.
    lease: Lease
    bot_id: UUID
    owner: UUID
    agent_id: str
    name: str
    model: str
    system_prompt: str | None
    overrides: dict[str, Any]
    restart_mode: RestartMode
    restart_max: int
    restart_window: int
    restart_backoff: float
    revision: int
    desired: DesiredState
    generation: int
    restart_generation: int
    stop_grace: float | None
    status: BotStatus
    status_seq: int
    reason: str | None
    nonce: UUID | None
    pid: int | None
    port: int | None
    seen_generation: int
    applied_revision: int
    #: Of the configuration that a process of the bot's has taken last.
    config_sha256: str | None
    #: Why `applied_revision` was refused and taken back.
    config_error: str | None
    #: The newest revision that a process of the bot's has taken.
    good_revision: int
    openclaw_version: str | None
    failures: int
    restart_count: int
    next_retry_at: datetime | None
    started_at: datetime | None

    @property
    def is_rolled_back(self) -> bool:
        """The wanted configuration was tried and refused, and nothing was changed since."""
        return self.config_error is not None and self.revision == self.applied_revision


_WANTED = """
SELECT b.id AS bot_id, b.owner, b.agent_id, b.name, b.model, b.system_prompt, b.config_overrides AS overrides,
  b.restart_mode, b.restart_max, b.restart_window, b.restart_backoff, b.config_revision AS revision, b.desired,
  b.generation, b.restart_generation, b.stop_grace, p.status, p.status_seq, p.reason, p.nonce, p.pid, p.port,
  p.generation AS seen_generation, p.config_revision AS applied_revision, p.config_sha256, p.config_error,
  p.good_revision,
  p.openclaw_version, p.failures, p.restart_count, p.next_retry_at, p.started_at, p.node_id, p.lease_epoch
FROM bot b JOIN bot_process p ON p.bot = b.id
"""


async def load(lease: Lease, bot_id: UUID) -> Wanted | None:
    """The bot as its runner sees it; None once its row is gone.

    Raises:
        LeaseLost: It is another server's by now.
    """
    row = await DB.fetch_one(f"{_WANTED} WHERE b.id = $1", bot_id)
    if row is None:
        return None
    if (row.pop("node_id"), row.pop("lease_epoch")) != (lease.node, lease.epoch):
        raise LeaseLost(f"bot {bot_id} is another server's")
    row["status"] = BotStatus(row["status"])
    row["desired"] = DesiredState(row["desired"])
    row["restart_mode"] = RestartMode(row["restart_mode"])
    return Wanted(lease=lease, **row)


async def of_lease(lease: Lease) -> list[UUID]:
    """Ids of the bots that are this machine's under this lease."""
    rows = await DB.fetch("SELECT bot FROM bot_process WHERE node_id = $1 AND lease_epoch = $2", *_of(lease))
    return [row["bot"] for row in rows]


async def claim(lease: Lease) -> list[UUID]:
    """Brings bots that were made since under the lease; their ids.

    The machine's row is held meanwhile, so that who takes the lease at this moment finds these bots as well.
    """
    rows = await DB.fetch(
        "WITH held AS (SELECT name, epoch FROM node WHERE name = $1 AND epoch = $2 AND holder = $3 FOR SHARE) "
        "UPDATE bot_process p SET lease_epoch = held.epoch FROM held "
        "WHERE p.node_id = held.name AND p.lease_epoch < held.epoch RETURNING p.bot",
        *_of(lease), lease.holder,
    )  # fmt: skip
    return [row["bot"] for row in rows]


@dataclass(frozen=True, slots=True)
class Overdue:
    """What a supervisor has to see to: bots it does not know yet, and bots whose wish is not carried out."""

    is_anybody_new: bool
    stale: list[UUID]


async def overdue(lease: Lease) -> Overdue:
    """Bots whose wish is newer than what was done about it, through whichever server it came."""
    rows = await DB.fetch(
        "SELECT p.bot, p.lease_epoch <> $2 AS is_new FROM bot_process p JOIN bot b ON b.id = p.bot "
        "WHERE p.node_id = $1 AND (p.lease_epoch <> $2 OR b.generation <> p.generation OR b.desired = 'DELETED' "
        "OR (b.desired = 'RUNNING' AND b.config_revision <> p.config_revision))",
        *_of(lease),
    )
    return Overdue(any(row["is_new"] for row in rows), [row["bot"] for row in rows if not row["is_new"]])


async def claiming(lease: Lease) -> list[UUID]:
    """Bots whose row says that there is a process."""
    rows = await DB.fetch(
        "SELECT bot FROM bot_process WHERE node_id = $1 AND lease_epoch = $2 "
        "AND status IN ('STARTING', 'ACTIVE', 'STOPPING')",
        *_of(lease),
    )
    return [row["bot"] for row in rows]


def _of(lease: Lease) -> tuple[str, int]:
    return lease.node, lease.epoch


async def hold(lease: Lease, bot_id: UUID) -> None:
    """Locks the bot's row for the rest of the transaction. Raises `LeaseLost` where it is another server's."""
    row = await DB.fetch_one(
        "SELECT bot FROM bot_process WHERE bot = $1 AND node_id = $2 AND lease_epoch = $3 FOR NO KEY UPDATE",
        bot_id, *_of(lease),
    )  # fmt: skip
    if row is None:
        raise LeaseLost(f"bot {bot_id} is another server's, or gone")


async def hold_running(lease: Lease, bot_id: UUID) -> bool:
    """As `hold`; whether a process belongs to the bot's status, which stays so for the rest of the transaction."""
    row = await DB.fetch_one(
        "SELECT status FROM bot_process WHERE bot = $1 AND node_id = $2 AND lease_epoch = $3 FOR NO KEY UPDATE",
        bot_id, *_of(lease),
    )  # fmt: skip
    if row is None:
        raise LeaseLost(f"bot {bot_id} is another server's, or gone")
    return BotStatus(row["status"]).has_process


async def hold_owner(bot_id: UUID, owner: UUID) -> bool:
    """Whether the bot is this owner's, which stays so for the rest of the transaction.

    A transfer takes away what was told of the owner's settings: it comes before this, or after the transaction.
    """
    row = await DB.fetch_one("SELECT owner FROM bot WHERE id = $1 FOR SHARE", bot_id)
    return row is not None and row["owner"] == owner


async def note(lease: Lease, bot_id: UUID, **facts: Any) -> None:
    """Writes facts that are no change of status: a sign of life, the phase of a start, a config that was written.

    Raises:
        LeaseLost: The bot is another server's by now, or gone; nothing was written.
    """
    columns, values = assignments(facts, start=4)
    row = await DB.fetch_one(
        f"UPDATE bot_process SET {columns} WHERE bot = $1 AND node_id = $2 AND lease_epoch = $3 RETURNING bot",
        bot_id, *_of(lease), *values,
    )  # fmt: skip
    if row is None:
        raise LeaseLost(f"bot {bot_id} is another server's, or gone")


async def note_rendered(lease: Lease, bot_id: UUID, owner: UUID, rendered: str, **facts: Any) -> None:
    """As `note`, with the configuration that was written for this owner; who has the bot by now is not told of it.

    Args:
        rendered: JSON without its secrets.
    """
    async with DB.transaction():
        if await hold_owner(bot_id, owner):
            facts |= {"config_rendered": rendered, "config_synced_at": datetime.now(UTC)}
        if facts:
            await note(lease, bot_id, **facts)


def assignments(facts: dict[str, Any], start: int) -> tuple[str, list[Any]]:
    """`a = $2, b = $3` and the values, for columns that may be written."""
    if unknown := facts.keys() - WRITABLE:
        raise ValueError(f"bot_process has no writable {sorted(unknown)}")
    return ", ".join(f"{name} = ${number}" for number, name in enumerate(facts, start)), list(facts.values())


async def claimed_ports(node: str) -> set[int]:
    rows = await DB.fetch("SELECT port FROM bot_process WHERE node_id = $1 AND port IS NOT NULL", node)
    return {row["port"] for row in rows}


async def claim_port(lease: Lease, bot_id: UUID, port: int) -> bool:
    """Takes the port for the bot; False where another bot of the machine has it."""
    try:
        await note(lease, bot_id, port=port)
    except asyncpg.UniqueViolationError:
        return False
    return True


async def begin_run(lease: Lease, bot_id: UUID, nonce: UUID) -> None:
    await DB.fetch(
        "INSERT INTO bot_run (nonce, bot, started_at) SELECT $2, bot, now() FROM bot_process "
        "WHERE bot = $1 AND node_id = $3 AND lease_epoch = $4",
        bot_id, nonce, *_of(lease),
    )  # fmt: skip


async def end_run(
    lease: Lease,
    nonce: UUID,
    reason: str,
    is_failure: bool,
    code: int | None,
    signal: str | None,
    tail: str | None,
    rss_kb: int | None,
) -> None:
    """Closes the run once; a second report about the same incarnation changes nothing."""
    await DB.fetch(
        "UPDATE bot_run r SET ended_at = now(), reason = $2, is_failure = $3, exit_code = $4, exit_signal = $5, "
        "tail = $6, max_rss_kb = $7 FROM bot_process p WHERE r.nonce = $1 AND r.ended_at IS NULL "
        "AND p.bot = r.bot AND p.node_id = $8 AND p.lease_epoch = $9",
        nonce, reason, is_failure, code, signal, tail, rss_kb, *_of(lease),
    )  # fmt: skip


async def recent_failures(bot_id: UUID, window: timedelta) -> int:
    """Runs that failed within the window and since the bot was last wished to run by hand."""
    row = await DB.fetch_one(
        "SELECT count(*) AS n FROM bot_run r WHERE r.bot = $1 AND r.is_failure AND r.ended_at > now() - $2::interval",
        bot_id, window,
    )  # fmt: skip
    return 0 if row is None else row["n"]


async def ready_run(lease: Lease, bot_id: UUID) -> None:
    await DB.fetch(
        "UPDATE bot_run r SET ready_at = now() FROM bot_process p "
        "WHERE p.bot = $1 AND r.nonce = p.nonce AND p.node_id = $2 AND p.lease_epoch = $3",
        bot_id, *_of(lease),
    )  # fmt: skip


async def remove(bot_id: UUID) -> None:
    """Deletes the bot with all that hangs on it; again changes nothing."""
    await DB.fetch("DELETE FROM bot WHERE id = $1 AND desired = 'DELETED'", bot_id)
