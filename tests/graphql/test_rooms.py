"""What listeners hear over a socket: the present first, then everything, and after a break what they missed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest

from app.db.engine import DB
from app.domain.states import UserRole
from app.services import tokens
from tests import fake_openclaw
from tests.graphql.people import Caller, first, heard, house, opened, person
from tests.harness import PATIENCE, REPO, Heard, dsn
from tests.journeys import documents as docs
from tests.journeys import story

UPDATE, DELETE = docs.BOT_UPDATE, docs.BOT_DELETE


async def change(api: Caller, bot: dict[str, Any], *texts: str) -> None:
    for text in texts:
        changed = await api.run(UPDATE, input={"botId": bot["id"], "description": text})
        assert changed["userErrors"] == []


async def hear(ear: Heard, count: int) -> list[dict[str, Any]]:
    return [await anext(ear) for _ in range(count)]


def same(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events without the bot as it was when they were read: it may have moved on since."""
    return [{key: value for key, value in event.items() if key != "bot"} for event in events]


@asynccontextmanager
async def all_ways(api: Caller, bot: dict[str, Any], after: list[str | None]) -> AsyncGenerator[list[Heard]]:
    """One subscription of each kind: one bot's status, the fleet's, one bot's room."""
    name = bot["rooms"][0]
    async with (
        api.listen(docs.BOT_STATUS, ids=[bot["id"]], after=after[0]) as one,
        api.listen(docs.BOT_STATUS, after=after[1]) as fleet,
        api.listen(docs.ROOM, names=[name], after=after[2]) as room,
    ):
        yield [one, fleet, room]


@pytest.mark.parametrize("role", [UserRole.MEMBER, UserRole.ADMIN])
async def test_the_present_comes_first_and_a_cursor_gives_exactly_what_was_missed(
    role: UserRole, database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api, role=role)
        bot = await story.make_bot(mia)
        async with all_ways(mia, bot, [None] * 3) as ears:
            present = [await anext(ear) for ear in ears]
            assert [each.get("kind", each["event"]) for each in present] == ["CURRENT", "CURRENT", "room:current"]
            assert present[2]["data"] == {
                "botId": bot["databaseId"], "agentId": "hana", "name": "Hana", "status": "inactive",
                "port": None, "pid": None, "error": None,
            }  # fmt: skip
            assert present[0]["botId"] == present[1]["botId"] == bot["id"]
            await change(mia, bot, "a", "b", "c")
            live = [[first, *await hear(ear, 3)] for first, ear in zip(present, ears, strict=True)]
        assert [event["kind"] for event in live[0][1:]] == ["UPDATED"] * 3
        assert [event["event"] for event in live[2][1:]] == ["bot:updated"] * 3
        assert len({event["cursor"] for event in live[0]}) == 4
        await change(mia, bot, "d")
        for seen in range(4):
            async with all_ways(mia, bot, [events[seen]["cursor"] for events in live]) as ears:
                for ear, events in zip(ears, live, strict=True):
                    missed = await hear(ear, 4 - seen)
                    assert same(missed[:-1]) == same(events[seen + 1 :])
                    assert (missed[-1].get("kind") or missed[-1]["event"]) in {"UPDATED", "bot:updated"}
                    assert all(event.get("droppedCount", 0) == 0 for event in missed)


