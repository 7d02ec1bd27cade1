"""A bot is deleted: all of it goes, whatever happens meanwhile, and nothing else does."""

import asyncio
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from app.db.engine import DB
from app.services import rooms
from tests import dying, fake_openclaw
from tests.graphql.people import code, global_id, house
from tests.graphql.test_channels import CREATE, SET, UPDATE, channel, token
from tests.harness import PATIENCE, Api, ServerProcess, environ, running_server, serve
from tests.journeys import documents as docs
from tests.journeys import story

BIND = """mutation($input: BindingCreateInput!) {
  bindingCreate(input: $input) { binding { id } userErrors { code message field } } }"""
DELETE = """mutation($input: BotDeleteInput!) { botDelete(input: $input) {
  deletedBotId deletedChannelCount deletedBindingCount userErrors { code message field } } }"""
#: What goes on telling that there was a bot: the trail, its room with its last word, and the fleets'.
REMEMBERING = {"audit_entry", "room", "room_event"}


async def furnished(api: Api, **more: Any) -> dict[str, Any]:
    """A bot with something in every place that belongs to a bot."""
    bot = await story.make_bot(api, **more)
    made = await channel(api, bot, credentials={"botToken": token(1)})  # type: ignore[arg-type]
    await channel(api, bot, accountId="off", enabled=False)  # type: ignore[arg-type]
    for peer in ("1", "2", "3"):
        given = {"botId": bot["id"], "channelId": made["id"], "peerKind": "direct", "peerId": peer}
        assert (await api.run(BIND, input=given))["userErrors"] == []
    return bot


async def rows_of_bots() -> dict[str, int]:
    """Rows of every table that belongs to bots or to what hangs on bots, as the database itself tells which do."""
    found: dict[str, int] = {}
    below = await DB.fetch(
        "WITH RECURSIVE below AS (SELECT 'bot'::regclass::oid AS part UNION SELECT c.conrelid FROM pg_constraint c "
        "JOIN below b ON c.confrelid = b.part WHERE c.contype = 'f' AND c.confdeltype = 'c') "
        "SELECT part::regclass::text AS name FROM below"
    )
    named = await DB.fetch(
        "SELECT table_name AS name FROM information_schema.columns WHERE table_schema = 'public' "
        "AND column_name IN ('bot', 'bot_id', 'channel') AND is_nullable = 'NO'"
    )
    for table in {row["name"] for row in [*below, *named]}:
        row = await DB.fetch_one(f"SELECT count(*) AS n FROM {table}")
        assert row is not None
        found[table] = row["n"]
    return found


async def telling_of(bot: dict[str, Any]) -> set[str]:
    """Tables in which the bot's identity stands anywhere."""
    tables = await DB.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    found: set[str] = set()
    for table in (row["name"] for row in tables):
        query = f"SELECT 1 FROM {table} t WHERE t::text LIKE '%' || $1 || '%' LIMIT 1"
        if await DB.fetch_one(query, bot["databaseId"]):
            found.add(table)
    return found


async def said_in_its_room(bot: dict[str, Any]) -> list[str]:
    rows = await DB.fetch(
        "SELECT e.type, r.owner FROM room_event e JOIN room r ON r.id = e.room WHERE r.name LIKE $1 ORDER BY e.seq",
        f"bot:{bot['databaseId']}:%",
    )
    assert all(row["owner"] for row in rows)
    return [row["type"] for row in rows]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def until_empty(folder: Path) -> None:
    """What is removed once the rows are gone takes its time."""
    with anyio.fail_after(PATIENCE):
        while names_in(folder):
            await anyio.sleep(0.02)


