"""The fleet in one look: what is counted, for whom, and which machines are shown."""

import asyncio
from pathlib import Path
from typing import Any

import psutil

from app import __version__
from app.db.engine import DB
from app.domain.states import BotStatus, UserRole
from tests import fake_openclaw
from tests.graphql.people import Caller, global_id, house, person
from tests.harness import PATIENCE
from tests.journeys import documents as docs
from tests.journeys import story

FLEET = """{ fleet {
  statusCounts { status count } memoryBytes startSlots { total used waiting }
  hosts { nodes { id name state capacity botCount cpuRatio memoryBytes version lastHeartbeatAt } totalCount }
} }"""
HOSTS = """query($first: Int, $after: String, $last: Int, $before: String) { fleet {
  hosts(first: $first, after: $after, last: $last, before: $before) {
    nodes { name } pageInfo { hasNextPage hasPreviousPage startCursor endCursor } totalCount
  }
} }"""


def counts(fleet: dict[str, Any]) -> dict[str, int]:
    """Those that are not zero."""
    assert [count["status"] for count in fleet["statusCounts"]] == list(BotStatus)
    return {count["status"]: count["count"] for count in fleet["statusCounts"] if count["count"]}


async def until_measured(api: Caller, is_so: Any) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE):
        while not is_so(fleet := await api.run(FLEET)):
            await asyncio.sleep(0.05)
    return fleet


async def a_host(name: str, age: float = 0.0, state: str = "READY") -> None:
    await DB.fetch(
        "INSERT INTO node (name, state, epoch, version, heartbeat_at, created_at, public_id, start_slots) "
        "VALUES ($1, $2, 1, '1', now() - make_interval(secs => $3::float8), now(), gen_random_uuid(), 100)",
        name, state, age,
    )  # fmt: skip


