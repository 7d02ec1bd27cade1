"""The audit trail: who did what, written in the transaction of what it tells.

Who acts is known to the task, so that a service need not be told by each of its callers. An entry names what was
changed and never a secret: values only where they are words of ours (a role, a scope, an owner).
"""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from app.db.engine import DB
from app.domain.ids import new_id


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, with which token, from where. Without a user it is the server itself, or nobody known."""

    user_id: UUID | None = None
    token_id: str | None = None
    address: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What something was done to: the name of its type in the schema, and its key."""

    type: str
    key: UUID


_acting: ContextVar[Actor] = ContextVar("acting", default=Actor())  # noqa: B039 -- it is frozen


def actor() -> Actor:
    """Who acts in this task."""
    return _acting.get()


@contextmanager
def acting(who: Actor) -> Generator[None, None, None]:
    """What is noted inside was done by this actor."""
    token = _acting.set(who)
    try:
        yield
    finally:
        _acting.reset(token)


async def note(action: str, subject: Subject | None = None, *, refusal: str | None = None, **detail: Any) -> None:
    """Keeps an entry, inside the caller's transaction.

    Args:
        action: The mutation's name, or the server's own deed.
        refusal: Code of the refusal; None where it was done.
        detail: What changed; the caller leaves secrets out.
    """
    who = _acting.get()
    await DB.fetch(
        "INSERT INTO audit_entry (id, actor, token, action, subject_type, subject, refusal, detail, address, "
        "created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9, now())",
        new_id(), who.user_id, who.token_id, action, subject and subject.type, subject and subject.key, refusal,
        msgspec.json.encode(detail).decode(), who.address,
    )  # fmt: skip
