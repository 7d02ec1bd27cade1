"""Bots as people see them: each with its process as one row, by identity or by the page, under the viewer's rights."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.db.engine import DB
from app.domain.errors import NotFound
from app.domain.states import BotStatus, DesiredState, RestartMode
from app.domain.viewer import Viewer
from app.services import pages, words
from app.services.pages import Order, Stretch, Where
from app.services.parts import visible


@dataclass(frozen=True, slots=True, kw_only=True)
class Bot:
    """A bot with its process, as one row."""

    id: UUID
    owner: UUID
    agent_id: str
    name: str
    description: str | None
    model: str
    system_prompt: str | None
    tags: list[str]
    restart_mode: RestartMode
    restart_max: int
    restart_window: int
    restart_backoff: float
    overrides: dict[str, Any]
    revision: int
    desired: DesiredState
    generation: int
    created_at: datetime
    updated_at: datetime
    status: BotStatus
    status_seq: int
    reason: str | None
    phase: str | None
    phase_progress: dict[str, Any] | None
    error: str | None
    pid: int | None
    port: int | None
    seen_generation: int
    applied_revision: int
    rendered: dict[str, Any]
    synced_at: datetime | None
    config_error: str | None
    good_revision: int
    openclaw_version: str | None
    started_at: datetime | None
    ready_at: datetime | None
    last_seen_at: datetime | None
    restart_count: int


_COLUMNS = """
  b.id, b.owner, b.agent_id, b.name, b.description, b.model, b.system_prompt, b.tags, b.restart_mode,
  b.restart_max, b.restart_window, b.restart_backoff, b.config_overrides AS overrides, b.config_revision AS revision,
  b.desired, b.generation, b.created_at, b.updated_at, p.status, p.status_seq, p.reason, p.phase, p.phase_progress,
  p.error, p.pid, p.port, p.generation AS seen_generation, p.config_revision AS applied_revision,
  p.config_rendered AS rendered, p.config_synced_at AS synced_at, p.config_error, p.good_revision, p.openclaw_version,
  p.started_at, p.ready_at, p.last_seen_at, p.restart_count
"""
_SOURCE = "bot b JOIN bot_process p ON p.bot = b.id"


def _bot(row: dict[str, Any]) -> Bot:
    typed: dict[str, Any] = {
        "restart_mode": RestartMode(row["restart_mode"]),
        "desired": DesiredState(row["desired"]),
        "status": BotStatus(row["status"]),
    }
    return Bot(**row | typed)


async def _find(where: Where) -> list[Bot]:
    return [_bot(row) for row in await DB.fetch(f"SELECT {_COLUMNS} FROM {_SOURCE} WHERE {where}", *where.values)]


async def by_ids(viewer: Viewer, ids: list[UUID]) -> dict[UUID, Bot]:
    """Those of the bots that there are and that the viewer may see."""
    where = visible(viewer)
    where.add("b.id = ANY({}::uuid[])", ids)
    return {bot.id: bot for bot in await _find(where)}


async def by_agent_id(viewer: Viewer, agent_id: str) -> Bot | None:
    if not words.AGENT_ID.match(agent_id):
        return None
    where = visible(viewer)
    where.add("b.agent_id = {}", agent_id)
    return next(iter(await _find(where)), None)


async def get(viewer: Viewer, bot_id: UUID) -> Bot | None:
    return (await by_ids(viewer, [bot_id])).get(bot_id)


async def require(viewer: Viewer, bot_id: UUID) -> Bot:
    """The bot, or `NotFound`, as mutations answer."""
    bot = await get(viewer, bot_id)
    if bot is None:
        raise NotFound("there is no such bot", "botId")
    return bot


class OrderField(StrEnum):
    """What bots can be ordered by."""

    CREATED_AT = "createdAt"
    LAST_SEEN_AT = "lastSeenAt"
    NAME = "name"
    STATUS = "status"


_ORDERS = {
    OrderField.CREATED_AT: ("b.created_at", pages.time),
    OrderField.LAST_SEEN_AT: ("coalesce(p.last_seen_at, 'epoch'::timestamptz)", pages.time),
    OrderField.NAME: ("b.name", pages.text),
    OrderField.STATUS: ("p.status", pages.text),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which bots, in which order, and which stretch of the list."""

    status: tuple[BotStatus, ...] | None = None
    owners: tuple[UUID, ...] | None = None
    tags: tuple[str, ...] | None = None
    search: str | None = None
    order: OrderField = OrderField.CREATED_AT
    is_descending: bool = False
    stretch: Stretch


def _meant(viewer: Viewer, query: Query) -> Where:
    where = visible(viewer)
    if query.status is not None:
        where.add("p.status = ANY({}::text[])", [status.value for status in query.status])
    if query.owners is not None:
        where.add("b.owner = ANY({}::uuid[])", list(query.owners))
    if query.tags is not None:
        where.add("b.tags @> {}::varchar[]", [words.sought(tag, "tags") for tag in query.tags])
    if query.search:
        text = words.sought(query.search, "search").replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        where.add("b.name ILIKE {0} OR b.agent_id ILIKE {0} OR b.description ILIKE {0}", f"%{text}%")
    return where


async def page(viewer: Viewer, query: Query) -> pages.Page[Bot]:
    """A page of the bots the viewer may see."""
    key, read = _ORDERS[query.order]
    order = Order(f"bots.{query.order}", key, read, "b.id", query.is_descending)
    return await pages.read(_COLUMNS, _SOURCE, _meant(viewer, query), order, query.stretch, _bot)


async def count(viewer: Viewer, query: Query) -> int:
    """All bots the query means, also those on other pages."""
    return await pages.count(_SOURCE, _meant(viewer, query))
