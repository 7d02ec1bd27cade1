"""Several servers on one database: who supervises, who takes over, and that no bot is ever there twice."""

import json
import os
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import asyncpg
import psutil
import pytest
from anyio import to_thread

from app.db.engine import DB
from app.services import nodes
from tests import fake_openclaw
from tests.harness import PATIENCE, Api, ServerProcess, check_invariants, environ, running_server, serve
from tests.journeys import documents as docs
from tests.journeys import story

#: Seconds of the leases here: long enough for a busy machine, short enough to wait for.
LEASE = 3.0
NO_MODEL = "http://127.0.0.1:9/v1"


@pytest.fixture
def openclaw(tmp_path: Path) -> Generator[Path]:
    """The fake, whose books all servers share, and nothing left of it afterwards."""
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    yield wrapper
    for pid in fake_openclaw.running(wrapper).values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert fake_openclaw.violations(wrapper) == []


class Server(Api):
    """A server process with its administrator's client."""

    process: ServerProcess
    folder: Path

    def said(self, event: str) -> list[dict[str, Any]]:
        """What it logged so far under this name."""
        lines = (self.folder / "server.log").read_text().splitlines()
        return [line for text in lines if text.startswith("{") and (line := json.loads(text))["event"] == event]

    async def readiness(self) -> dict[str, Any]:
        return (await self.http.get(f"{self.url}/readyz")).json()


@asynccontextmanager
async def served(folder: Path, wanted: dict[str, str], token: str | None = None) -> AsyncGenerator[Server]:
    process = await to_thread.run_sync(serve, wanted)
    with process:
        server = Server(process.url, process.token or token)
        server.process, server.folder = process, folder
        async with server.http:
            await until(lambda: _is_ready(server))
            yield server


async def _is_ready(server: Server) -> bool:
    return (await server.readiness())["ready"]


async def until(is_so: Callable[[], Awaitable[Any]], patience: float = PATIENCE) -> None:
    with anyio.fail_after(patience):
        while not await is_so():
            await anyio.sleep(0.05)


def in_folder(folder: Path, database: dict[str, Any], openclaw: Path, **more: str) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    return environ(folder, database, openclaw, **{"CLAWNET_LEASE": str(LEASE), **more})


@asynccontextmanager
async def opened(database: dict[str, Any]) -> AsyncGenerator[None]:
    """The test's own look at the database; what must hold after everything is looked at in the end."""
    await DB.open(database)
    try:
        yield
        await check_invariants()
    finally:
        await DB.close()


async def make_bots(api: Api, *names: str) -> list[dict[str, Any]]:
    await story.make_provider(api, NO_MODEL)
    return [await start(api, await story.make_bot(api, name)) for name in names]


async def start(api: Api, bot: dict[str, Any]) -> dict[str, Any]:
    answer = await api.run(docs.BOT_START, input={"botId": bot["id"]})
    assert answer["userErrors"] == []
    assert answer["bot"]["status"] == "ACTIVE", answer
    return answer["bot"]