async def test_a_fleet_s_listener_hears_all_of_it_and_nothing_of_others(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia, ines = await person(api), await person(api, "Ines", UserRole.OBSERVER)
        foreign, own = await story.make_bot(api, "Foreign"), await story.make_bot(mia, "Own")
        async with mia.listen(docs.BOT_STATUS) as hers, ines.listen(docs.BOT_STATUS) as everything:
            assert (await anext(hers))["botId"] == own["id"]
            assert {event["botId"] for event in await hear(everything, 2)} == {own["id"], foreign["id"]}
            await change(api, foreign, "a")
            new = await story.make_bot(mia, "New")
            await change(api, own, "b")  # an administrator's change is heard by the owner
            assert [(e["kind"], e["botId"]) for e in await hear(hers, 2)] == [
                ("CREATED", new["id"]), ("UPDATED", own["id"]),
            ]  # fmt: skip
            assert [(e["kind"], e["botId"]) for e in await hear(everything, 3)] == [
                ("UPDATED", foreign["id"]), ("CREATED", new["id"]), ("UPDATED", own["id"]),
            ]  # fmt: skip


async def test_an_administrator_in_somebody_s_fleet_hears_of_that_fleet_alone(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        foreign, own = await story.make_bot(api, "Foreign"), await story.make_bot(mia, "Own")
        (row,) = await DB.fetch("SELECT id FROM app_user WHERE name = 'Mia'")
        async with api.listen(docs.ROOM, names=[f"fleet:user:{row['id']}"]) as ear:
            present = await anext(ear)
            assert [bot["botId"] for bot in present["data"]["bots"]] == [own["databaseId"]]
            await change(api, foreign, "a")
            await change(api, own, "b")
            assert (await anext(ear))["data"]["botId"] == own["databaseId"]


async def test_who_breaks_off_in_the_middle_of_the_present_gets_all_of_it_again(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bots = [await story.make_bot(api, f"Bot {n}") for n in range(3)]
        ids, names = [bot["id"] for bot in bots], [bot["rooms"][0] for bot in bots]
        for document, given in (
            (docs.BOT_STATUS, {"ids": ids}),
            (docs.BOT_STATUS, {}),
            (docs.ROOM, {"names": names}),
        ):
            async with api.listen(document, **given) as ear:
                half, *_, last = await hear(ear, 3)
            await change(api, bots[0], "missed")
            async with api.listen(document, **given, after=half["cursor"]) as ear:
                again = await hear(ear, 3)
                assert {event.get("kind", event["event"]) for event in again} <= {"CURRENT", "room:current"}
            async with api.listen(document, **given, after=last["cursor"]) as ear:
                assert (await anext(ear))["event"] == "bot:updated"


async def test_a_cursor_that_the_room_cannot_serve_gets_resync_and_the_present(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        async with all_ways(api, bot, [None] * 3) as ears:
            old = [(await anext(ear))["cursor"] for ear in ears]
        await change(api, bot, "a", "b", "c")
        await DB.fetch("UPDATE room SET floor = seq - 1 WHERE seq > 0")
        await DB.fetch("DELETE FROM room_event e USING room r WHERE e.room = r.id AND e.seq <= r.floor")

        async def resyncs(cursors: list[Any]) -> list[Any]:
            """What comes first; then a change must be heard as ever, and the new cursors work."""
            async with all_ways(api, bot, cursors) as ears:
                found = [await anext(ear) for ear in ears]
                await change(api, bot, "news")
                assert [(await anext(ear))["event"] for ear in ears] == ["bot:updated"] * 3
            async with all_ways(api, bot, [event["cursor"] for event in found]) as ears:
                assert [(await anext(ear))["event"] for ear in ears] == ["bot:updated"] * 3
            assert found[0]["bot"] == found[1]["bot"] == {"status": "INACTIVE"}
            assert found[2]["data"]["agentId"] == "hana"
            return [event.get("kind", event["event"]) for event in found]

        assert await resyncs(old) == ["RESYNC", "RESYNC", "room:resync"]
        async with all_ways(api, bot, [None] * 3) as ears:
            fresh = [(await anext(ear))["cursor"] for ear in ears]
        await DB.fetch("UPDATE room SET epoch = epoch + 1")
        assert await resyncs(fresh) == ["RESYNC", "RESYNC", "room:resync"]
        # A cursor of other rooms is none of these rooms': they begin anew.
        assert await resyncs([fresh[1], fresh[0], fresh[1]]) == ["CURRENT", "CURRENT", "room:current"]


async def test_garbage_is_refused_as_a_cursor(database: dict[str, Any], tmp_path: Path) -> None:
    garbage = ["x", "=", "AAAA", "A" * 21, "é", "\0", "\ud800", "%%%", "null", "A" * 30_001, "' OR 1=1 --"]
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        for document, given in (
            (docs.BOT_STATUS, {"ids": [bot["id"]]}),
            (docs.BOT_STATUS, {}),
            (docs.ROOM, {"names": bot["rooms"]}),
        ):
            answers = await asyncio.gather(*[first(api, document, **given, after=cursor) for cursor in garbage])
            codes = [[error["extensions"]["code"] for error in answer.get("errors", [])] for answer in answers]
            assert codes == [["BAD_USER_INPUT"]] * len(garbage)


async def test_a_deleted_bot_s_room_can_be_read_by_its_owner_and_by_nobody_else(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia, sven = await person(api), await person(api, "Sven")
        bot = await story.make_bot(mia)
        name = bot["rooms"][0]
        async with all_ways(mia, bot, [None] * 3) as ears:
            cursors = [(await anext(ear))["cursor"] for ear in ears]
        assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
        async with all_ways(mia, bot, cursors) as ears:
            one, fleet, room = [await anext(ear) for ear in ears]
            assert (one["kind"], one["botId"], one["bot"]) == ("DELETED", bot["id"], None)
            assert same([fleet | {"cursor": ""}]) == same([one | {"cursor": ""}])
            assert (room["event"], room["data"]["botId"]) == ("bot:deleted", bot["databaseId"])
        async with mia.listen(docs.ROOM, names=[name]) as ear:
            assert (await anext(ear))["data"] == {"botId": bot["databaseId"], "deleted": True}
        for who in (api, await person(api, "Ines", UserRole.OBSERVER)):
            async with who.listen(docs.ROOM, names=[name], after=cursors[2]) as ear:
                assert (await anext(ear))["event"] == "bot:deleted"
        # It has a past and no present.
        gone = await first(mia, docs.BOT_STATUS, ids=[bot["id"]])
        assert gone["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        for document, given, after in (
            (docs.ROOM, {"names": [name]}, cursors[2]),
            (docs.BOT_STATUS, {"ids": [bot["id"]]}, cursors[0]),
        ):
            foreign = await first(sven, document, **given, after=after)
            assert foreign["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        async with sven.listen(docs.BOT_STATUS, after=cursors[1]) as ear:
            await story.make_bot(sven, "His own")
            assert (await anext(ear))["agentId"] == "his-own"


async def test_a_room_one_may_not_enter_looks_exactly_like_one_that_is_not_there(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        mia = await person(api)
        bot, user = await story.make_bot(api), (await api.run("{ viewer { id } }"))["id"]
        (row,) = await DB.fetch("SELECT id FROM app_user WHERE name = 'Administrator'")
        key, admin, missing = bot["databaseId"], str(row["id"]), str(uuid4())
        pairs = [
            (f"bot:{key}:status", f"bot:{missing}:status"),
            (f"notifications:user:{admin}", f"notifications:user:{missing}"),
            (f"fleet:user:{admin}", f"fleet:user:{missing}"),
            ("fleet:all", "fleet:any"),
        ]

        async def answer(*names: str) -> dict[str, Any]:
            found = await first(mia, docs.ROOM, names=list(names))
            (error,) = found["errors"]
            assert error["extensions"].pop("requestId")
            for name in names:
                error["message"] = error["message"].replace(name, "-")
            return found

        wanted = await answer("there is none")
        assert wanted == {
            "data": None,
            "errors": [{"message": "there is no room '-'", "extensions": {"code": "NOT_FOUND"}}],
        }
        for foreign, nothing in pairs:
            assert await answer(foreign) == await answer(nothing) == wanted
        hostile = [
            "", " ", f"bot:{key}", f"bot:{key}:status ", f"BOT:{key}:status", f"bot:{key.upper()}:status",
            f"bot:{key}:logs", f"bot:{bot['id']}:status", f"bot:{{{key}}}:status", "bot:*:status", "bot:%:status",
            "fleet:*", "%", user, f"bot:{key}:status\n", f"notifications:user:{admin}:status", "' OR 1=1 --",
        ]  # fmt: skip
        for name in [*hostile, "\0", "\ud800", "x" * 20_000]:
            assert (await first(mia, docs.ROOM, names=[name]))["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        # Nor can an administrator make rooms by asking for them.
        nobody = await first(api, docs.ROOM, names=[f"fleet:user:{missing}"])
        assert nobody["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        async with api.listen(docs.ROOM, names=[f"fleet:user:{admin}", "fleet:all"]) as ear:
            assert len(await hear(ear, 2)) == 2
        # One that is closed closes the door to all.
        own = await story.make_bot(mia, "Own")
        both = await first(mia, docs.ROOM, names=[*own["rooms"], f"bot:{key}:status"])
        assert both["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        for names in ([], own["rooms"] * 101):
            assert (await first(mia, docs.ROOM, names=names))["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        many = await first(mia, docs.BOT_STATUS, ids=[own["id"]] * 101)
        assert many["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
        assert (await first(mia, docs.BOT_STATUS, ids=[]))["errors"][0]["extensions"]["code"] == "NOT_FOUND"
        # The same one several times is one.
        async with mia.listen(docs.ROOM, names=own["rooms"] * 3) as ear:
            assert (await anext(ear))["event"] == "room:current"
            await change(mia, own, "a", "b")
            assert [event["event"] for event in await hear(ear, 2)] == ["bot:updated"] * 2
        assert await DB.fetch("SELECT name FROM room WHERE name LIKE $1", f"%{missing}%") == []


async def test_a_person_s_own_room_hears_the_bot_s_error(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        mia = await person(api)
        bot = await story.make_bot(mia)
        (row,) = await DB.fetch("SELECT id FROM app_user WHERE name = 'Mia'")
        room = f"notifications:user:{row['id']}"
        async with mia.listen(docs.ROOM, names=[room]) as ear, api.listen(docs.BOT_STATUS) as fleet:
            assert (await anext(ear))["data"] == {"unreadCount": 0}
            started = await api.run(docs.BOT_START, input={"botId": bot["id"]})
            os.kill(started["bot"]["gateway"]["pid"], signal.SIGKILL)
            news = await anext(ear)
            assert (news["type"], news["event"], news["room"]) == ("notification", "notification:created", room)
            assert news["data"]["botId"] == bot["databaseId"]
            assert news["data"]["kind"] == "BOT_ERROR"
            assert "Hana" in news["data"]["title"]
            assert "SIGKILL" in news["data"]["body"]
            await fleet.until(lambda e: e["kind"] == "STARTED" and e["pid"] != started["bot"]["gateway"]["pid"])
        async with mia.listen(docs.ROOM, names=[room]) as ear:
            assert (await anext(ear))["data"] == {"unreadCount": 1}
        # Not even an administrator reads other people's.
        assert (await first(api, docs.ROOM, names=[room]))["errors"][0]["extensions"]["code"] == "NOT_FOUND"


async def test_closed_sockets_leave_no_room_occupied(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        bots = [await story.make_bot(api, f"Bot {n}") for n in range(3)]
        assert api.running is not None
        hub = api.running.hub

        async def listen(way: int) -> None:
            async with opened(api) as socket:
                assert (await heard(socket))["type"] == "connection_ack"
                for number, bot in enumerate(bots):
                    body = {"query": docs.BOT_STATUS, "variables": {"ids": [bot["id"]]}}
                    await socket.send(json.dumps({"id": str(number), "type": "subscribe", "payload": body}))
                    assert (await heard(socket))["id"] == str(number)
                match way % 3:
                    case 0:  # in order
                        for number in range(3):
                            await socket.send(json.dumps({"id": str(number), "type": "complete"}))
                    case 1:  # cut off
                        socket.transport.abort()

        await asyncio.gather(*[listen(way) for way in range(9)])
        with anyio.fail_after(PATIENCE):
            while hub.occupied() != [tokens.ROOM]:  # where the server itself listens
                await asyncio.sleep(0.01)


ANOTHER_PROCESS = """
import asyncio, sys
from uuid import UUID
from app.db.engine import DB
from app.domain.events import BotEventKind
from app.services.recorder import Recorder

async def main():
    await DB.open({"dsn": sys.argv[1]})
    async with DB.transaction():
        await Recorder(lambda names: None).tell(UUID(sys.argv[2]), BotEventKind.UPDATED)
    await DB.close()

asyncio.run(main())
"""


async def test_what_another_process_says_on_the_same_database_is_heard(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        async with all_ways(api, bot, [None] * 3) as ears:
            for ear in ears:
                await anext(ear)
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", ANOTHER_PROCESS, dsn(database), bot["databaseId"]],
                cwd=REPO,
                timeout=PATIENCE,
            )
            assert done.returncode == 0
            with anyio.fail_after(5):
                assert [(await anext(ear))["event"] for ear in ears] == ["bot:updated"] * 3
