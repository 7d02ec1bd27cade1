"""Everything that can be listened to: each joins its rooms, yields the present, then re-reads at each event."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

import anyio
import strawberry

from app.domain import rooms as names
from app.domain.errors import BadInput, Missing
from app.domain.events import BotEventKind
from app.domain.states import KeyRotationState, TokenScope
from app.domain.viewer import Viewer
from app.graphql import logins
from app.graphql.context import Context, Info
from app.graphql.permissions import Rule, subscription
from app.graphql.types import node
from app.graphql.types.key import KeyRotation
from app.graphql.types.login import ChannelLogin
from app.graphql.types.room import BotStatusEvent, RoomMessage, bot_data
from app.pubsub.hub import HubClosed
from app.services import accounts, notifications, rooms, roster, rotation
from app.services.pages import Stretch
from app.services.roster import Bot

#: Rooms one subscription may join.
MAX_ROOMS = 100
#: Seconds between two looks at a listener's token while events flow.
LOOK_INTERVAL = 1.0

_AFTER = strawberry.argument(description="Cursor of the last event seen; what came since is sent first.")


@strawberry.type(
    description="Everything that can be listened to. A listener that falls behind is told so and may go on "
    "from a cursor."
)
class Subscription:
    @subscription(
        Rule.VISIBLE,
        TokenScope.FLEET_READ,
        "What happens to processes: rooms `bot:<id>:status`. All bots the caller may see unless named. "
        "Begins with one CURRENT event a bot, or, with `after`, with what was missed.",
    )
    async def bot_status(
        self,
        info: Info,
        bot_ids: Annotated[
            list[strawberry.ID] | None,
            strawberry.argument(description="Which bots; all the caller may see when absent."),
        ] = None,
        after: Annotated[str | None, _AFTER] = None,
    ) -> AsyncGenerator[BotStatusEvent, None]:
        joined = await _rooms_of(info.context.caller, bot_ids)
        async with aclosing(_follow(info.context, joined, after, _no_bot)) as items:
            async for item in items:
                viewer = info.context.caller
                if isinstance(item, rooms.Said):
                    row = await _now(viewer, UUID(item.event.payload["botId"]))
                    yield BotStatusEvent.from_event(item, row, viewer)
                    continue
                kinds = ((BotEventKind.CURRENT, item.current), (BotEventKind.RESYNC, item.resynced))
                present = [(kind, row) for kind, named in kinds for row in await _bots_in(viewer, named, kind)]
                for number, (kind, row) in enumerate(present, 1):
                    cursor = item.cursor if number == len(present) else item.before
                    yield BotStatusEvent.present(cursor, kind, row, viewer, item.dropped)

    @subscription(
        Rule.OWNED,
        TokenScope.CREDENTIALS_WRITE,
        "Links a channel that is linked by a code (WhatsApp) to an account: begins when it is listened to, gives each "
        "new code, and ends with LINKED or FAILED. Who stops listening gets no further code.",
    )
    async def channel_login(
        self, info: Info, channel_id: Annotated[strawberry.ID, strawberry.argument(description="Which channel.")]
    ) -> AsyncGenerator[ChannelLogin, None]:
        async with aclosing(logins.follow(info.context, node.require(channel_id, "Channel", "channelId"))) as steps:
            async for step in steps:
                yield step

    @subscription(Rule.VISIBLE, TokenScope.ADMIN, "A change of keys as it goes on; ends with it.")
    async def key_rotation(
        self, info: Info, id: Annotated[strawberry.ID, strawberry.argument(description="Which change of keys.")]
    ) -> AsyncGenerator[KeyRotation, None]:
        parsed = node.parse(id)
        if parsed is None or parsed[0] != "KeyRotation" or await rotation.get(parsed[1]) is None:
            raise _no_rotation()
        joined = [names.key_rotation(parsed[1])]
        async with aclosing(_follow(info.context, joined, None, _no_rotation)) as items:
            async for _ in items:
                row = await rooms.patiently(lambda: rotation.get(parsed[1]))
                if row is None:
                    raise _no_rotation()
                yield KeyRotation.from_row(row)
                if row.state is not KeyRotationState.RUNNING:
                    return

    @subscription(
        Rule.BY_ROOM,
        None,
        "Any rooms by name, as the first ClawNet sent them: `bot:<id>:status`, `notifications:user:<id>` "
        "and the others in `Bot.rooms`.",
    )
    async def room(
        self,
        info: Info,
        names: Annotated[list[str], strawberry.argument(description="Names of rooms, at most 100.")],
        after: Annotated[str | None, _AFTER] = None,
    ) -> AsyncGenerator[RoomMessage, None]:
        await _check_names(info.context.caller, names)
        async with aclosing(_follow(info.context, list(dict.fromkeys(names)), after, _no_room)) as items:
            async for item in items:
                if isinstance(item, rooms.Said):
                    yield RoomMessage.from_event(item)
                    continue
                kinds = (("room:current", item.current), ("room:resync", item.resynced))
                present = [(event, name) for event, named in kinds for name in named]
                for number, (event, name) in enumerate(present, 1):
                    cursor = item.cursor if number == len(present) else item.before
                    yield RoomMessage.present(cursor, name, event, await _present(info.context.caller, name))


def _no_rotation(_: str = "") -> Missing:
    return Missing("there is no such change of keys")


def _no_bot(_: str) -> Missing:
    return Missing("there is no such bot")


def _no_room(name: str) -> Missing:
    return Missing(f"there is no room {name[: names.MAX_NAME]!r}")


async def _now(viewer: Viewer, bot_id: UUID) -> Bot | None:
    return await rooms.patiently(lambda: roster.get(viewer, bot_id))


async def _follow(
    context: Context, joined: list[str], after: str | None, missing: Callable[[str], Missing]
) -> AsyncGenerator[rooms.Present | rooms.Said, None]:
    """The rooms' items, for as long as who listens may; ends in silence when the server goes down.

    Raises:
        Missing: A room is somebody else's by now; it answers as one that is not there does.
        Unauthenticated: The token does not count any more.
    """
    next_look = anyio.current_time() + LOOK_INTERVAL
    try:
        async with aclosing(rooms.follow(context.services.hub, joined, after)) as items:
            async for item in items:
                if anyio.current_time() >= next_look:
                    await rooms.patiently(context.signed_in)
                    next_look = anyio.current_time() + LOOK_INTERVAL
                for name, owner in _owners(item).items():
                    if not _may_listen(context.caller, names.parse(name), owner):
                        raise missing(name)
                yield item
    except HubClosed:
        return


def _owners(item: rooms.Present | rooms.Said) -> dict[str, UUID | None]:
    """Whose the rooms are that the item is about, as of when it was read."""
    return {item.event.room: item.owner} if isinstance(item, rooms.Said) else item.owners


async def _rooms_of(viewer: Viewer, bot_ids: list[strawberry.ID] | None) -> list[str]:
    """The rooms to join: the named bots' own, or the one in which the viewer's whole fleet is heard."""
    if bot_ids is None:
        return [names.FLEET_ALL if viewer.sees_all else names.fleet_user(viewer.user_id)]
    if len(bot_ids) > MAX_ROOMS:
        raise BadInput(f"`botIds` names {len(bot_ids)} bots; at most {MAX_ROOMS} are allowed")
    parsed = [node.parse(identity) for identity in bot_ids]
    joined = [names.bot_status(item[1]) for item in parsed if item and item[0] == "Bot"]
    if not joined or len(joined) < len(parsed) or await _closed(viewer, joined):
        raise Missing("there is no such bot")
    return list(dict.fromkeys(joined))


async def _bots_in(viewer: Viewer, joined: tuple[str, ...], kind: BotEventKind = BotEventKind.CURRENT) -> list[Bot]:
    """The bots heard in these rooms, as they are now."""
    parsed = [room for name in joined if (room := names.parse(name))]
    ids = [room.subject for room in parsed if room.kind == "bot" and room.subject]
    found = list((await roster.by_ids(viewer, ids)).values()) if ids else []
    if len(found) < len(ids) and kind is BotEventKind.CURRENT:
        raise Missing("there is no such bot")  # It is deleted: there is a past to go on with, and no present.
    for room in parsed:
        if room.kind != "bot":
            found += await _fleet(viewer, room.subject)
    return found


async def _fleet(viewer: Viewer, owner: UUID | None) -> list[Bot]:
    """Every bot the viewer may see, or of them one owner's."""
    found: list[Bot] = []
    after: str | None = None
    while True:
        stretch = Stretch(first=MAX_ROOMS, after=after)
        page = await roster.page(viewer, roster.Query(owners=owner and (owner,), stretch=stretch))
        found += [row for _, row in page.items]
        if not page.has_next:
            return found
        after = page.items[-1][0]


