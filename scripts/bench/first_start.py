"""The first start of a new bot on real OpenClaw, from the mutation to ACTIVE, with and without the start cache.

CPU seconds are those of everything that worked for it: the gateway's tree with its shim, and what the server spent and
waited for meanwhile, such as the check of the configuration.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import psutil
from rows import Row
from serving import folder, serving

from app.gateway import install
from app.gateway.openclaw import Installation
from app.gateway.start_cache import StartCache
from tests.journeys import documents as docs
from tests.journeys import story

VERSIONS = ("2026.2.1", "2026.9.6")
#: Seconds.
PATIENCE = 180


@dataclass(frozen=True)
class Start:
    """What one start took, in seconds."""

    wall: float
    cpu: float


async def measure() -> list[Row]:
    rows: list[Row] = []
    for version in VERSIONS:
        installation = await install.ensure(version, install.usual_cache(), say)
        # Made before the clock runs, as a server makes it when it starts.
        await StartCache(installation, install.usual_cache()).fill()
        cold, warm = await start(installation, "off"), await start(installation, "on")
        rows += [
            Row(f"first_start {version} without", f"{cold.wall:.1f} s, {cold.cpu:.1f} CPU s"),
            Row(
                f"first_start {version} with start cache",
                f"{warm.wall:.1f} s, {warm.cpu:.1f} CPU s",
                "less than without",
                f"{warm.wall / cold.wall:.2f} x wall, {warm.cpu / cold.cpu:.2f} x CPU",
            ),
        ]
    return rows


async def start(installation: Installation, start_cache: str) -> Start:
    with folder() as where:
        settings = {"CLAWNET_CACHE_DIR": str(install.usual_cache()), "CLAWNET_START_CACHE": start_cache}
        async with serving(where, installation.entry, **settings) as (server, api):
            await story.make_provider(api, "http://127.0.0.1:9/v1")
            bot = await story.make_bot(api)
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                began, spent = time.perf_counter(), cpu_seconds([server.process.pid])
                await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
                gateway = await until_active(heard.socket)
                wall = time.perf_counter() - began
                tree = family(gateway)
                return Start(wall, cpu_seconds([server.process.pid, *tree]) - spent)


async def until_active(socket: Any) -> int:
    """The pid of the gateway, once it is ready; a cold start is silent for longer than a test may wait."""
    with anyio.fail_after(PATIENCE):
        while True:
            event = json.loads(await socket.recv())["payload"]["data"]["botStatus"]
            if event["status"] in ("BACKOFF", "ERROR"):
                raise AssertionError(event["error"])
            if event["status"] == "ACTIVE":
                return event["pid"]


def family(gateway: int) -> list[int]:
    """The gateway's shim and everything under it."""
    shim = psutil.Process(gateway).parent()
    assert shim is not None
    return [shim.pid, *(child.pid for child in shim.children(recursive=True))]


def cpu_seconds(pids: list[int]) -> float:
    """Spent by these processes, and by children of theirs that have ended."""
    # The youngest first: who ends meanwhile is then counted with its parent.
    ticks = sum(ticks_of(pid) for pid in reversed(pids))
    return ticks / os.sysconf("SC_CLK_TCK")


def ticks_of(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(field) for field in fields[11:15])


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