async def now(api: Api, bots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [await api.run(docs.BOT_QUERY, by={"id": bot["id"]}) for bot in bots]


def pids(bots: list[dict[str, Any]]) -> list[int | None]:
    return [bot["gateway"] and bot["gateway"]["pid"] for bot in bots]


async def all_active(api: Api, bots: list[dict[str, Any]], others: list[int | None]) -> list[dict[str, Any]]:
    """The bots, once each is ACTIVE with another process than before."""
    found: list[dict[str, Any]] = []

    async def are_there() -> bool:
        found[:] = await now(api, bots)
        return all(bot["status"] == "ACTIVE" and bot["gateway"]["pid"] not in others for bot in found)

    await until(are_there)
    return found


async def rows() -> list[dict[str, Any]]:
    """What machines wrote of the bots, but for signs of life."""
    found = await DB.fetch("SELECT * FROM bot_process ORDER BY bot")
    return [{key: row[key] for key in row if key not in ("last_seen_at", "memory_bytes")} for row in found]


async def say(api: Api, bot: dict[str, Any]) -> str | None:
    """The code of the error that speaking with the bot ends in."""
    answer = await api.ask(docs.MESSAGE_SEND, input={"botId": bot["id"], "text": "Hello", "wait": False})
    return answer["errors"][0]["extensions"]["code"] if "errors" in answer else None


# One name.


async def test_a_standby_on_the_same_folder_adopts_every_bot_of_a_killed_server(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    wanted = in_folder(tmp_path / "a", database, openclaw, CLAWNET_LEASE="600")
    async with served(tmp_path / "a", wanted) as first, served(tmp_path / "a", wanted, first.token) as second:
        bots = await make_bots(second, "Hana", "Bruno", "Chike")
        assert "this folder" in (await second.readiness())["standby"]
        assert "standby" not in await first.readiness()
        # It can be spoken to from both: the process is on this machine.
        assert await say(second, bots[0]) is None
        async with second.listen(docs.BOT_STATUS, ids=[bot["id"] for bot in bots]) as heard:
            for _ in bots:
                await anext(heard)
            first.process.kill()
            killed_at = time.monotonic()
            adopted = [await heard.until(lambda event: event["kind"] == "ADOPTED") for _ in bots]
            took = time.monotonic() - killed_at
        assert sorted(event["pid"] for event in adopted) == sorted(pids(bots))
        # The lease does not matter where the lock tells who is there.
        assert took < 60
        assert "standby" not in await second.readiness()
        assert len(second.said("standby")) == 1
        assert pids(await now(second, bots)) == pids(bots)
        assert len(fake_openclaw.starts(openclaw)) == len(bots)
        async with opened(database):
            pass


async def test_a_server_with_another_folder_takes_over_after_the_lease_and_never_has_a_second_copy(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    one, two = (in_folder(tmp_path / name, database, openclaw) for name in "ab")
    async with served(tmp_path / "a", one) as first, served(tmp_path / "b", two, first.token) as second:
        bots = await make_bots(first, "Hana", "Bruno", "Chike")
        assert "another folder" in (await second.readiness())["standby"]
        assert await say(second, bots[0]) == "UNAVAILABLE"
        first.process.kill()
        killed_at = time.time()
        assert all(story.is_alive(pid) for pid in pids(bots) if pid)
        moved = await all_active(second, bots, pids(bots))
        assert not any(story.is_alive(pid) for pid in pids(bots) if pid)
        again = fake_openclaw.starts(openclaw)[len(bots) :]
        assert sorted(start.agent_id for start in again) == ["bruno", "chike", "hana"]
        # It was renewed within the last third of its time.
        assert min(start.at for start in again) > killed_at + LEASE / 3
        assert await say(second, moved[0]) is None
        async with opened(database):
            pass


async def test_a_server_that_was_paused_for_too_long_writes_nothing_and_stands_by(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    one, two = (in_folder(tmp_path / name, database, openclaw) for name in "ab")
    async with (
        served(tmp_path / "a", one) as first,
        served(tmp_path / "b", two, first.token) as second,
        opened(database),
    ):
        bots = await make_bots(first, "Hana", "Bruno")
        first.process.process.send_signal(signal.SIGSTOP)
        moved = await all_active(second, bots, pids(bots))
        before = await rows()
        first.process.process.send_signal(signal.SIGCONT)

        async def is_standby() -> bool:
            return "another folder" in (await first.readiness()).get("standby", "")

        await until(is_standby)
        (lost,) = first.said("lease_lost")
        assert (lost["node"], lost["bots"]) == ("test", 2)
        assert (await first.readiness())["ready"]
        # It serves on, and a wish that comes in through it reaches the one that supervises.
        assert await rows() == before
        assert pids(await now(first, bots)) == pids(moved)
        stopped = await first.run(docs.BOT_STOP, input={"botId": bots[0]["id"]})
        assert stopped["bot"]["status"] == "INACTIVE"
        await start(first, bots[0])
        # Its turn comes again.
        moved = await now(first, bots)
        second.process.kill()
        await all_active(first, bots, pids(moved))
        assert not any(story.is_alive(pid) for pid in pids(moved) if pid)
        # The other way round the processes were ended by who took them over, for they were on its machine.
        assert len(second.said("strays_ended")) == 2


async def test_a_lease_taken_by_another_machine_ends_the_copies_here_and_comes_back(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    wanted = in_folder(tmp_path, database, openclaw)
    async with running_server(wanted) as api:
        bots = await make_bots(api, "Hana", "Bruno")
        # As a server far away does it, which sees none of the processes here.
        await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '1 hour'")
        assert await nodes.take("test", uuid4(), LEASE)
        await DB.fetch("UPDATE node SET heartbeat_at = now() + interval '1 hour'")
        before = await rows()

        async def are_gone() -> bool:
            return not any(story.left_of(bot) for bot in bots)

        await until(are_gone)
        assert fake_openclaw.running(openclaw) == {}
        assert api.running
        assert api.running.supervisor.failing is None
        await until(_stands_by(api))
        assert await rows() == before
        assert await say(api, bots[0]) == "UNAVAILABLE"
        assert len(fake_openclaw.starts(openclaw)) == len(bots)
        await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '1 hour'")
        await all_active(api, bots, pids(bots))


def _stands_by(api: Api) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return "standby" in (await api.http.get(f"{api.url}/readyz")).json()

    return is_so


async def test_a_start_that_was_under_way_when_the_lease_was_lost_leaves_nothing(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    fake_openclaw.set_faults(openclaw, never_ready=True)
    async with running_server(in_folder(tmp_path, database, openclaw)) as api:
        await story.make_provider(api, NO_MODEL)
        bot = await story.make_bot(api)
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
            await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
            await heard.until(lambda event: event["phase"] == "launching")
            await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '1 hour'")
            assert await nodes.take("test", uuid4(), LEASE)
            await DB.fetch("UPDATE node SET heartbeat_at = now() + interval '1 hour'")
        await until(_stands_by(api))
        assert story.left_of(bot) == []
        # Or the server would wait for its turn while it goes down.
        fake_openclaw.clear_faults(openclaw)
        await DB.fetch("UPDATE node SET heartbeat_at = now() - interval '1 hour'")
        await all_active(api, [bot], [])


async def test_a_supervisor_that_hangs_keeps_its_lease(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    one, two = (in_folder(tmp_path / name, database, openclaw) for name in "ab")
    async with served(tmp_path / "a", one) as first, served(tmp_path / "b", two, first.token) as second:
        bots = await make_bots(first, "Hana", "Bruno")
        holder = await asyncpg.connect(**database)
        try:
            async with holder.transaction():
                # Whoever wants to know anything of a bot's process waits.
                await holder.execute("LOCK TABLE bot_process IN ACCESS EXCLUSIVE MODE")
                await anyio.sleep(2 * LEASE)
                age = await holder.fetchval("SELECT extract(epoch FROM clock_timestamp() - heartbeat_at) FROM node")
                assert age < LEASE
        finally:
            await holder.close()
        assert "standby" in await second.readiness()
        assert pids(await now(first, bots)) == pids(bots)
        assert first.said("lease_lost") == []
        assert len(fake_openclaw.starts(openclaw)) == len(bots)


async def test_a_crowd_at_the_database_costs_nobody_its_lease(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    async with running_server(in_folder(tmp_path, database, openclaw)):
        watcher = await asyncpg.connect(**database)
        try:
            async with anyio.create_task_group() as crowd:
                # More than the pool has connections, so that the next one would wait for long.
                for _ in range(40):
                    crowd.start_soon(DB.fetch, f"SELECT pg_sleep({LEASE})")
                await anyio.sleep(1.5 * LEASE)
                age = await watcher.fetchval("SELECT extract(epoch FROM clock_timestamp() - heartbeat_at) FROM node")
                assert age < LEASE
        finally:
            await watcher.close()


async def test_bots_run_on_and_none_is_started_while_the_lease_cannot_be_renewed(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    wanted = in_folder(tmp_path, database, openclaw)
    async with running_server(wanted) as api:
        bots = await make_bots(api, "Hana")
        other = await story.make_bot(api, "Bruno")
        holder = await asyncpg.connect(**database)
        try:
            async with holder.transaction():
                await holder.execute("LOCK TABLE node IN ACCESS EXCLUSIVE MODE")

                async def is_told() -> bool:
                    failing = (await api.http.get(f"{api.url}/readyz")).json()["failing"]
                    return "lease" in failing.get("supervisor", "")

                await until(is_told)
                await anyio.sleep(LEASE)
                await api.run(docs.BOT_START, input={"botId": other["id"], "wait": False})
                await anyio.sleep(1)
                assert [bot["status"] for bot in await now(api, [*bots, other])] == ["ACTIVE", "INACTIVE"]
        finally:
            await holder.close()

        async def is_ready() -> bool:
            return (await api.http.get(f"{api.url}/readyz")).json()["ready"]

        await until(is_ready)
        await all_active(api, [other], [])
        assert pids(await now(api, bots)) == pids(bots)
        assert len(fake_openclaw.starts(openclaw)) == 2


# Two names.


async def test_servers_of_two_names_supervise_each_its_own_bots_and_take_wishes_for_the_other_s(
    database: dict[str, Any], tmp_path: Path, openclaw: Path
) -> None:
    one = in_folder(tmp_path / "a", database, openclaw, CLAWNET_NODE="one")
    two = in_folder(tmp_path / "b", database, openclaw, CLAWNET_NODE="two")
    async with served(tmp_path / "a", one) as first, served(tmp_path / "b", two, first.token) as second:
        await story.make_provider(first, NO_MODEL)
        mine, theirs = await story.make_bot(first, "Hana"), await story.make_bot(second, "Bruno")
        asked_at = time.monotonic()
        mine = await start(second, mine)
        took = time.monotonic() - asked_at
        theirs = await start(second, theirs)
        homes = {pid: psutil.Process(pid).cwd() for pid in pids([mine, theirs]) if pid}
        assert f"{tmp_path}/a/" in homes[mine["gateway"]["pid"]]
        assert f"{tmp_path}/b/" in homes[theirs["gateway"]["pid"]]
        # A look a second, the start itself, and the listener's own look a second.
        assert took < 10, took
        assert [await say(server, bot) for server in (first, second) for bot in (mine, theirs)] == [
            None, "UNAVAILABLE", "UNAVAILABLE", None,
        ]  # fmt: skip
        # A killed server's bots are nobody else's, whatever becomes of its lease.
        first.process.kill()
        await anyio.sleep(1.5 * LEASE)
        assert story.is_alive(mine["gateway"]["pid"])
        hosts = await second.run("{ fleet { hosts { nodes { name state botCount } } } }")
        assert hosts["hosts"]["nodes"] == [
            {"name": "one", "state": "LOST", "botCount": 1},
            {"name": "two", "state": "READY", "botCount": 1},
        ]
        deleted = await second.run(docs.BOT_DELETE, input={"botId": theirs["id"]})
        assert deleted["userErrors"] == []
        assert len(fake_openclaw.starts(openclaw)) == 2
        async with opened(database):
            pass
