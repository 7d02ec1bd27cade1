"""Bindings: rules that lead a peer on a channel to a bot."""

import json
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.errors import Invalid, LimitReached, NotFound, Taken
from app.domain.ids import new_id
from app.domain.viewer import Viewer
from app.services import audit, channels, roster, words
from app.services.channels import account_id
from app.services.parts import Parts
from app.services.revisions import Revisions

#: Rules that one bot may have, and what a priority may be.
MAX_BINDINGS, MAX_PRIORITY = 200, 1_000_000
#: Longest name of a peer.
MAX_PEER = 200
#: Kinds of peers by what callers write; `dm` is an old word of OpenClaw's.
PEER_KINDS = {"direct": "direct", "dm": "direct", "group": "group", "channel": "channel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A rule as its row holds it."""

    id: UUID
    bot: UUID
    channel: UUID | None
    peer_kind: str | None
    peer_id: str | None
    account_id: str | None
    priority: int
    created_at: datetime
    #: Its bot at the moment the rule was written; None where it was read.
    on: roster.Bot | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What a rule looks at, as a caller writes it; None for any."""

    channel: UUID | None
    peer_kind: str | None
    peer_id: str | None
    account_id: str | None
    priority: int


def _missing() -> NotFound:
    return NotFound("there is no such binding", "bindingId")


#: Reads them: by identity, or page by page of one bot.
READ = Parts(
    "x.id, x.bot, x.channel, x.peer_kind, x.peer_id, x.account_id, x.priority, x.created_at",
    "binding x JOIN bot b ON b.id = x.bot",
    "bindings.createdAt",
    lambda row: Binding(**row),
    _missing,
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rule with the provider and the account that it comes to."""

    provider: str
    account_id: str
    peer_kind: str | None
    peer_id: str | None
    priority: int


async def rendered(bot_id: UUID) -> list[Rendered]:
    """What the bot's configuration is rendered from: a rule for any channel stands for one of each that is open."""
    rows = await DB.fetch(
        "SELECT c.provider, c.account_id, x.peer_kind, x.peer_id, x.priority FROM binding x "
        "JOIN channel c ON c.bot = x.bot AND (x.channel IS NULL OR x.channel = c.id) "
        "AND (x.account_id IS NULL OR x.account_id = c.account_id) "
        "WHERE x.bot = $1 AND c.enabled ORDER BY x.priority DESC, x.id, c.provider, c.account_id",
        bot_id,
    )
    return [Rendered(**row) for row in rows]


class Bindings:
    """Writes what people want of bindings."""

    def __init__(self, revisions: Revisions) -> None:
        self._revisions = revisions

    async def create(self, viewer: Viewer, bot_id: UUID, match: Match) -> Binding:
        """Adds a rule. Refused where the bot has one for the same peers."""
        identity, match = new_id(), _checked(match)
        try:
            async with DB.transaction():
                await self._revisions.hold(viewer, bot_id, NotFound("there is no such bot", "botId"))
                await _require_channel(bot_id, match)
                await _claim_place(bot_id)
                await DB.fetch(
                    "INSERT INTO binding (id, bot, channel, peer_kind, peer_id, account_id, priority, match_key, "
                    "created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now())",
                    identity, bot_id, *_values(match),
                )  # fmt: skip
                await self._revisions.changed(bot_id)
                await audit.note("bindingCreate", audit.Subject("Binding", identity), bot=str(bot_id))
                return await _written(viewer, identity)
        except asyncpg.UniqueViolationError as error:
            raise _taken() from error

    async def update(self, viewer: Viewer, binding_id: UUID, match: Match) -> Binding:
        """Replaces a rule; one that is so already is left alone."""
        match = _checked(match)
        try:
            async with DB.transaction():
                old = await self._hold(viewer, binding_id)
                await _require_channel(old["bot"], match)
                if (old["match_key"], old["priority"]) != (_key(match), match.priority):
                    await DB.fetch(
                        "UPDATE binding SET channel = $2, peer_kind = $3, peer_id = $4, account_id = $5, "
                        "priority = $6, match_key = $7 WHERE id = $1",
                        binding_id, *_values(match),
                    )  # fmt: skip
                    await self._revisions.changed(old["bot"])
                    await audit.note("bindingUpdate", audit.Subject("Binding", binding_id), bot=str(old["bot"]))
                return await _written(viewer, binding_id)
        except asyncpg.UniqueViolationError as error:
            raise _taken() from error

    async def delete(self, viewer: Viewer, binding_id: UUID) -> UUID:
        """Deletes a rule; the bot it led to."""
        async with DB.transaction():
            old = await self._hold(viewer, binding_id)
            await DB.fetch("DELETE FROM binding WHERE id = $1", binding_id)
            await self._revisions.changed(old["bot"])
            await audit.note("bindingDelete", audit.Subject("Binding", binding_id), bot=str(old["bot"]))
        return old["bot"]

    async def _hold(self, viewer: Viewer, binding_id: UUID) -> dict[str, Any]:
        row = await DB.fetch_one("SELECT bot FROM binding WHERE id = $1", binding_id)
        await self._revisions.hold(viewer, row["bot"] if row else None, _missing())
        row = await DB.fetch_one("SELECT bot, match_key, priority FROM binding WHERE id = $1 FOR UPDATE", binding_id)
        if row is None:
            raise _missing()
        return row


async def _written(viewer: Viewer, binding_id: UUID) -> Binding:
    """The rule with its bot as the caller's transaction leaves them; the next one may delete both."""
    row = await READ.require(viewer, binding_id)
    return replace(row, on=await roster.get(viewer, row.bot))


def _checked(match: Match) -> Match:
    """The rule as it is kept."""
    if match.peer_kind is not None and match.peer_kind not in PEER_KINDS:
        raise Invalid("peerKind must be `direct`, `group` or `channel`", "peerKind")
    if match.peer_id is not None and match.peer_kind is None:
        raise Invalid("peerKind is missing: the same peerId can be a person's and a group's", "peerKind")
    if not -MAX_PRIORITY <= match.priority <= MAX_PRIORITY:
        raise Invalid(f"priority must lie between {-MAX_PRIORITY} and {MAX_PRIORITY}", "priority")
    return Match(
        channel=match.channel,
        peer_kind=match.peer_kind and PEER_KINDS[match.peer_kind],
        peer_id=None if match.peer_id is None else words.line(match.peer_id, "peerId", MAX_PEER),
        account_id=None if match.account_id is None else account_id(match.account_id),
        priority=match.priority,
    )


async def _require_channel(bot_id: UUID, match: Match) -> None:
    """The rule's channel is the bot's own, and has the account that the rule names."""
    if match.channel is None:
        return
    row = await DB.fetch_one("SELECT account_id FROM channel WHERE id = $1 AND bot = $2", match.channel, bot_id)
    if row is None:
        raise channels.missing()
    if match.account_id not in (None, row["account_id"]):
        raise Invalid("the channel has another account, so the rule would never match", "accountId")


async def _claim_place(bot_id: UUID) -> None:
    row = await DB.fetch_one("SELECT count(*) AS n FROM binding WHERE bot = $1", bot_id)
    if row and row["n"] >= MAX_BINDINGS:
        raise LimitReached(f"a bot has at most {MAX_BINDINGS} bindings", "botId")


def _key(match: Match) -> str:
    """What the rule matches, in one text; its priority is no part of that. A channel says its account itself."""
    channel, account = match.channel and str(match.channel), None if match.channel else match.account_id
    return json.dumps([channel, account, match.peer_kind, match.peer_id], ensure_ascii=False, separators=(",", ":"))


def _values(match: Match) -> tuple[Any, ...]:
    return match.channel, match.peer_kind, match.peer_id, match.account_id, match.priority, _key(match)


def _taken() -> Taken:
    return Taken("the bot has a binding for the same peers already", "peerId")