async def test_bots_are_counted_for_whom_they_are_to_see(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia, sven = await person(api, "Mia"), await person(api, "Sven")
        ines = await person(api, "Ines", UserRole.OBSERVER)
        first, second = await story.make_bot(mia, "Hana"), await story.make_bot(mia, "Bruno")
        await story.make_bot(sven, "Chike")
        assert counts(await mia.run(FLEET)) == {"INACTIVE": 2}
        assert counts(await sven.run(FLEET)) == {"INACTIVE": 1}
        assert counts(await api.run(FLEET)) == counts(await ines.run(FLEET)) == {"INACTIVE": 3}
        nobody = await person(api, "Nina")
        assert counts(await nobody.run(FLEET)) == {}
        # A bot on its way out is gone for everybody.
        await DB.fetch("UPDATE bot SET desired = 'DELETED' WHERE name = 'Hana'")
        assert counts(await mia.run(FLEET)) == {"INACTIVE": 1}
        assert first["status"] == second["status"] == "INACTIVE"


async def test_members_see_no_machines(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        mia, ines = await person(api, "Mia"), await person(api, "Ines", UserRole.OBSERVER)
        (host,) = (await api.run(FLEET))["hosts"]["nodes"]
        assert (await ines.run(FLEET))["hosts"]["totalCount"] == 1
        assert (await mia.run(FLEET))["hosts"] == {"nodes": [], "totalCount": 0}
        document = "query($id: ID!) { node(id: $id) { id ... on FleetHost { name } } }"
        seen = {"id": host["id"], "name": "test"}
        assert [await caller.run(document, id=host["id"]) for caller in (api, ines, mia)] == [seen, seen, None]
        bare = await person(api, "Nina", UserRole.ADMIN, scopes=frozenset())
        assert await bare.run(document, id=host["id"]) is None
        assert await api.run(document, id=global_id("FleetHost", "01a20d63-ee4e-7971-99a4-7ba3b6a6a675")) is None


async def test_a_machine_says_how_it_is(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path, OPENCLAW_MAX_BOTS="7") as api:
        fleet = await until_measured(api, lambda fleet: fleet["hosts"]["nodes"][0]["memoryBytes"])
        (host,) = fleet["hosts"]["nodes"]
        assert (host["name"], host["state"], host["capacity"], host["botCount"]) == ("test", "READY", 7, 0)
        assert host["version"] == __version__
        assert 0 <= host["cpuRatio"] <= 1
        assert 0 < host["memoryBytes"] < psutil.virtual_memory().total
        assert fleet["startSlots"] == {"total": psutil.cpu_count(), "used": 0, "waiting": 0}


async def test_a_machine_that_is_silent_is_lost_and_takes_no_part(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        await until_measured(api, lambda fleet: fleet["startSlots"]["total"])
        await a_host("fresh", age=14)
        await a_host("silent", age=16)
        await a_host("leaving", state="DRAINING")
        await a_host("silent-leaving", age=3600, state="DRAINING")
        fleet = await api.run(FLEET)
        assert {host["name"]: host["state"] for host in fleet["hosts"]["nodes"]} == {
            "fresh": "READY", "leaving": "DRAINING", "silent": "LOST", "silent-leaving": "LOST", "test": "READY",
        }  # fmt: skip
        assert fleet["startSlots"]["total"] == psutil.cpu_count() + 100


async def test_machines_come_by_the_page(database: dict[str, Any], tmp_path: Path) -> None:
    async with house(database, tmp_path) as api:
        for number in range(4):
            await a_host(f"host-{number}")
        names: list[str] = []
        after, has_next = None, True
        while has_next:
            hosts = (await api.run(HOSTS, first=2, after=after))["hosts"]
            assert hosts["totalCount"] == 5
            names += [host["name"] for host in hosts["nodes"]]
            after, has_next = hosts["pageInfo"]["endCursor"], hosts["pageInfo"]["hasNextPage"]
        assert names == ["host-0", "host-1", "host-2", "host-3", "test"]
        last = (await api.run(HOSTS, last=2, before=after))["hosts"]
        assert [host["name"] for host in last["nodes"]] == ["host-2", "host-3"]
        refused = await api.ask(HOSTS, first=2, after="x")
        assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_a_running_bot_s_memory_is_known_until_it_ends(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", fork_grandchildren=2)
    async with house(database, tmp_path, wrapper) as api:
        mia = await person(api, "Mia")
        bot = await story.make_bot(mia)
        started = await mia.run(docs.BOT_START, input={"botId": bot["id"]})
        assert started["bot"]["status"] == "ACTIVE"
        # At once, and not only at the first look at its health.
        fleet = await until_measured(mia, lambda fleet: fleet["memoryBytes"])
        tree = story.left_of(bot)
        assert len(tree) > 2
        rss = sum(psutil.Process(pid).memory_info().rss for pid in tree)
        assert 0.5 * rss < fleet["memoryBytes"] < 2 * rss
        assert counts(fleet) == {"ACTIVE": 1}
        assert (await api.run(FLEET))["hosts"]["nodes"][0]["botCount"] == 1
        stranger = await person(api, "Sven")
        assert (await stranger.run(FLEET))["memoryBytes"] == 0
        await mia.run(docs.BOT_STOP, input={"botId": bot["id"]})
        fleet = await api.run(FLEET)
        assert (fleet["memoryBytes"], fleet["hosts"]["nodes"][0]["botCount"]) == (0, 0)
        assert await DB.fetch_one("SELECT memory_bytes FROM bot_process") == {"memory_bytes": None}


async def test_places_for_starts_are_shown_as_they_are_taken(database: dict[str, Any], tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw", never_ready=True)
    async with house(database, tmp_path, wrapper) as api:
        mia, sven = await person(api, "Mia"), await person(api, "Sven")
        cores = psutil.cpu_count() or 1
        for number in range(cores + 2):
            bot = await story.make_bot(mia, f"Bot {number}")
            await mia.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
        wanted = {"total": cores, "used": cores, "waiting": 2}
        fleet = await until_measured(mia, lambda fleet: fleet["startSlots"] == wanted)
        assert counts(fleet) == {"STARTING": cores + 2}
        assert (await sven.run(FLEET))["startSlots"] == {"total": cores, "used": 0, "waiting": 0}
