"""The audit trail as administrators read it: the newest first."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import DB
from app.domain.states import TokenScope
from app.domain.viewer import Viewer
from app.services import pages, words
from app.services.audit import Subject
from app.services.pages import Order, Stretch, Where


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Something that somebody did, or was refused."""

    id: UUID
    actor: UUID | None
    action: str
    subject: Subject | None
    refusal: str | None
    detail: dict[str, Any]
    address: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which entries, and which stretch of them. Each condition is a list of what it may be; None: anything."""

    actors: tuple[UUID, ...] | None = None
    subjects: tuple[UUID, ...] | None = None
    actions: tuple[str, ...] | None = None
    stretch: Stretch


_COLUMNS = "id, actor, action, subject_type, subject, refusal, detail, address, created_at"
_NEWEST_FIRST = Order("auditEntries", is_descending=True)


def _entry(row: dict[str, Any]) -> Entry:
    type_, key = row.pop("subject_type"), row.pop("subject")
    return Entry(**row, subject=Subject(type_, key) if type_ else None)


def _meant(query: Query) -> Where:
    where = Where()
    if query.actors is not None:
        where.add("actor = ANY({}::uuid[])", list(query.actors))
    if query.subjects is not None:
        where.add("subject = ANY({}::uuid[])", list(query.subjects))
    if query.actions is not None:
        where.add("action = ANY({}::text[])", [words.sought(action, "action") for action in query.actions])
    return where


async def page(query: Query) -> pages.Page[Entry]:
    return await pages.read(_COLUMNS, "audit_entry", _meant(query), _NEWEST_FIRST, query.stretch, _entry)


async def count(query: Query) -> int:
    return await pages.count("audit_entry", _meant(query))


async def by_ids(viewer: Viewer, ids: list[UUID]) -> dict[UUID, Entry]:
    """Entries, for administrators."""
    if not viewer.may(TokenScope.ADMIN):
        return {}
    rows = await DB.fetch(f"SELECT {_COLUMNS} FROM audit_entry WHERE id = ANY($1::uuid[])", ids)
    return {row["id"]: _entry(row) for row in rows}