async def test_what_goes_with_a_bot_is_counted_and_gone_in_one_transaction(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await furnished(api, start=True)
        assert {name for name, n in (await rows_of_bots()).items() if n == 0} <= {"binding", "bot_run"}
        gone = await api.run(DELETE, input={"botId": bot["id"]})
        assert gone == {
            "deletedBotId": bot["id"], "deletedChannelCount": 2, "deletedBindingCount": 3, "userErrors": [],
        }  # fmt: skip
        assert {name for name, n in (await rows_of_bots()).items() if n} == set()
        assert await telling_of(bot) <= REMEMBERING
        assert await said_in_its_room(bot) == ["DELETED"]
        again = await api.run(DELETE, input={"botId": bot["id"]})
        assert (code(again), again["deletedChannelCount"]) == ("NOT_FOUND", 0)


async def test_nothing_is_hung_on_a_bot_that_is_to_go(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", ignore_sigterm=True)
    async with house(database, tmp_path, wrapper, CLAWNET_STOP_GRACE="2") as api:
        bot = await furnished(api)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        row = await DB.fetch_one("SELECT id FROM channel WHERE enabled")
        assert row is not None
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            deletion = asyncio.create_task(api.run(DELETE, input={"botId": bot["id"]}))
            racing = [
                asyncio.create_task(api.run(CREATE, input=_channel(bot, f"racing{number}"))) for number in range(10)
            ]
            await heard.until(lambda e: e["kind"] == "STOPPING")
            # It goes down slowly, and is gone for everybody already.
            assert code(await api.run(CREATE, input=_channel(bot, "late"))) == "NOT_FOUND"
            assert code(await api.run(BIND, input={"botId": bot["id"]})) == "NOT_FOUND"
            for document in (UPDATE, SET):
                more = {} if document == UPDATE else {"credentials": {"botToken": token(2)}}
                refused = await api.run(document, input={"channelId": global_id("Channel", str(row["id"])), **more})
                assert code(refused) == "NOT_FOUND"
            gone = await deletion
        made = [code(each) for each in await asyncio.gather(*racing)]
        assert set(made) <= {None, "NOT_FOUND"}
        assert gone["deletedChannelCount"] == 2 + made.count(None)
        assert {name for name, n in (await rows_of_bots()).items() if n} == set()


def _channel(bot: dict[str, Any], account: str) -> dict[str, Any]:
    return {"botId": bot["id"], "provider": "telegram", "name": "x", "accountId": account, "enabled": False}


async def test_what_runs_in_the_name_of_a_bot_that_is_down_ends_with_it(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    async with house(database, tmp_path, wrapper) as api:
        bot = await story.make_bot(api)
        environment = {"CLAWNET_BOT_ID": bot["databaseId"], "CLAWNET_NONCE": "of-a-database-that-was-put-back"}
        stray = await anyio.open_process(["/bin/sleep", "600"], env=environment)
        try:
            assert story.left_of(bot) == [stray.pid]
            assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
            with anyio.fail_after(PATIENCE):
                await stray.wait()
        finally:
            await stray.aclose()
        assert story.left_of(bot) == []


async def test_a_home_that_cannot_be_moved_keeps_its_bot_until_it_can(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    base = tmp_path / "data/openclaw"
    async with running_server(environ(tmp_path, database, wrapper)) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot = await story.make_bot(api)
        assert (await api.run(docs.BOT_START, input={"botId": bot["id"]}))["userErrors"] == []
        outside = tmp_path / "outside"
        outside.mkdir()
        (base / ".trash").symlink_to(outside)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            deletion = asyncio.create_task(api.run(DELETE, input={"botId": bot["id"]}))
            await heard.until(lambda e: e["kind"] == "STOPPED")
            (base / ".trash").unlink()
            assert (await deletion)["userErrors"] == []
        assert list(outside.iterdir()) == []
        assert not (base / "bots/hana").exists()


async def test_a_room_of_a_bot_that_is_long_gone_is_forgotten(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot, other = await story.make_bot(api), await story.make_bot(api, "Mio")
        assert (await api.run(DELETE, input={"botId": bot["id"]}))["userErrors"] == []
        await rooms.prune()
        assert await said_in_its_room(bot) == ["DELETED"]
        await DB.fetch("UPDATE room_event SET at = now() - interval '8 days'")
        await rooms.prune()
        assert [row["name"] for row in await DB.fetch("SELECT name FROM room WHERE name LIKE 'bot:%'")] == other[
            "rooms"
        ]


@pytest.mark.parametrize("deadly", [dying.STEPS, dying.LATER], ids=["until the rows are gone", "afterwards"])
async def test_a_deletion_that_is_killed_at_every_step_is_finished(
    database: dict[str, Any], tmp_path: Path, deadly: dict[str, Any]
) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    wanted = environ(tmp_path, database, wrapper)
    base, outside = tmp_path / "data/openclaw", tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    first, *steps = deadly
    with await to_thread.run_sync(_serving, wanted, first) as server:
        api = Api(server.url, server.token)
        await story.make_provider(api, "http://127.0.0.1:9/v1")
        bot, other = await furnished(api), await story.make_bot(api, "Mio")
        for each in (bot, other):
            assert (await api.run(docs.BOT_START, input={"botId": each["id"]}))["userErrors"] == []
        for number in range(20):
            (base / "bots/hana/workspace" / str(number) / "deep").mkdir(parents=True)
        (base / "bots/hana/workspace/out").symlink_to(outside)
        (base / "a-stranger-s").mkdir()
        async with api.listen(docs.ROOM, names=[bot["rooms"][0]]) as heard:
            cursor = (await anext(heard))["cursor"]
        with anyio.fail_after(PATIENCE):
            with suppress(httpx.HTTPError):
                await api.run(DELETE, input={"botId": bot["id"]})
        await died(server, first)
    for step in steps:
        with await to_thread.run_sync(_serving, wanted, step) as server:
            await died(server, step)
    with await to_thread.run_sync(serve, wanted) as server:
        api = Api(server.url, api.token, http=api.http)
        for document, given in ((docs.ROOM, {"names": [bot["rooms"][0]]}), (docs.BOT_STATUS, {"ids": [bot["id"]]})):
            async with api.listen(document, after=cursor, **given) as heard:
                last = await heard.until(lambda e: e["event"] == "bot:deleted")
                assert bot["databaseId"] in str(last) or bot["id"] in str(last)
        await until_empty(base / ".trash")
        assert story.left_of(bot) == []
        assert names_in(base / "bots") == ["mio"]
        assert (base / "a-stranger-s").is_dir()
        assert (outside / "precious").read_text() == "precious"
        # Its name and its token are free again.
        heir = await story.make_bot(api)
        assert heir["agentId"] == "hana"
        await channel(api, heir, credentials={"botToken": token(1)})  # type: ignore[arg-type]
        assert (await api.run(DELETE, input={"botId": heir["id"]}))["userErrors"] == []
        # And nobody else noticed anything.
        assert (await api.run(docs.BOT_QUERY, by={"id": other["id"]}))["status"] == "ACTIVE"
        assert server.stop() == 0
    await api.http.aclose()
    assert len(fake_openclaw.starts(wrapper, "mio")) == 1
    await DB.open(database)
    try:
        assert await telling_of(bot) <= REMEMBERING
        assert await said_in_its_room(bot) == ["DELETED"]
        assert (await rows_of_bots())["bot"] == 1
        assert await DB.fetch("SELECT id FROM channel") == await DB.fetch("SELECT id FROM bot_secret WHERE false") == []
    finally:
        await DB.close()


def _serving(wanted: dict[str, str], step: str) -> ServerProcess:
    """A server that dies at this step, and may do so before it is ready."""
    return serve(wanted | {"DIES_AT": step}, module="tests.dying", may_die=True)


async def died(server: ServerProcess, step: str) -> None:
    with suppress(subprocess.TimeoutExpired):
        await to_thread.run_sync(server.process.wait, PATIENCE)
    assert server.process.returncode == -signal.SIGKILL, (step, server.lines)
