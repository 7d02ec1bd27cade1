"""All SQL on what machines write of a bot: its process, its port, its runs."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.states import BotStatus, DesiredState, RestartMode

#: Columns a transition or a note may set; everything else of the row is out of reach.
WRITABLE = frozenset({
    "phase", "error", "nonce", "pid", "port", "generation", "config_revision", "config_sha256", "config_rendered",
    "config_synced_at", "config_error", "openclaw_version", "started_at", "ready_at", "ended_at", "last_seen_at",
    "exit_code", "exit_signal", "failures", "restart_count", "next_retry_at",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Wanted and observed state of one bot, as its runner compares them."""

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
    config_sha256: str | None
    openclaw_version: str | None
    failures: int
    restart_count: int
    next_retry_at: datetime | None
    started_at: datetime | None


_WANTED = """
SELECT b.id AS bot_id, b.owner, b.agent_id, b.name, b.model, b.system_prompt, b.config_overrides AS overrides,
  b.restart_mode, b.restart_max, b.restart_window, b.restart_backoff, b.config_revision AS revision, b.desired,
  b.generation, b.restart_generation, b.stop_grace, p.status, p.status_seq, p.reason, p.nonce, p.pid, p.port,
  p.generation AS seen_generation, p.config_revision AS applied_revision, p.config_sha256,
  p.openclaw_version, p.failures,
  p.restart_count, p.next_retry_at, p.started_at
FROM bot b JOIN bot_process p ON p.bot = b.id
"""


async def load(bot_id: UUID) -> Wanted | None:
    """The bot as its runner sees it; None once its row is gone."""
    row = await DB.fetch_one(f"{_WANTED} WHERE b.id = $1", bot_id)
    if row is None:
        return None
    row["status"] = BotStatus(row["status"])
    row["desired"] = DesiredState(row["desired"])
    row["restart_mode"] = RestartMode(row["restart_mode"])
    return Wanted(**row)


async def of_node(node: str) -> list[UUID]:
    """Ids of the bots whose processes belong to this machine."""
    rows = await DB.fetch("SELECT bot FROM bot_process WHERE node_id = $1", node)
    return [row["bot"] for row in rows]


async def overdue(node: str) -> tuple[list[UUID], list[UUID]]:
    """Bots whose wish is newer than what was done about it, and bots whose row claims a process."""
    rows = await DB.fetch(
        "SELECT b.id, p.status IN ('STARTING', 'ACTIVE', 'STOPPING') AS claims, (b.generation <> p.generation "
        "OR b.desired = 'DELETED' OR (b.desired = 'RUNNING' AND b.config_revision <> p.config_revision)) AS is_stale "
        "FROM bot b JOIN bot_process p ON p.bot = b.id WHERE p.node_id = $1",
        node,
    )
    return [row["id"] for row in rows if row["is_stale"]], [row["id"] for row in rows if row["claims"]]


async def note(bot_id: UUID, **facts: Any) -> None:
    """Writes facts that are no change of status: a sign of life, the phase of a start, a config that was written."""
    columns, values = assignments(facts, start=2)
    await DB.fetch(f"UPDATE bot_process SET {columns} WHERE bot = $1", bot_id, *values)


def assignments(facts: dict[str, Any], start: int) -> tuple[str, list[Any]]:
    """`a = $2, b = $3` and the values, for columns that may be written."""
    if unknown := facts.keys() - WRITABLE:
        raise ValueError(f"bot_process has no writable {sorted(unknown)}")
    return ", ".join(f"{name} = ${number}" for number, name in enumerate(facts, start)), list(facts.values())


async def claimed_ports(node: str) -> set[int]:
    rows = await DB.fetch("SELECT port FROM bot_process WHERE node_id = $1 AND port IS NOT NULL", node)
    return {row["port"] for row in rows}


async def claim_port(bot_id: UUID, port: int) -> bool:
    """Takes the port for the bot; False where another bot of the machine has it."""
    try:
        await DB.fetch("UPDATE bot_process SET port = $2 WHERE bot = $1", bot_id, port)
    except asyncpg.UniqueViolationError:
        return False
    return True


async def begin_run(bot_id: UUID, nonce: UUID) -> None:
    await DB.fetch("INSERT INTO bot_run (nonce, bot, started_at) VALUES ($1, $2, now())", nonce, bot_id)


async def end_run(
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
        "UPDATE bot_run SET ended_at = now(), reason = $2, is_failure = $3, exit_code = $4, exit_signal = $5, "
        "tail = $6, max_rss_kb = $7 WHERE nonce = $1 AND ended_at IS NULL",
        nonce, reason, is_failure, code, signal, tail, rss_kb,
    )  # fmt: skip


async def recent_failures(bot_id: UUID, window: timedelta) -> int:
    """Runs that failed within the window and since the bot was last wished to run by hand."""
    row = await DB.fetch_one(
        "SELECT count(*) AS n FROM bot_run r WHERE r.bot = $1 AND r.is_failure AND r.ended_at > now() - $2::interval",
        bot_id, window,
    )  # fmt: skip
    return 0 if row is None else row["n"]


async def ready_run(bot_id: UUID) -> None:
    await DB.fetch(
        "UPDATE bot_run r SET ready_at = now() FROM bot_process p WHERE p.bot = $1 AND r.nonce = p.nonce", bot_id
    )


async def remove(bot_id: UUID) -> None:
    """Deletes the bot with all that hangs on it; again changes nothing."""
    await DB.fetch("DELETE FROM bot WHERE id = $1 AND desired = 'DELETED'", bot_id)
