"""Bots as people see and change them: what is written here is a wish, and the supervisor carries it out."""

import base64
import binascii
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import anyio

from app.db.engine import DB
from app.domain import rooms as names
from app.domain.errors import BadInput, Invalid, LimitReached, NotFound, Stale, Taken
from app.domain.events import BotEventKind
from app.domain.ids import new_id
from app.domain.ports import RefusedOverrides, Wake
from app.domain.states import BotStatus, DesiredState, RestartMode
from app.domain.viewer import Viewer
from app.pubsub.hub import Hub, HubClosed
from app.services import keys, models, words
from app.services.recorder import Recorder
from app.vault import Sealed

#: Longest a mutation waits for a process, in seconds; then the present state is the answer.
MAX_WAIT = 60.0
#: Bounds of a restart policy.
MAX_RESTARTS, MAX_WINDOW, MAX_BACKOFF = 1_000, 86_400, 300.0
MAX_GRACE = 330.0
#: Suffixes tried for an agentId made from a name.
MAX_SUFFIX = 10_000


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
    error: str | None
    pid: int | None
    port: int | None
    seen_generation: int
    applied_revision: int
    rendered: dict[str, Any]
    synced_at: datetime | None
    config_error: str | None
    openclaw_version: str | None
    started_at: datetime | None
    ready_at: datetime | None
    last_seen_at: datetime | None
    restart_count: int


_BOT = """
SELECT b.id, b.owner, b.agent_id, b.name, b.description, b.model, b.system_prompt, b.tags, b.restart_mode,
  b.restart_max, b.restart_window, b.restart_backoff, b.config_overrides AS overrides, b.config_revision AS revision,
  b.desired, b.generation, b.created_at, b.updated_at, p.status, p.status_seq, p.reason, p.phase, p.error, p.pid,
  p.port, p.generation AS seen_generation, p.config_revision AS applied_revision, p.config_rendered AS rendered,
  p.config_synced_at AS synced_at, p.config_error, p.openclaw_version, p.started_at, p.ready_at, p.last_seen_at,
  p.restart_count
FROM bot b JOIN bot_process p ON p.bot = b.id
"""
# A bot that is being deleted is gone for everybody but its runner.
_VISIBLE = "b.desired <> 'DELETED' AND ($1 OR b.owner = $2)"


def _bot(row: dict[str, Any]) -> Bot:
    typed: dict[str, Any] = {
        "restart_mode": RestartMode(row["restart_mode"]),
        "desired": DesiredState(row["desired"]),
        "status": BotStatus(row["status"]),
    }
    return Bot(**row | typed)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What is done after a crash: at most so many restarts in a window (s), the first after a pause (s)."""

    mode: RestartMode
    max_restarts: int
    window_seconds: int
    backoff_seconds: float

    def checked(self) -> "RestartPolicy":
        field = "restartPolicy"
        if not 0 <= self.max_restarts <= MAX_RESTARTS:
            raise Invalid(f"maxRestarts must lie between 0 and {MAX_RESTARTS}", field, "maxRestarts")
        if not 1 <= self.window_seconds <= MAX_WINDOW:
            raise Invalid(f"windowSeconds must lie between 1 and {MAX_WINDOW}", field, "windowSeconds")
        if not 0.1 <= self.backoff_seconds <= MAX_BACKOFF:
            raise Invalid(f"backoffSeconds must lie between 0.1 and {MAX_BACKOFF:g}", field, "backoffSeconds")
        return self


DEFAULT_POLICY = RestartPolicy(RestartMode.ALWAYS, 5, 600, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A bot to be made."""

    name: str
    model: str
    agent_id: str | None = None
    description: str | None = None
    system_prompt: str | None = None
    tags: tuple[str, ...] = ()
    restart_policy: RestartPolicy = DEFAULT_POLICY
    overrides: Any = None
    start: bool = False


