"""A bot, its process and its configuration, as the API shows them."""

from datetime import UTC, datetime
from uuid import UUID

import strawberry
from strawberry.dataloader import DataLoader
from strawberry.scalars import JSON

from app.domain import rooms
from app.domain.errors import Missing
from app.domain.states import BotStatus, DesiredState, RestartMode, TokenScope
from app.domain.viewer import Viewer
from app.graphql.context import Context, Info, user_loader
from app.graphql.cost import Cost
from app.graphql.types import node, page
from app.graphql.types.actor import Actor
from app.graphql.types.binding import BindingConnection
from app.graphql.types.channel import ChannelConnection
from app.graphql.types.enums import BotAction, BotDesiredState
from app.graphql.types.page import After, Before, First, Last, PageInfo
from app.graphql.types.user import User
from app.services import roster


@strawberry.type(description="The process of a bot: `openclaw gateway run`.")
class Gateway:
    pid: int = strawberry.field(description="Number of the process on its machine.")
    port: int | None = strawberry.field(description="Port the process listens on; null until it does.")
    version: str | None = strawberry.field(description="Version the process reports; null until known.")
    started_at: datetime = strawberry.field(description="When the process was started.")
    ready_at: datetime | None = strawberry.field(description="When the process said it listens; null until it does.")
    uptime_seconds: float = strawberry.field(description="Seconds since the start.")
    restart_count: int = strawberry.field(description="Restarts since the bot was last started by hand.")

    @classmethod
    def from_row(cls, row: roster.Bot) -> "Gateway | None":
        if row.pid is None or row.started_at is None or not row.status.has_process:
            return None
        return cls(
            pid=row.pid,
            port=row.port if row.ready_at else None,
            version=row.openclaw_version,
            started_at=row.started_at,
            ready_at=row.ready_at,
            uptime_seconds=(datetime.now(UTC) - row.started_at).total_seconds(),
            restart_count=row.restart_count,
        )


@strawberry.type(description="What is done after a crash.")
class RestartPolicy:
    mode: RestartMode = strawberry.field(description="When to start again.")
    max_restarts: int = strawberry.field(description="Restarts within the window before the bot is left in ERROR.")
    window_seconds: int = strawberry.field(description="Length of the window in seconds.")
    backoff_seconds: float = strawberry.field(description="First pause in seconds; it doubles with each restart.")


@strawberry.type(description="The configuration file of a bot, as the process reads it.")
class BotConfig:
    revision: int = strawberry.field(description="Grows by one with each change.")
    rendered: JSON = strawberry.field(description="The file's content with every secret replaced by `***`.")
    overrides: JSON = strawberry.field(description="Settings laid over the generated ones.")
    synced_at: datetime | None = strawberry.field(description="When the file was last written; null if never.")
    restart_pending: bool = strawberry.field(description="The running process has not read this revision yet.")
    rolled_back: str | None = strawberry.field(
        description="The last change was refused by OpenClaw and taken back: what it said; null otherwise."
    )

    @classmethod
    def from_row(cls, row: roster.Bot) -> "BotConfig":
        # A revision that was taken back is waited for no longer.
        settled = row.applied_revision if row.config_error else row.good_revision
        return cls(
            revision=row.revision,
            rendered=JSON(row.rendered),
            overrides=JSON(row.overrides),
            synced_at=row.synced_at,
            restart_pending=row.status.has_process and settled < row.revision,
            rolled_back=row.config_error,
        )


