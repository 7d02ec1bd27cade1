"""Wishes about bots: what is written here is what people want, and the supervisor carries it out."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import anyio

from app.db.engine import DB
from app.domain import rooms as names
from app.domain.errors import Conflict, Invalid, LimitReached, NotFound, Refusal, Stale, Taken, Unavailable
from app.domain.events import BotEventKind
from app.domain.ids import new_id
from app.domain.ports import OverridesTried, RefusedOverrides, Wake
from app.domain.states import BotStatus, DesiredState, TokenScope, UserRole
from app.domain.viewer import Viewer
from app.pubsub.hub import Hub, HubClosed
from app.services import accounts, audit, bot_settings, channels, keys, models, roster, words
from app.services.bot_settings import Draft
from app.services.recorder import Recorder
from app.services.roster import Bot
from app.vault import Sealed

#: Longest a mutation waits for a process, in seconds; then the present state is the answer.
MAX_WAIT = 60.0
MAX_GRACE = 330.0
#: Wishes carried out side by side where one is made of many bots; connections are left for everybody else.
AT_ONCE = 5
#: Suffixes tried for an agentId made from a name.
MAX_SUFFIX = 10_000


@dataclass(frozen=True, slots=True)
class Deletion:
    """How much goes with a bot."""

    channels: int
    bindings: int


class Bots:
    """Writes wishes about bots, and waits for what comes of them."""

    def __init__(
        self,
        recorder: Recorder,
        hub: Hub,
        wake: Wake,
        refused: RefusedOverrides,
        tried: OverridesTried,
        node: str,
        max_bots: int,
    ) -> None:
        self._recorder = recorder
        self._hub = hub
        self._wake = wake
        self._refused = refused
        self._tried = tried
        self._node = node
        self._max_bots = max_bots

    async def create(self, viewer: Viewer, draft: Draft, token: Sealed, token_row: UUID, key_id: int) -> Bot:
        """Makes a bot and, where wanted, wishes it to run.

        Args:
            token: The gateway's token, sealed for the row `token_row` of the bot's secrets.
        """
        wished = words.agent_id(draft.agent_id) if draft.agent_id is not None else None
        desired = DesiredState.RUNNING if draft.start else DesiredState.STOPPED
        identity = new_id()
        if overrides := draft.settings.get("configOverrides"):
            # What is cheap to refuse is not asked about.
            await bot_settings.columns(viewer.user_id, draft.settings, self._refused)
            await self._refuse_more()
            await bot_settings.try_overrides(viewer.user_id, overrides, {}, None, self._refused, self._tried)
        async with DB.transaction():
            columns = await bot_settings.columns(viewer.user_id, draft.settings, self._refused)
            await self._claim_place()
            agent_id = await self._free_agent_id(wished, columns["name"])
            columns |= {"id": identity, "owner": viewer.user_id, "agent_id": agent_id, "desired": desired.value}
            marks = ", ".join(f"${n}" for n in range(1, len(columns) + 1))
            await DB.fetch(f"INSERT INTO bot ({', '.join(columns)}) VALUES ({marks})", *columns.values())
            await DB.fetch("INSERT INTO bot_process (bot, node_id) VALUES ($1, $2)", identity, self._node)
            await keys.keep_gateway_token(identity, token, token_row, key_id)
            await self._recorder.tell(identity, BotEventKind.CREATED)
            await audit.note("botCreate", audit.Subject("Bot", identity), agentId=agent_id, start=draft.start)
            DB.after_commit(lambda: self._wake(identity))
        return await roster.require(viewer, identity)

    async def _claim_place(self) -> None:
        """Counts under a lock, so that the quota is exact however many ask at once."""
        await DB.fetch("SELECT id FROM installation FOR UPDATE")
        await self._refuse_more()

    async def _refuse_more(self) -> None:
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

    async def update(self, viewer: Viewer, bot_id: UUID, changes: dict[str, Any], expected: int | None) -> Bot:
        """Changes settings; what is not among `changes` stays, and without any nothing happens.

        Args:
            changes: As `bot_settings.columns` takes them.
        """
        if "configOverrides" in changes:
            await self._try_overrides(viewer, bot_id, changes, expected)
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            _refuse_stale(bot, expected)
            if changes:
                await self._change(bot_id, bot, changes)
        return await roster.require(viewer, bot_id)

    async def _try_overrides(self, viewer: Viewer, bot_id: UUID, changes: dict[str, Any], expected: int | None) -> None:
        """Of a bot that the viewer may not change nothing is said here, and what is cheap to refuse is not asked."""
        row = await DB.fetch_one(
            "SELECT agent_id, owner, config_overrides, config_revision FROM bot "
            "WHERE id = $1 AND desired <> 'DELETED' AND ($2 OR owner = $3)",
            bot_id, viewer.writes_all, viewer.user_id,
        )  # fmt: skip
        if row is not None:
            _refuse_stale(row, expected)
            await bot_settings.columns(row["owner"], changes, self._refused)
            given, kept = changes["configOverrides"], row["config_overrides"]
            await bot_settings.try_overrides(viewer.user_id, given, kept, row["agent_id"], self._refused, self._tried)

    async def _change(self, bot_id: UUID, bot: dict[str, Any], changes: dict[str, Any]) -> None:
        columns = await bot_settings.columns(bot["owner"], changes, self._refused)
        columns["config_revision"] = bot["config_revision"] + bool(columns.keys() & bot_settings.CONFIGURED)
        texts = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
        await DB.fetch(f"UPDATE bot SET {texts}, updated_at = now() WHERE id = $1", bot_id, *columns.values())
        await self._recorder.tell(bot_id, BotEventKind.UPDATED)
        await audit.note("botUpdate", audit.Subject("Bot", bot_id), changed=sorted(changes))
        DB.after_commit(lambda: self._wake(bot_id))

    async def transfer(self, viewer: Viewer, bot_id: UUID, owner: UUID) -> Bot:
        """Gives the bot to somebody else; who hears of it from then on changes in the same moment."""
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            if bot["owner"] != owner:
                await _refuse_as_owner(owner, bot["model"])
                # Its provider's key is another one, so the process reads its configuration again.
                await DB.fetch(
                    "UPDATE bot SET owner = $2, config_revision = config_revision + 1, updated_at = now() "
                    "WHERE id = $1",
                    bot_id, owner,
                )  # fmt: skip
                # Its secrets are the old owner's, and the new one could have them sent elsewhere.
                given_up = await channels.give_up(bot_id)
                # So is what the process was told last, and why something of it was refused.
                await DB.fetch(
                    "UPDATE bot_process SET config_rendered = '{}', config_error = NULL WHERE bot = $1", bot_id
                )
                await self._recorder.transferred(bot_id, bot["owner"], owner)
                detail = {"from": str(bot["owner"]), "to": str(owner)}
                await audit.note("botTransfer", audit.Subject("Bot", bot_id), **detail, channelsGivenUp=given_up)
                await accounts.still(TokenScope.ADMIN)
                DB.after_commit(lambda: self._wake(bot_id))
        return await roster.require(viewer, bot_id)

    async def start(self, viewer: Viewer, bot_id: UUID) -> int:
        """Wishes the bot to run; the wish's generation. A bot that runs or starts already is left alone."""
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            process = await DB.fetch_one("SELECT status FROM bot_process WHERE bot = $1", bot_id)
            is_failed = process is not None and BotStatus(process["status"]) in (BotStatus.BACKOFF, BotStatus.ERROR)
            if bot["desired"] == DesiredState.RUNNING and not is_failed:
                return bot["generation"]
            return await self._wish("botStart", bot_id, "desired = 'RUNNING', stop_grace = NULL")

    async def stop(self, viewer: Viewer, bot_id: UUID, grace: float | None = None) -> int:
        """Wishes the bot down; the wish's generation. A bot that is down or stopping already is left alone."""
        if grace is not None and not 0 <= grace <= MAX_GRACE:
            raise Invalid(f"graceSeconds must lie between 0 and {MAX_GRACE:g}", "graceSeconds")
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            if bot["desired"] == DesiredState.STOPPED:
                return bot["generation"]
            return await self._wish("botStop", bot_id, "desired = 'STOPPED', stop_grace = $2", grace)

    async def restart(self, viewer: Viewer, bot_id: UUID) -> int:
        """Wishes for a new process, whatever the present one does."""
        wish = "desired = 'RUNNING', stop_grace = NULL, restart_generation = generation + 1"
        async with DB.transaction():
            await self._lock(viewer, bot_id)
            return await self._wish("botRestart", bot_id, wish)

    async def delete(self, viewer: Viewer, bot_id: UUID) -> Deletion:
        """Wishes the bot gone for good; its runner stops it first and then removes all that hangs on it.

        Nothing is hung on a bot that is to go, so what is counted here is what goes with it.
        """
        async with DB.transaction():
            bot = await self._lock(viewer, bot_id)
            row = await DB.fetch_one(
                "SELECT (SELECT count(*) FROM channel WHERE bot = $1) AS channels, "
                "(SELECT count(*) FROM binding WHERE bot = $1) AS bindings",
                bot_id,
            )
            assert row is not None  # Counts are always there.
            wish = "desired = 'DELETED', stop_grace = NULL"
            await self._wish("botDelete", bot_id, wish, agentId=bot["agent_id"], **row)
        return Deletion(**row)

    async def _wish(self, action: str, bot_id: UUID, wish: str, *values: Any, **detail: Any) -> int:
        row = await DB.fetch_one(
            f"UPDATE bot SET {wish}, generation = generation + 1 WHERE id = $1 RETURNING generation", bot_id, *values
        )
        if row is None:
            raise NotFound("there is no such bot", "botId")
        await audit.note(action, audit.Subject("Bot", bot_id), **detail)
        DB.after_commit(lambda: self._ring(bot_id))
        return row["generation"]

    def _ring(self, bot_id: UUID) -> None:
        """The runner has something to do, and who waits for an older wish may wait in vain."""
        self._wake(bot_id)
        self._hub.wake([names.bot_status(bot_id)])

    async def _lock(self, viewer: Viewer, bot_id: UUID) -> dict[str, Any]:
        """The bot's row, locked, if the viewer may change it; a foreign bot looks like a missing one."""
        row = await DB.fetch_one(
            "SELECT owner, agent_id, model, generation, desired, config_revision FROM bot "
            "WHERE id = $1 AND desired <> 'DELETED' AND ($2 OR owner = $3) FOR NO KEY UPDATE",
            bot_id, viewer.writes_all, viewer.user_id,
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such bot", "botId")
        return row

    async def settled(self, viewer: Viewer, bot_id: UUID, is_settled: Callable[[Bot], bool]) -> Bot | None:
        """Waits until the bot is as asked, at most `MAX_WAIT`; the bot as it is then, None once it is gone."""
        async with aclosing(self._changes(bot_id)) as changes:
            async for _ in changes:
                bot = await roster.get(viewer, bot_id)
                if bot is None or is_settled(bot):
                    return bot
        return await roster.get(viewer, bot_id)

    async def gone(self, bot_id: UUID) -> str | None:
        """Waits until the bot's row is gone, at most `MAX_WAIT`; why it is still there, None once it is not."""
        async with aclosing(self._changes(bot_id)) as changes:
            async for _ in changes:
                if await _why_there(bot_id) is None:
                    return None
        return await _why_there(bot_id)

    async def _changes(self, bot_id: UUID) -> AsyncGenerator[None, None]:
        """Now, and each time something happened to the bot or was wished of it, for at most `MAX_WAIT`."""
        until = anyio.current_time() + MAX_WAIT
        with self._hub.join([names.bot_status(bot_id)]) as listener, suppress(HubClosed):
            while anyio.current_time() < until:
                yield
                with anyio.CancelScope(deadline=until):
                    await listener.wait()


def _refuse_stale(bot: dict[str, Any], expected: int | None) -> None:
    if expected is not None and expected != bot["config_revision"]:
        raise Stale(f"the configuration has revision {bot['config_revision']} by now", "expectedRevision")


async def _why_there(bot_id: UUID) -> str | None:
    """Why a bot that is to go is still there; None once it is not."""
    row = await DB.fetch_one("SELECT status, error FROM bot_process WHERE bot = $1", bot_id)
    if row is None:
        return None
    if BotStatus(row["status"]).has_process:
        return "its process has not ended yet"
    # What a bot failed of is none of that.
    noted = row["error"] if row["status"] == BotStatus.INACTIVE else None
    return noted or "its machine has not come to it yet"


async def _refuse_as_owner(user_id: UUID, model: str) -> None:
    """Refuses who cannot own the bot; whoever can stays so until the caller's transaction ends."""
    row = await DB.fetch_one("SELECT role, disabled_at FROM app_user WHERE id = $1 FOR SHARE", user_id)
    if row is None:
        raise NotFound("there is no such user", "ownerId")
    if row["disabled_at"] is not None:
        raise Conflict("this user is disabled", "ownerId")
    if row["role"] == UserRole.OBSERVER:
        raise Conflict("an observer only reads, and owns no bots", "ownerId")
    try:
        await models.require(user_id, model)
    except Invalid as error:
        provider = model.partition("/")[0]
        raise Conflict(f"the new owner has no model provider {provider!r}, which the bot uses", "ownerId") from error


async def for_each(bot_ids: list[UUID], wish: Callable[[UUID], Awaitable[object]]) -> dict[UUID, Refusal]:
    """Makes a wish of many bots, each on its own, so that none hinders another; the refusals, by bot.

    Raises:
        Unavailable: The database answered for none of them.
    """
    refusals: dict[UUID, Refusal] = {}
    away: list[Unavailable] = []
    places = anyio.CapacityLimiter(AT_ONCE)

    async def one(bot_id: UUID) -> None:
        async with places:
            try:
                await wish(bot_id)
            except Refusal as refusal:
                refusals[bot_id] = refusal
            except Unavailable as error:
                away.append(error)
                refusals[bot_id] = Conflict("the bot is being changed by somebody else; try again", "botId")

    async with anyio.create_task_group() as tasks:
        for bot_id in bot_ids:
            tasks.start_soon(one, bot_id)
    if away and len(away) == len(bot_ids):
        raise away[0]
    return refusals


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
