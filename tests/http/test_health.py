"""What a load balancer asks: does the process live, and can it do its work."""

import os
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import psutil
import pytest

from app.db import embedded
from tests.harness import PATIENCE, Api, environ, running_server


async def readiness(api: Api) -> tuple[int, dict[str, str]]:
    answer = await api.http.get(f"{api.url}/readyz")
    assert answer.json()["ready"] is (answer.status_code == 200)
    return answer.status_code, answer.json()["failing"]


async def until_ready(api: Api) -> None:
    with anyio.fail_after(PATIENCE):
        while (await readiness(api))[0] != 200:
            await anyio.sleep(0.05)


@asynccontextmanager
async def own_database() -> AsyncGenerator[tuple[Path, dict[str, Any]]]:
    """A database server that the test may ruin: its folder and how to connect."""
    with tempfile.TemporaryDirectory(prefix="clawnet-tests-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # noqa: ASYNC240
        async with embedded.server(folder, durable=False) as connect:
            yield folder, connect


async def written_down(connect: dict[str, Any]) -> None:
    """So far: a server that need not be durable forgets its last moments in a crash."""
    connection = await asyncpg.connect(**connect)
    await connection.execute("CHECKPOINT")
    await connection.close()


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "postgres/data/postmaster.pid").read_text().splitlines()[0]))


async def test_a_server_that_is_up_is_live_and_ready(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        live = await api.http.get(f"{api.url}/healthz")
        assert (live.status_code, live.json()) == (200, {"status": "live"})
        assert await readiness(api) == (200, {})


async def test_a_server_that_shuts_down_is_live_and_not_ready(database: dict[str, Any], tmp_path: Path) -> None:
    async with running_server(environ(tmp_path, database, None)) as api:
        assert api.running
        api.running.drain()
        assert await readiness(api) == (503, {"server": "the server is shutting down"})
        assert (await api.http.get(f"{api.url}/healthz")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_server_without_its_database_says_so_and_recovers(tmp_path: Path, number: signal.Signals) -> None:
    async with own_database() as (folder, connect), running_server(environ(tmp_path, connect, None)) as api:
        await written_down(connect)
        server = postmaster(folder)
        server.send_signal(number)
        await anyio.to_thread.run_sync(psutil.wait_procs, [server])
        status, failing = await readiness(api)
        assert status == 503
        assert failing["database"] == "the database does not answer"
        assert (await api.http.get(f"{api.url}/healthz")).status_code == 200
        async with embedded.server(folder, durable=False):
            await until_ready(api)
            assert (await api.ask("{ viewer { role } }"))["data"] == {"viewer": {"role": "ADMIN"}}


async def test_a_database_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    async with own_database() as (folder, connect), running_server(environ(tmp_path, connect, None)) as api:
        server = postmaster(folder)
        everybody = [server, *server.children()]
        for process in everybody:
            os.kill(process.pid, signal.SIGSTOP)
        try:
            status, failing = await readiness(api)
        finally:
            for process in everybody:
                os.kill(process.pid, signal.SIGCONT)
        assert status == 503
        assert failing["database"] == "the database did not answer within 2 s"
        await until_ready(api)