class Bots:
    """Reads bots and writes wishes about them."""

    def __init__(
        self, recorder: Recorder, hub: Hub, wake: Wake, refused: RefusedOverrides, node: str, max_bots: int
    ) -> None:
        self._recorder = recorder
        self._hub = hub
        self._wake = wake
        self._refused = refused
        self._node = node
        self._max_bots = max_bots

    async def create(self, viewer: Viewer, draft: Draft, token: Sealed, token_row: UUID, key_id: int) -> Bot:
        """Makes a bot and, where wanted, wishes it to run.

        Args:
            token: The gateway's token, sealed for the row `token_row` of the bot's secrets.
        """
        name = words.line(draft.name, "name", words.MAX_NAME)
        wished = words.agent_id(draft.agent_id) if draft.agent_id is not None else None
        policy = draft.restart_policy.checked()
        overrides = self._overrides(draft.overrides)
        tags = words.tags(list(draft.tags))
        description = draft.description and words.prose(draft.description, "description", words.MAX_DESCRIPTION)
        prompt = draft.system_prompt and words.prose(draft.system_prompt, "systemPrompt", words.MAX_PROMPT)
        identity = new_id()
        async with DB.transaction():
            model = await models.require(viewer.user_id, draft.model)
            await self._claim_place()
            agent_id = await self._free_agent_id(wished, name)
            await DB.fetch(
                "INSERT INTO bot (id, owner, agent_id, name, description, model, system_prompt, tags, restart_mode, "
                "restart_max, restart_window, restart_backoff, config_overrides, desired) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                identity, viewer.user_id, agent_id, name, description, model, prompt, tags, policy.mode.value,
                policy.max_restarts, policy.window_seconds, policy.backoff_seconds, overrides,
                DesiredState.RUNNING.value if draft.start else DesiredState.STOPPED.value,
            )  # fmt: skip
            await DB.fetch("INSERT INTO bot_process (bot, node_id) VALUES ($1, $2)", identity, self._node)
            await keys.keep_gateway_token(identity, token, token_row, key_id)
            await self._recorder.tell(identity, BotEventKind.CREATED)
            DB.after_commit(lambda: self._wake(identity))
        return await self.require(viewer, identity)

    async def _claim_place(self) -> None:
        """Counts under a lock, so that the quota is exact however many ask at once."""
        await DB.fetch("SELECT id FROM installation FOR UPDATE")
        row = await DB.fetch_one("SELECT count(*) AS n FROM bot")
        if row and row["n"] >= self._max_bots:
            raise LimitReached(f"this installation holds at most {self._max_bots} bots (OPENCLAW_MAX_BOTS)")

    async def _free_agent_id(self, wished: str | None, name: str) -> str:
        stem = wished or words.slug(name)
        rows = await DB.fetch("SELECT agent_id FROM bot WHERE agent_id = $1 OR agent_id LIKE $1 || '-%'", stem)
        used = {row["agent_id"] for row in rows}
        if stem not in used:
            return stem
        if wished:
            raise Taken(f"another bot has the agentId {wished!r}", "agentId")
        return next(text for n in range(2, MAX_SUFFIX) if (text := f"{stem}-{n}") not in used)

    def _overrides(self, value: Any) -> str:
        if value is None:
            return "{}"
        if not isinstance(value, dict):
            raise Invalid("configOverrides must be a JSON object", "configOverrides")
        text = words.json_text(value, "configOverrides")
        for path, why in self._refused(json.loads(text)):
            what = f"{path} cannot be overridden" if path else "configOverrides cannot be taken"
            raise Invalid(f"{what}: {why}", "configOverrides", *filter(None, path.split(".")))
        return text

    async def update(self, viewer: Viewer, bot_id: UUID, changes: dict[str, Any], expected: int | None) -> Bot:
        """Changes settings; what is not among `changes` stays.

        Args:
            changes: By name of the input's field: name, model, systemPrompt, description, tags, restartPolicy,
                configOverrides. None clears what can be empty.
        """
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            if expected is not None and expected != bot["config_revision"]:
                raise Stale(f"the configuration has revision {bot['config_revision']} by now", "expectedRevision")
            columns = await self._changed(bot["owner"], changes)
            # Labels and the policy are ours alone: the process need not read them.
            is_configured = bool(columns.keys() & {"name", "model", "system_prompt", "config_overrides"})
            columns["config_revision"] = bot["config_revision"] + is_configured
            texts = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
            await DB.fetch(f"UPDATE bot SET {texts}, updated_at = now() WHERE id = $1", bot_id, *columns.values())
            await self._recorder.tell(bot_id, BotEventKind.UPDATED)
            DB.after_commit(lambda: self._wake(bot_id))
        return await self.require(viewer, bot_id)

    async def _changed(self, owner: UUID, changes: dict[str, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for field, value in changes.items():
            match field:
                case "name":
                    columns["name"] = words.line(value or "", "name", words.MAX_NAME)
                case "model":
                    columns["model"] = await models.require(owner, value or "")
                case "systemPrompt":
                    columns["system_prompt"] = value and words.prose(value, field, words.MAX_PROMPT)
                case "description":
                    columns["description"] = value and words.prose(value, field, words.MAX_DESCRIPTION)
                case "tags":
                    columns["tags"] = words.tags(value or [])
                case "configOverrides":
                    columns["config_overrides"] = self._overrides(value)
                case "restartPolicy":
                    policy: RestartPolicy = (value or DEFAULT_POLICY).checked()
                    columns["restart_mode"] = policy.mode.value
                    columns["restart_max"] = policy.max_restarts
                    columns["restart_window"] = policy.window_seconds
                    columns["restart_backoff"] = policy.backoff_seconds
                case _:
                    raise ValueError(f"no such setting: {field}")
        return columns

    async def start(self, viewer: Viewer, bot_id: UUID) -> int:
        """Wishes the bot to run; the wish's generation. A bot that runs or starts already is left alone."""
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            process = await DB.fetch_one("SELECT status FROM bot_process WHERE bot = $1", bot_id)
            is_failed = process is not None and BotStatus(process["status"]) in (BotStatus.BACKOFF, BotStatus.ERROR)
            if bot["desired"] == DesiredState.RUNNING and not is_failed:
                return bot["generation"]
            return await self._wish(bot_id, "desired = 'RUNNING', stop_grace = NULL")

    async def stop(self, viewer: Viewer, bot_id: UUID, grace: float | None = None) -> int:
        """Wishes the bot down; the wish's generation. A bot that is down or stopping already is left alone."""
        if grace is not None and not 0 <= grace <= MAX_GRACE:
            raise Invalid(f"graceSeconds must lie between 0 and {MAX_GRACE:g}", "graceSeconds")
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            if bot["desired"] == DesiredState.STOPPED:
                return bot["generation"]
            return await self._wish(bot_id, "desired = 'STOPPED', stop_grace = $2", grace)

    async def restart(self, viewer: Viewer, bot_id: UUID) -> int:
        """Wishes for a new process, whatever the present one does."""
        async with DB.transaction():
            await self._lock(viewer, bot_id)
            return await self._wish(
                bot_id, "desired = 'RUNNING', stop_grace = NULL, restart_generation = generation + 1"
            )

    async def delete(self, viewer: Viewer, bot_id: UUID) -> None:
        """Wishes the bot gone for good; its runner stops it first and then removes all that hangs on it."""
        async with DB.transaction():
            await self._lock(viewer, bot_id)
            await self._wish(bot_id, "desired = 'DELETED', stop_grace = NULL")

    async def _wish(self, bot_id: UUID, wish: str, *values: Any) -> int:
        row = await DB.fetch_one(
            f"UPDATE bot SET {wish}, generation = generation + 1 WHERE id = $1 RETURNING generation", bot_id, *values
        )
        if row is None:
            raise NotFound("there is no such bot", "botId")
        DB.after_commit(lambda: self._ring(bot_id))
        return row["generation"]

    def _ring(self, bot_id: UUID) -> None:
        """The runner has something to do, and who waits for an older wish may wait in vain."""
        self._wake(bot_id)
        self._hub.wake([names.bot_status(bot_id)])

    async def _lock(self, viewer: Viewer, bot_id: UUID) -> dict[str, Any]:
        """The bot's row, locked, if the viewer may change it; a foreign bot looks like a missing one."""
        row = await DB.fetch_one(
            "SELECT owner, generation, desired, config_revision FROM bot "
            "WHERE id = $1 AND desired <> 'DELETED' AND ($2 OR owner = $3) FOR NO KEY UPDATE",
            bot_id, viewer.writes_all, viewer.user_id,
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such bot", "botId")
        return row

    async def get(self, viewer: Viewer, bot_id: UUID) -> Bot | None:
        return (await self.by_ids(viewer, [bot_id])).get(bot_id)

    async def require(self, viewer: Viewer, bot_id: UUID) -> Bot:
        """The bot, or `NotFound`, as mutations answer."""
        bot = await self.get(viewer, bot_id)
        if bot is None:
            raise NotFound("there is no such bot", "botId")
        return bot

    async def by_ids(self, viewer: Viewer, ids: list[UUID]) -> dict[UUID, Bot]:
        rows = await DB.fetch(
            f"{_BOT} WHERE {_VISIBLE} AND b.id = ANY($3::uuid[])", viewer.sees_all, viewer.user_id, ids
        )
        return {row["id"]: _bot(row) for row in rows}

    async def by_agent_id(self, viewer: Viewer, agent_id: str) -> Bot | None:
        if not words.AGENT_ID.match(agent_id):
            return None
        row = await DB.fetch_one(
            f"{_BOT} WHERE {_VISIBLE} AND b.agent_id = $3", viewer.sees_all, viewer.user_id, agent_id
        )
        return None if row is None else _bot(row)

    async def settled(self, viewer: Viewer, bot_id: UUID, is_settled: Callable[[Bot], bool]) -> Bot | None:
        """Waits until the bot is as asked, at most `MAX_WAIT`; the bot as it is then, None once it is gone."""
        async with aclosing(self._changes(bot_id)) as changes:
            async for _ in changes:
                bot = await self.get(viewer, bot_id)
                if bot is None or is_settled(bot):
                    return bot
        return await self.get(viewer, bot_id)

    async def gone(self, bot_id: UUID) -> bool:
        """Waits until the bot's row is gone, at most `MAX_WAIT`."""
        async with aclosing(self._changes(bot_id)) as changes:
            async for _ in changes:
                if await DB.fetch_one("SELECT id FROM bot WHERE id = $1", bot_id) is None:
                    return True
        return False

    async def _changes(self, bot_id: UUID) -> AsyncGenerator[None, None]:
        """Now, and each time something happened to the bot or was wished of it, for at most `MAX_WAIT`."""
        until = anyio.current_time() + MAX_WAIT
        with self._hub.join([names.bot_status(bot_id)]) as listener, suppress(HubClosed):
            while anyio.current_time() < until:
                yield
                with anyio.CancelScope(deadline=until):
                    await listener.wait()

    async def page(self, viewer: Viewer, query: "Query") -> "Page":
        """A page of the bots the viewer may see."""
        return await _page(viewer, query)


def has_started(generation: int) -> Callable[[Bot], bool]:
    """The wish was taken up and the process listens or failed."""
    ends = (BotStatus.ACTIVE, BotStatus.ERROR, BotStatus.BACKOFF)

    def is_settled(bot: Bot) -> bool:
        # Somebody else wished it down meanwhile: it may never be ready.
        is_overtaken = bot.desired is not DesiredState.RUNNING
        return is_overtaken or (bot.seen_generation >= generation and bot.status in ends)

    return is_settled


def has_stopped(generation: int) -> Callable[[Bot], bool]:
    return lambda bot: bot.generation > generation or bot.status is BotStatus.INACTIVE


class OrderField(StrEnum):
    """What bots can be ordered by; the value is the column."""

    CREATED_AT = "b.created_at"
    LAST_SEEN_AT = "coalesce(p.last_seen_at, 'epoch'::timestamptz)"
    NAME = "b.name"
    STATUS = "p.status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which bots, in which order, and which stretch of the list. Of `first` and `last` one is given."""

    status: tuple[BotStatus, ...] | None = None
    owners: tuple[UUID, ...] | None = None
    tags: tuple[str, ...] | None = None
    search: str | None = None
    order: OrderField = OrderField.CREATED_AT
    is_descending: bool = False
    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Bots with their cursors, and whether the list goes on at either end."""

    bots: list[tuple[str, Bot]]
    has_next: bool
    has_previous: bool
    query: Query
    viewer: Viewer


class _Where:
    """Conditions that hold at once, with their values numbered as they come."""

    def __init__(self, viewer: Viewer) -> None:
        self.values: list[Any] = [viewer.sees_all, viewer.user_id]
        self.texts = [_VISIBLE]

    def add(self, text: str, *values: Any) -> None:
        numbers = [f"${len(self.values) + n}" for n in range(1, len(values) + 1)]
        self.texts.append(text.format(*numbers))
        self.values += values

    def __str__(self) -> str:
        return " AND ".join(f"({text})" for text in self.texts)


def _filtered(viewer: Viewer, query: Query) -> _Where:
    where = _Where(viewer)
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


async def _page(viewer: Viewer, query: Query) -> Page:
    where = _filtered(viewer, query)
    key = query.order.value
    is_backward = query.last is not None
    size = query.last if query.last is not None else query.first or 0
    for cursor, follows in ((query.after, True), (query.before, False)):
        if cursor is not None:
            value, identity = _open_cursor(query.order, cursor)
            sign = ">" if follows != query.is_descending else "<"
            where.add(f"({key}, b.id) {sign} ({{}}, {{}})", value, identity)
    way = "DESC" if query.is_descending != is_backward else "ASC"
    sql = _BOT.replace("SELECT", f"SELECT {key} AS sort_key,", 1)
    rows = await DB.fetch(f"{sql} WHERE {where} ORDER BY {key} {way}, b.id {way} LIMIT {size + 1}", *where.values)
    has_more = len(rows) > size
    rows = rows[:size]
    if is_backward:
        rows.reverse()
    items = [(_cursor(row.pop("sort_key"), row["id"]), _bot(row)) for row in rows]
    has_next = query.before is not None if is_backward else has_more
    has_previous = has_more if is_backward else query.after is not None
    return Page(items, has_next, has_previous, query, viewer)


async def count(viewer: Viewer, query: Query) -> int:
    """All bots the query means, also those on other pages."""
    where = _filtered(viewer, query)
    row = await DB.fetch_one(
        f"SELECT count(*) AS n FROM bot b JOIN bot_process p ON p.bot = b.id WHERE {where}", *where.values
    )
    return 0 if row is None else row["n"]


def _cursor(value: Any, identity: UUID) -> str:
    text = value.isoformat() if isinstance(value, datetime) else value
    return base64.urlsafe_b64encode(json.dumps([text, identity.hex]).encode()).rstrip(b"=").decode()


def _open_cursor(order: OrderField, cursor: str) -> tuple[Any, UUID]:
    try:
        value, identity = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        is_time = order in (OrderField.CREATED_AT, OrderField.LAST_SEEN_AT)
        place = datetime.fromisoformat(value).astimezone(UTC) if is_time else words.sought(value, "after")
        return place, UUID(identity)
    except (binascii.Error, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput("the cursor does not belong to this list and order") from error