async def _check_names(viewer: Viewer, wanted: list[str]) -> None:
    """Each room must be one the viewer may listen in; a foreign one looks exactly like a missing one."""
    if not 1 <= len(wanted) <= MAX_ROOMS:
        raise BadInput(f"`names` must hold 1 to {MAX_ROOMS} names")
    for name in await _closed(viewer, wanted):
        raise _no_room(name)


async def _closed(viewer: Viewer, wanted: list[str]) -> list[str]:
    """Those of the rooms that the viewer may not listen in."""
    parsed = {name: names.parse(name) for name in wanted}
    people = await accounts.users(
        [room.subject for room in parsed.values() if room and room.kind == "fleet:user" and room.subject]
    )
    heads = await rooms.heads(name for name, room in parsed.items() if room)

    def is_there(name: str, room: names.RoomName | None) -> bool:
        """A bot's room is made with the bot; a person's and everybody's are made by who listens first."""
        if room is None or room.kind in ("bot", "keys:rotation"):
            return name in heads
        return room.kind != "fleet:user" or room.subject in people

    return [
        name
        for name, room in parsed.items()
        if not is_there(name, room) or not _may_listen(viewer, room, heads[name].owner if name in heads else None)
    ]


def _may_listen(viewer: Viewer, room: names.RoomName | None, owner: UUID | None) -> bool:
    """Whether the viewer may hear what is said in the room.

    Args:
        owner: Whose the room is. A bot's room is its owner's, also after the bot is deleted, until it is forgotten.
    """
    if room is None:
        return False
    match room.kind:
        case "fleet:all":
            return viewer.sees_all and viewer.may(TokenScope.FLEET_READ)
        case "keys:rotation":
            return viewer.may(TokenScope.ADMIN)
        case "bot" | "fleet:user":
            whose = owner if room.kind == "bot" else room.subject
            return (viewer.sees_all or whose == viewer.user_id) and viewer.may(TokenScope.FLEET_READ)
        case _:
            return room.subject == viewer.user_id and viewer.may(TokenScope.SOCIAL_READ)


async def _present(viewer: Viewer, name: str) -> dict[str, Any]:
    """What a room would say if it were asked how things stand."""
    room = names.parse(name)
    assert room is not None  # `_check_names` saw to it.
    if room.kind == "bot" and room.subject:
        row = await roster.get(viewer, room.subject)
        return bot_data(row) if row else {"botId": str(room.subject), "deleted": True}
    if room.kind == "keys:rotation" and room.subject:
        row = await rotation.get(room.subject)
        return rotation.told(row) if row else {}
    if room.kind == "notifications:user" and room.subject:
        return {"unreadCount": await notifications.unread(room.subject)}
    return {"bots": [bot_data(row) for row in await _bots_in(viewer, (name,))]}
