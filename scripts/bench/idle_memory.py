"""What an idle server holds, and its embedded database apart."""

from pathlib import Path

import anyio
import psutil
from rows import Row
from serving import folder, serving

#: Seconds after which a server that nobody speaks to has come to rest.
SETTLE = 5


async def measure() -> list[Row]:
    with folder() as where:
        async with serving(where, None) as (server, _):
            await anyio.sleep(SETTLE)
            postmaster = int((where / "data/postgres/data/postmaster.pid").read_text().split()[0])
            database = [postmaster, *(child.pid for child in psutil.Process(postmaster).children(recursive=True))]
            return [
                Row("idle_memory server", held([server.process.pid])),
                Row("idle_memory its PostgreSQL", f"{held(database)} in {len(database)} processes"),
            ]


def held(pids: list[int]) -> str:
    """PSS counts what processes share once; another user's is not for us to see."""
    rss = sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1_000_000
    try:
        pss = sum(pss_kb(pid) for pid in pids) / 1_000
    except PermissionError:
        return f"RSS {rss:.0f} MB"
    return f"PSS {pss:.0f} MB, RSS {rss:.0f} MB"


def pss_kb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1.024 for line in lines if line.startswith("Pss:"))
