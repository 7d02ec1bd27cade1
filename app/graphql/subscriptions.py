"""Everything that can be listened to: each joins its rooms, yields the present, then re-reads at each event."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any
from uuid import UUID

import strawberry

from app.domain import rooms as names
from app.domain.errors import BadInput, Missing
from app.domain.events import BotEventKind
from app.domain.states import TokenScope
from app.domain.viewer import Viewer
from app.graphql.context import Context, Info
from app.graphql.permissions import Rule, subscription
from app.graphql.types import node
from app.graphql.types.room import BotStatusEvent, RoomMessage, bot_data
from app.pubsub.hub import HubClosed
from app.services import accounts, notifications, rooms
from app.services.bots import Bot, Bots, Query

#: Rooms one subscription may join.
MAX_ROOMS = 100

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
        viewer, service = info.context.caller, info.context.services.bots
        joined = await _rooms_of(viewer, service, bot_ids)
        async with aclosing(_follow(info.context, joined, after)) as items:
            async for item in items:
                if isinstance(item, rooms.Said):
                    row = await _now(viewer, service, UUID(item.event.payload["botId"]))
                    yield BotStatusEvent.from_event(item, row, viewer)
                    continue
                kinds = ((BotEventKind.CURRENT, item.current), (BotEventKind.RESYNC, item.resynced))
                present = [(kind, row) for kind, named in kinds for row in await _bots_in(viewer, service, named)]
                for number, (kind, row) in enumerate(present, 1):
                    cursor = item.cursor if number == len(present) else item.before
                    yield BotStatusEvent.present(cursor, kind, row, viewer, item.dropped)

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
        viewer, service = info.context.caller, info.context.services.bots
        await _check_names(viewer, service, names)
        async with aclosing(_follow(info.context, list(dict.fromkeys(names)), after)) as items:
            async for item in items:
                if isinstance(item, rooms.Said):
                    yield RoomMessage.from_event(item)
                    continue
                kinds = (("room:current", item.current), ("room:resync", item.resynced))
                present = [(event, name) for event, named in kinds for name in named]
                for number, (event, name) in enumerate(present, 1):
                    cursor = item.cursor if number == len(present) else item.before
                    yield RoomMessage.present(cursor, name, event, await _present(viewer, service, name))


async def _now(viewer: Viewer, service: Bots, bot_id: UUID) -> Bot | None:
    return await rooms.patiently(lambda: service.get(viewer, bot_id))


async def _follow(
    context: Context, joined: list[str], after: str | None
) -> AsyncGenerator[rooms.Present | rooms.Said, None]:
    """The rooms' items, for as long as the token works; ends in silence when the server goes down."""
    try:
        async with aclosing(rooms.follow(context.services.hub, joined, after)) as items:
            async for item in items:
                yield item
    except HubClosed:
        return


async def _rooms_of(viewer: Viewer, service: Bots, bot_ids: list[strawberry.ID] | None) -> list[str]:
    """The rooms to join: the named bots' own, or the one in which the viewer's whole fleet is heard."""
    if bot_ids is None:
        return [names.FLEET_ALL if viewer.sees_all else names.fleet_user(viewer.user_id)]
    if len(bot_ids) > MAX_ROOMS:
        raise BadInput(f"`botIds` names {len(bot_ids)} bots; at most {MAX_ROOMS} are allowed")
    parsed = [node.parse(identity) for identity in bot_ids]
    joined = [names.bot_status(item[1]) for item in parsed if item and item[0] == "Bot"]
    if not joined or len(joined) < len(parsed) or await _closed(viewer, service, joined):
        raise Missing("there is no such bot")
    return list(dict.fromkeys(joined))


async def _bots_in(viewer: Viewer, service: Bots, joined: tuple[str, ...]) -> list[Bot]:
    """The bots heard in these rooms, as they are now."""
    parsed = [room for name in joined if (room := names.parse(name))]
    ids = [room.subject for room in parsed if room.kind == "bot" and room.subject]
    found = list((await service.by_ids(viewer, ids)).values()) if ids else []
    if len(found) < len(ids):
        raise Missing("there is no such bot")  # It is deleted: there is a past to go on with, and no present.
    if len(ids) == len(parsed):
        return found
    after: str | None = None
    while True:
        page = await service.page(viewer, Query(first=MAX_ROOMS, after=after))
        found += [row for _, row in page.bots]
        if not page.has_next:
            return found
        after = page.bots[-1][0]


async def _check_names(viewer: Viewer, service: Bots, wanted: list[str]) -> None:
    """Each room must be one the viewer may listen in; a foreign one looks exactly like a missing one."""
    if not 1 <= len(wanted) <= MAX_ROOMS:
        raise BadInput(f"`names` must hold 1 to {MAX_ROOMS} names")
    for name in await _closed(viewer, service, wanted):
        raise Missing(f"there is no room {name[: names.MAX_NAME]!r}")


async def _closed(viewer: Viewer, service: Bots, wanted: list[str]) -> list[str]:
    """Those of the rooms that the viewer may not listen in."""
    parsed = {name: names.parse(name) for name in wanted}
    subjects = {
        kind: [room.subject for room in parsed.values() if room and room.kind == kind and room.subject]
        for kind in ("bot", "fleet:user")
    }
    there = {*await service.by_ids(viewer, subjects["bot"]), *await accounts.users(subjects["fleet:user"])}
    heads = await rooms.heads(name for name, room in parsed.items() if room)
    return [
        name
        for name, room in parsed.items()
        if room is None or not _may_listen(viewer, room, room.subject in there, heads.get(name))
    ]


def _may_listen(viewer: Viewer, room: names.RoomName, is_visible: bool, head: rooms.Head | None) -> bool:
    match room.kind:
        case "fleet:all":
            return viewer.sees_all and viewer.may(TokenScope.FLEET_READ)
        case "fleet:user":
            is_open = room.subject == viewer.user_id or (viewer.sees_all and is_visible)
            return is_open and viewer.may(TokenScope.FLEET_READ)
        case "bot":
            # A deleted bot's room can be heard until it is forgotten: its owner stands on the room.
            was_own = head is not None and head.owner is not None and (viewer.sees_all or head.owner == viewer.user_id)
            return viewer.may(TokenScope.FLEET_READ) and (is_visible or was_own)
        case _:
            return room.subject == viewer.user_id


async def _present(viewer: Viewer, service: Bots, name: str) -> dict[str, Any]:
    """What a room would say if it were asked how things stand."""
    room = names.parse(name)
    assert room is not None  # `_check_names` saw to it.
    if room.kind == "bot" and room.subject:
        row = await service.get(viewer, room.subject)
        return bot_data(row) if row else {"botId": str(room.subject), "deleted": True}
    if room.kind == "notifications:user" and room.subject:
        return {"unreadCount": await notifications.unread(room.subject)}
    return {"bots": [bot_data(row) for row in await _bots_in(viewer, service, (name,))]}