@strawberry.type(description="One OpenClaw bot: its settings, its process and everything that hangs on it.")
class Bot(node.Node, Actor):
    database_id: str = strawberry.field(description="Key in the database, as it stands in room names.")
    name: str = strawberry.field(description="Name shown to people.")
    agent_id: str = strawberry.field(
        description="Short name of the agent: folder and process are named after it. Never changes."
    )
    description: str | None = strawberry.field(description="What the bot is for; null if nobody said.")
    model: str = strawberry.field(description="Model the bot speaks with, as `provider/model`.")
    system_prompt: str | None = strawberry.field(
        description="Instruction every conversation starts with; null if there is none."
    )
    status: BotStatus = strawberry.field(description="What the process is doing.")
    desired_state: BotDesiredState = strawberry.field(description="What the process should be doing.")
    error_message: str | None = strawberry.field(
        description="Why the status is ERROR or BACKOFF, and what to do; null otherwise."
    )
    gateway: Gateway | None = strawberry.field(description="The running process; null while none runs.")
    restart_policy: RestartPolicy = strawberry.field(description="What is done after a crash.")
    config: BotConfig = strawberry.field(description="The written configuration file.")
    tags: list[str] = strawberry.field(description="Labels for grouping and filtering.")
    rooms: list[str] = strawberry.field(description="Rooms this bot speaks in, ready for the `room` subscription.")
    viewer_can: list[BotAction] = strawberry.field(description="Mutations on this bot the caller may call.")
    created_at: datetime = strawberry.field(description="When the bot was made.")
    updated_at: datetime = strawberry.field(description="When the bot's settings last changed.")
    last_seen_at: datetime | None = strawberry.field(
        description="When the process last gave a sign of life; null if never."
    )
    row: strawberry.Private[roster.Bot]

    @strawberry.field(description="Whose bot it is.")
    async def owner(self, info: Info) -> User:
        loader = info.context.loader("users", user_loader)
        user = await loader.load(self.row.owner)
        assert user is not None  # A bot's owner cannot be deleted before the bot.
        return User.from_row(user, info.context.caller)

    @strawberry.field(
        description="Places the bot can be talked to.", directives=[Cost(weight=1, multipliers=["first", "last"])]
    )
    async def channels(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> ChannelConnection:
        stretch = page.stretch(first, after, last, before)
        return await ChannelConnection.read(info.context.caller, info.context.services, self.row.id, stretch)

    @strawberry.field(
        description="Rules that lead a peer on a channel to this bot.",
        directives=[Cost(weight=1, multipliers=["first", "last"])],
    )
    async def bindings(
        self, info: Info, first: First = None, after: After = None, last: Last = None, before: Before = None
    ) -> BindingConnection:
        stretch = page.stretch(first, after, last, before)
        return await BindingConnection.read(info.context.caller, self.row.id, stretch)

    @classmethod
    def from_row(cls, row: roster.Bot, viewer: Viewer) -> "Bot":
        return cls(
            id=node.global_id("Bot", row.id),
            database_id=str(row.id),
            name=row.name,
            agent_id=row.agent_id,
            description=row.description,
            model=row.model,
            system_prompt=row.system_prompt,
            status=row.status,
            desired_state=_desired(row.desired),
            error_message=row.error if row.status in (BotStatus.ERROR, BotStatus.BACKOFF) else None,
            gateway=Gateway.from_row(row),
            restart_policy=RestartPolicy(
                mode=row.restart_mode,
                max_restarts=row.restart_max,
                window_seconds=row.restart_window,
                backoff_seconds=row.restart_backoff,
            ),
            config=BotConfig.from_row(row),
            tags=row.tags,
            rooms=[rooms.bot_status(row.id)],
            viewer_can=_actions(row, viewer),
            created_at=row.created_at,
            updated_at=row.updated_at,
            last_seen_at=row.last_seen_at,
            row=row,
        )


def _desired(state: DesiredState) -> BotDesiredState:
    return BotDesiredState.RUNNING if state is DesiredState.RUNNING else BotDesiredState.STOPPED


def _actions(row: roster.Bot, viewer: Viewer) -> list[BotAction]:
    """What the viewer may do: writing secrets has a scope of its own."""
    if not viewer.owns(row.owner):
        return []
    secret = {BotAction.WRITE_CREDENTIALS}
    return [
        action
        for action in BotAction
        if viewer.may(TokenScope.CREDENTIALS_WRITE if action in secret else TokenScope.FLEET_WRITE)
    ]


async def bot_of(context: Context, bot_id: UUID, known: roster.Bot | None = None) -> Bot:
    """The bot that something hangs on, read together with others'.

    Args:
        known: As it was when that was written; it may have been deleted since, and the answer tells of the change.
    """
    if known is not None:
        return Bot.from_row(known, context.caller)
    found = await context.loader("bots", lambda: _bot_loader(context)).load(bot_id)
    if found is None:
        raise Missing("the bot was deleted")
    return found


def _bot_loader(context: Context) -> DataLoader[UUID, Bot | None]:
    async def load(ids: list[UUID]) -> list[Bot | None]:
        rows = await roster.by_ids(context.caller, ids)
        return [Bot.from_row(row, context.caller) if (row := rows.get(key)) else None for key in ids]

    return DataLoader(load_fn=load, cache=False)


@strawberry.type(description="One of the bots on a page.")
class BotEdge:
    cursor: str = strawberry.field(description="Place on the list; give it as `after` or `before`.")
    node: Bot = strawberry.field(description="The item.")


@strawberry.type(description="A page of bots.")
class BotConnection:
    edges: list[BotEdge] = strawberry.field(description="The bots with their cursors.")
    nodes: list[Bot] = strawberry.field(description="The bots alone.")
    page_info: PageInfo = strawberry.field(description="Where the page starts and ends.")
    viewer: strawberry.Private[Viewer]
    query: strawberry.Private[roster.Query]

    @strawberry.field(
        description="All bots, also those on other pages; counted only when asked for. Null where counting is too dear."
    )
    async def total_count(self) -> int | None:
        return await roster.count(self.viewer, self.query)

    @classmethod
    async def read(cls, viewer: Viewer, query: roster.Query) -> "BotConnection":
        page = await roster.page(viewer, query)
        edges = [BotEdge(cursor=cursor, node=Bot.from_row(row, viewer)) for cursor, row in page.items]
        return cls(
            edges=edges,
            nodes=[edge.node for edge in edges],
            page_info=PageInfo.of(page),
            viewer=viewer,
            query=query,
        )
