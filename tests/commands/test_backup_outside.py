"""Backup and restore on an outside server: over TCP, with a password that nobody may see, and with fewer rights."""

import subprocess
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from anyio import to_thread

from app.db import dump
from app.domain.errors import SettingsError
from tests.commands.test_backup import OTHER_KEY, PASSPHRASE, clawnet, ran, shown, started, until_dumping
from tests.db.test_outside import outside
from tests.harness import PATIENCE, environ
from tests.test_serve import served

__all__ = ["outside"]

#: With all that a URL and a password file treat in a way of their own.
PASSWORD = "p:w \\%'\"é/@#"
ESCAPED = "p%3Aw%20%5C%25%27%22%C3%A9%2F%40%23"


async def asked(port: int, database: str, *statements: str) -> Any:
    """The last statement's value, as the server's administrator."""
    where = {"host": "127.0.0.1", "port": port, "user": "clawnet", "password": "right-password", "ssl": False}
    connection = await asyncpg.connect(**where, database=database)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return await connection.fetchval(statements[-1])
    finally:
        await connection.close()


async def settings(port: int, folder: Path, **more: str) -> dict[str, str]:
    """For a server whose database is owned by a user without any other right."""
    quoted = PASSWORD.replace("'", "''")
    await asked(port, "postgres", f"CREATE ROLE keeper LOGIN PASSWORD '{quoted}'", "SELECT 1")
    await asked(port, "postgres", "CREATE DATABASE fleet OWNER keeper LC_COLLATE 'C' TEMPLATE template0", "SELECT 1")
    (folder / "passphrase").touch(mode=0o600)
    (folder / "passphrase").write_text(PASSPHRASE)
    url = f"postgresql://keeper:{ESCAPED}@127.0.0.1:{port}/fleet?application_name=ours"
    named = {"CLAWNET_BACKUP_PASSPHRASE_FILE": str(folder / "passphrase")}
    return environ(folder, None, None, DATABASE_URL=url, ENCRYPTION_KEY=OTHER_KEY) | named | more


async def test_an_outside_database_is_backed_up_and_put_back(outside: int, tmp_path: Path) -> None:
    # Words of the environment that would change what the programs do, or whom they ask.
    wanted = await settings(outside, tmp_path, PGOPTIONS="-c nonsense=1", PGDATABASE="none", PGCLIENTENCODING="LATIN1")
    archive = str(tmp_path / "archive")
    async with served(wanted) as (server, api):
        token = api.token
        await ran(wanted, "backup", archive)
        server.kill()

    refused = await to_thread.run_sync(clawnet, wanted, "restore", "--replace", archive)
    assert refused.returncode == 78
    assert 'ALTER ROLE "keeper" CREATEDB' in refused.stderr
    assert "may not" in refused.stderr
    assert await asked(outside, "postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'fleet%'") == 1

    await asked(outside, "postgres", "ALTER ROLE keeper CREATEDB", "SELECT 1")
    refused = await to_thread.run_sync(clawnet, wanted, "restore", archive)
    assert refused.returncode == 1
    assert "--replace" in refused.stderr
    said = await ran(wanted, "restore", "--replace", archive)
    assert 'psql "$DATABASE_URL" -c \'DROP DATABASE' in said
    assert PASSWORD not in said
    assert ESCAPED not in said
    kept = said.split("kept as '")[1].split("'")[0]
    assert await asked(outside, kept, "SELECT count(*) FROM app_user") == 1
    collation = "SELECT datcollate FROM pg_database WHERE datname = 'fleet'"
    assert await asked(outside, "postgres", collation) == "C"
    async with served(wanted, token) as (server, api):
        assert (await api.run("{ viewer { role } }")) == {"role": "ADMIN"}
        assert await to_thread.run_sync(server.stop) == 0


async def test_the_password_is_in_no_argument_and_no_environment(outside: int, tmp_path: Path) -> None:
    wanted = await settings(outside, tmp_path)
    async with served(wanted) as (server, _):
        assert await to_thread.run_sync(server.stop) == 0

    where = {"host": "127.0.0.1", "port": outside, "user": "clawnet", "password": "right-password", "ssl": False}
    connection = await asyncpg.connect(**where, database="fleet")
    await connection.execute("BEGIN; LOCK TABLE notification IN ACCESS EXCLUSIVE MODE")
    try:
        with started(wanted, "backup", str(tmp_path / "archive"), passphrase=tmp_path / "passphrase") as process:
            child = await until_dumping(process)
            for name in ("cmdline", "environ"):
                text = shown(child, name)
                assert text
                assert PASSWORD not in text
                assert ESCAPED not in text
                assert wanted["ENCRYPTION_KEY"] not in text
                assert "p:w" not in text.replace("\\", "")
            await connection.execute("ROLLBACK")
            assert await to_thread.run_sync(process.wait, PATIENCE) == 0
    finally:
        await connection.close()


async def beat(port: int) -> None:
    while True:
        await asked(port, "fleet", "UPDATE node SET heartbeat_at = now()", "SELECT 1")
        await anyio.sleep(0.5)


async def test_whoever_is_connected_is_in_the_way(outside: int, tmp_path: Path) -> None:
    wanted = await settings(outside, tmp_path)
    archive = str(tmp_path / "archive")
    await asked(outside, "postgres", "ALTER ROLE keeper CREATEDB", "SELECT 1")
    async with served(wanted) as (server, api):
        await ran(wanted, "backup", archive)
        found = await to_thread.run_sync(clawnet, wanted, "restore", "--replace", archive)
        assert found.returncode == 1
        assert "the database 'fleet' is in use (clawnet" in found.stderr
        assert (await api.run("{ viewer { role } }")) == {"role": "ADMIN"}
        assert await to_thread.run_sync(server.stop) == 0
    where = {"host": "127.0.0.1", "port": outside, "user": "clawnet", "password": "right-password", "ssl": False}
    connection = await asyncpg.connect(**where, database="fleet")
    try:
        found = await to_thread.run_sync(clawnet, wanted, "restore", "--replace", archive)
        assert found.returncode == 1
        assert "the database 'fleet' is in use (clawnet)" in found.stderr
    finally:
        await connection.close()
    # A server behind a pool of connections may have none at the moment, and lives.
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(beat, outside)
        found = await to_thread.run_sync(clawnet, wanted, "restore", "--replace", archive)
        tasks.cancel_scope.cancel()
    assert found.returncode == 1
    assert "a server supervises as the node 'test'" in found.stderr
    assert await asked(outside, "postgres", "SELECT count(*) FROM pg_database WHERE datname LIKE 'fleet%'") == 1


def test_a_program_that_is_too_old_or_cannot_do_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "pg_dump"
    old.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    server = dump.Server({}, "x", "99.1", 99, is_encrypted=False)
    with pytest.raises(
        SettingsError, match=r"pg_dump is version 9\).*expected version 99 or newer.*clawnet\[embedded\]"
    ):
        dump.program("pg_dump", server, least=99)


@pytest.mark.parametrize("name", ["pg_dump", "pg_restore"])
def test_a_program_without_tls_is_not_used_where_we_ourselves_speak_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    plain = dump.program("pg_dump", dump.Server({}, "x", "15.1", 15, is_encrypted=False), least=15)
    said = subprocess.run([plain.path, "--dbname=host=/nowhere sslmode=require"], capture_output=True, text=True)
    if "not compiled in" not in said.stderr:
        pytest.skip("this pg_dump can speak TLS")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="cannot speak TLS"):
        dump.program(name, dump.Server({}, "x", "15.1", 15, is_encrypted=True), least=15)
