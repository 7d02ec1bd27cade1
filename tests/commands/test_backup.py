"""`clawnet backup` and `clawnet restore` as a person uses them, on whole installations with bots that run."""

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import pytest
from anyio import to_thread

from app import vault
from app.db import embedded, migrate
from app.db.engine import DB
from tests import fake_openclaw
from tests.harness import PATIENCE, REPO, Api, environ, serve
from tests.journeys import documents as docs
from tests.journeys import story
from tests.test_serve import (
    cursor,
    data_folder,
    now,
    processes_in,
    served,
    start_bots,
)

PASSPHRASE = "correct horse battery"
OTHER_KEY = hashlib.sha256(b"another key for tests").hexdigest()
#: Migrations that the oldest database had seen.
OLDEST = 2
EX_CONFIG, INTERRUPTED, TERMINATED = 78, 130, 143
#: Length of the archive's head: app/vault/archive.py.
HEADER = 105

TRAIL = "{ auditEntries(first: 50) { nodes { action } } }"


def command(wanted: dict[str, str], *arguments: str, passphrase: Path | None = None) -> list[Any]:
    given = [] if passphrase is None else ["--passphrase-file", str(passphrase)]
    return [[sys.executable, "-m", "app", *arguments, *given], environment(wanted)]


def environment(wanted: dict[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **wanted}


def clawnet(
    wanted: dict[str, str], *arguments: str, passphrase: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words, env = command(wanted, *arguments, passphrase=passphrase)
    return subprocess.run(
        words, cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=4 * PATIENCE
    )


async def ran(wanted: dict[str, str], *arguments: str, passphrase: Path | None = None) -> str:
    """What it said; the test's own server goes on meanwhile."""
    found = await to_thread.run_sync(lambda: clawnet(wanted, *arguments, passphrase=passphrase))
    assert found.returncode == 0, found.stderr
    return found.stderr


@pytest.fixture
def folder() -> Generator[Path]:
    """A place for installations, a file with the passphrase in it, and nothing left running afterwards."""
    with data_folder() as path:
        _keep_passphrase(path)
        yield path
        for place in (path, *path.iterdir()):
            for pid in processes_in(place):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _keep_passphrase(path: Path) -> None:
    (path / "passphrase").touch(mode=0o600)
    (path / "passphrase").write_text(f"{PASSPHRASE}\n")


def place(folder: Path, name: str) -> Path:
    found = folder / name
    found.mkdir(mode=0o711)
    found.chmod(0o711)
    return found


@pytest.fixture
def openclaw(folder: Path) -> Path:
    return fake_openclaw.install(folder / "openclaw")


async def signed_in(api: Api) -> str:
    """The text of a sign-in's token."""
    made = await api.run(
        "mutation($input: UserCreateInput!) { userCreate(input: $input) { user { id } userErrors { message } } }",
        input={"name": "Ada", "email": "ada@example.org", "role": "MEMBER", "password": "a long enough word"},
    )
    assert made["userErrors"] == [], made
    answer = await api.signed_in(None).run(
        "mutation($input: SignInInput!) { signIn(input: $input) { accessToken userErrors { message } } }",
        input={"email": "ada@example.org", "password": "a long enough word"},
    )
    assert answer["userErrors"] == [], answer
    return answer["accessToken"]


async def active(api: Api, bots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bots, once all of them are."""
    with anyio.fail_after(PATIENCE):
        found = await now(api, bots)
        while any(bot["status"] != "ACTIVE" for bot in found):
            await anyio.sleep(0.05)
            found = await now(api, bots)
    return found


async def does_count(api: Api, token: str) -> bool:
    answer = await api.signed_in(token).ask("{ viewer { name } }")
    return bool((answer.get("data") or {}).get("viewer"))


async def actions(api: Api) -> list[str]:
    return [entry["action"] for entry in (await api.run(TRAIL))["nodes"]]


@asynccontextmanager
async def database(data: Path, name: str = "clawnet") -> AsyncGenerator[Any]:
    """A connection to a database of a data folder's server."""
    async with embedded.server(data) as connect:
        connection = await asyncpg.connect(**{**connect, "database": name})
        try:
            yield connection
        finally:
            await connection.close()


async def content(data: Path) -> dict[str, str]:
    """Everything an installation holds: each table of each database, and the key."""
    found: dict[str, str] = {}
    async with database(data, "postgres") as connection:
        names = [row[0] for row in await connection.fetch("SELECT datname FROM pg_database WHERE datname ~ '^clawnet'")]
    for name in names:
        async with database(data, name) as connection:
            for (table,) in await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"):
                rows = await connection.fetch(f"SELECT t::text FROM {table} t ORDER BY 1")
                found[f"{name}.{table}"] = hashlib.sha256(repr(rows).encode()).hexdigest()
    return found | {name: (data / name).read_text() for name in names_in(data) if "encryption.key" in name}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def files(data: Path) -> dict[str, bytes]:
    """Every file of an installation that nobody runs."""
    return {str(file): file.read_bytes() for file in data.rglob("*") if file.is_file()}


# What it is for.


async def test_an_installation_comes_back_on_another_machine_with_its_bots_and_secrets(
    folder: Path, openclaw: Path
) -> None:
    home, archive = place(folder, "home"), folder / "archive"
    wanted = environ(home, None, openclaw, CLAWNET_NODE="old-machine")
    async with served(wanted) as (server, api):
        bots = await start_bots(api, "Hana")
        # A policy that begins no bot again after it was lost; a restore loses none.
        bots += await active(api, [await story.make_bot(api, "Bruno", restartPolicy={"mode": "NEVER"}, start=True)])
        ada, token = await signed_in(api), api.token
        assert token is not None
        before = await cursor(api, bots)
        said = await ran(wanted, "backup", str(archive), passphrase=folder / "passphrase")
        assert "2 user(s), 2 bot(s)" in said
        assert (await actions(api))[0] == "backup"
        assert [bot["status"] for bot in await now(api, bots)] == ["ACTIVE"] * 2
        assert await to_thread.run_sync(server.stop) == 0
    assert archive.stat().st_mode & 0o777 == 0o600
    assert [name for name in names_in(folder) if "archive" in name] == ["archive"]
    key = (home / "data" / "encryption.key").read_bytes()
    for secret in (key.strip(), b"sk-test-0123456789", b"PGDMP", b"ada@example.org", b"Bruno"):
        assert secret not in archive.read_bytes()

    new = place(folder, "new")
    elsewhere = environ(new, None, openclaw, CLAWNET_NODE="new-machine")
    said = await ran(elsewhere, "restore", str(archive), passphrase=folder / "passphrase")
    assert "the bots of 'old-machine' are this machine's, 'new-machine'" in said
    kept = new / "data" / "encryption.key"
    assert kept.read_bytes() == key
    assert kept.stat().st_mode & 0o777 == 0o600
    async with served(elsewhere, token) as (server, api):
        async with api.listen(docs.BOT_STATUS, ids=[bot["id"] for bot in bots], after=before) as heard:
            assert [(await anext(heard))["kind"] for _ in bots] == ["RESYNC"] * 2
        again = await active(api, bots)
        assert [bot["gateway"]["restartCount"] for bot in again] == [0, 0]
        assert {bot["agentId"] for bot in again} == set(fake_openclaw.running(openclaw))
        assert "sk-test-0123456789" in (new / "data/openclaw/bots/hana/config.json5").read_text()
        assert await does_count(api, token)
        assert not await does_count(api, ada)
        told = await actions(api)
        assert "restore" in told
        assert "backup" not in told
        assert await to_thread.run_sync(server.stop) == 0
    assert fake_openclaw.violations(openclaw) == []
    async with database(new / "data") as connection:
        assert [row[0] for row in await connection.fetch("SELECT name FROM node")] == ["new-machine"]
        assert await connection.fetchval("SELECT count(*) FROM bot_run WHERE ended_at IS NULL") == 0
        assert await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname ~ '^clawnet_'") == 0
        assert await connection.fetchval("SELECT count(*) FROM notification") == 0


async def test_a_restore_over_an_installation_keeps_what_was_there(folder: Path, openclaw: Path) -> None:
    home, archive = place(folder, "home"), folder / "archive"
    wanted = environ(home, None, openclaw)
    async with served(wanted) as (server, api):
        bots, token = await start_bots(api, "Hana"), api.token
        await ran(wanted, "backup", str(archive), passphrase=folder / "passphrase")
        later = await story.make_bot(api, "Later")
        before = await cursor(api, [later])
        assert await to_thread.run_sync(server.stop) == 0
    found = await content(home / "data")

    refused = await to_thread.run_sync(
        lambda: clawnet(wanted, "restore", str(archive), passphrase=folder / "passphrase")
    )
    assert refused.returncode == 1
    assert "holds an installation of ClawNet; --replace" in refused.stderr
    assert await content(home / "data") == found

    said = await ran(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase")
    kept = said.split("kept as '")[1].split("'")[0]
    assert kept.startswith("clawnet_before_")
    assert f"-c 'DROP DATABASE \"{kept}\"'" in said
    after = await content(home / "data")
    assert {name: after[name.replace("clawnet.", f"{kept}.")] for name in found} == found
    assert after["encryption.key"] == found["encryption.key"]
    async with served(wanted, token) as (server, api):
        await active(api, bots)
        assert [bot["name"] for bot in (await api.run("{ bots { nodes { name } } }"))["nodes"]] == ["Hana"]
        # Its room is of a future that never was; another one may have its number.
        again = await story.make_bot(api, "Again")
        async with api.listen(docs.BOT_STATUS, ids=[again["id"]], after=before) as heard:
            assert (await anext(heard))["kind"] in {"RESYNC", "CURRENT"}
        drop = next(line for line in said.splitlines() if "DROP DATABASE" in line)
        assert (await to_thread.run_sync(lambda: subprocess.run(drop, shell=True))).returncode == 0
        assert await to_thread.run_sync(server.stop) == 0
    assert not any(name.startswith(kept) for name in await content(home / "data"))


async def test_a_stopped_copy_leaves_the_living_original_alone(folder: Path, openclaw: Path) -> None:
    home, archive, copy = place(folder, "home"), folder / "archive", place(folder, "copy")
    wanted = environ(home, None, openclaw)
    beside = environ(copy, None, openclaw)
    async with served(wanted) as (server, api):
        bots, token = await start_bots(api, "Hana", "Bruno"), api.token
        await ran(wanted, "backup", str(archive), passphrase=folder / "passphrase")
        said = await ran(beside, "restore", "--stopped", str(archive), passphrase=folder / "passphrase")
        assert "2 bot(s) that ran are wished to be stopped" in said
        async with served(beside, token) as (other, copied):
            found = await now(copied, bots)
            assert [(bot["status"], bot["desiredState"]) for bot in found] == [("INACTIVE", "STOPPED")] * 2
            assert await to_thread.run_sync(other.stop) == 0
        assert [bot["gateway"] and bot["gateway"]["pid"] for bot in await now(api, bots)] == [
            bot["gateway"]["pid"] for bot in bots
        ]
        assert await to_thread.run_sync(server.stop) == 0
    assert len(fake_openclaw.starts(openclaw)) == 2
    assert fake_openclaw.violations(openclaw) == []


async def test_nothing_is_restored_while_a_server_or_its_bots_live(folder: Path, openclaw: Path) -> None:
    home, archive = place(folder, "home"), folder / "archive"
    wanted = environ(home, None, openclaw)
    async with served(wanted) as (server, api):
        bots, token = await start_bots(api, "Hana"), api.token
        await ran(wanted, "backup", str(archive), passphrase=folder / "passphrase")
        refused = await to_thread.run_sync(
            lambda: clawnet(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase")
        )
        assert refused.returncode == 1
        assert "a server uses" in refused.stderr
        assert (await now(api, bots))[0]["status"] == "ACTIVE"
        server.kill()
    refused = await to_thread.run_sync(
        lambda: clawnet(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase")
    )
    assert refused.returncode == 1
    assert "these bots still run" in refused.stderr
    assert "hana" in refused.stderr
    async with served(wanted, token) as (server, api):
        assert (await active(api, bots))[0]["gateway"]["pid"] == bots[0]["gateway"]["pid"]
        assert await to_thread.run_sync(server.stop) == 0
    await ran(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase")


async def make_keyring(key: str) -> None:
    """As the first version did, which knew no fingerprints."""
    made, first = vault.new_keyring(vault.master_key(key))
    await DB.fetch("INSERT INTO installation (id, salt, kdf) VALUES ($1, $2, $3)", made.id, made.salt, made.kdf)
    await DB.fetch(
        "INSERT INTO keyring (key_id, state, kek_id, nonce, wrapped) VALUES ($1, $2, $3, $4, $5)",
        first.key_id, first.state, first.kek_id, first.nonce, first.wrapped,
    )  # fmt: skip


async def test_an_archive_of_an_older_version_is_brought_up_to_date(folder: Path) -> None:
    home, archive, new = place(folder, "home"), folder / "archive", place(folder, "new")
    async with embedded.server(home / "data") as config:
        await DB.open(config)
        try:
            for _ in range(OLDEST):
                await migrate._apply_next()
            await make_keyring(vault.key_file(home / "data" / "encryption.key"))
            await DB.fetch("INSERT INTO app_user (id, name, role) VALUES (gen_random_uuid(), 'Ada', 'ADMIN')")
            await DB.fetch("INSERT INTO room (name, epoch) VALUES ('feed:global', 2147483647), ('fleet:all', 0)")
        finally:
            await DB.close()
    said = await ran(environ(home, None, None), "backup", str(archive), passphrase=folder / "passphrase")
    assert "the audit trail does not tell of it" in said
    wanted = environ(new, None, None)
    said = await ran(wanted, "restore", str(archive), passphrase=folder / "passphrase")
    assert f"{len(migrate.known()) - OLDEST} migration(s) applied" in said
    async with database(new / "data") as connection:
        assert await connection.fetchval("SELECT name FROM app_user") == "Ada"
        assert await connection.fetchval("SELECT action FROM audit_entry") == "restore"
        epochs = {row["name"]: row["epoch"] for row in await connection.fetch("SELECT name, epoch FROM room")}
        assert epochs["feed:global"] != 2147483647
        assert epochs["fleet:all"] != 0
    with await to_thread.run_sync(serve, wanted) as server:
        assert await to_thread.run_sync(server.stop) == 0


# What is refused, without touching anything.


@pytest.fixture(scope="module")
def made() -> Generator[tuple[Path, dict[str, str], Path]]:
    """A small installation that nobody runs, its settings, and an archive of it."""
    with data_folder() as folder:
        _keep_passphrase(folder)
        wanted = environ(folder, None, None)
        with serve(wanted) as server:
            assert server.stop() == 0
        assert clawnet(wanted, "backup", str(folder / "archive"), passphrase=folder / "passphrase").returncode == 0
        yield folder, wanted, folder / "archive"


Made = tuple[Path, dict[str, str], Path]


@contextmanager
def unchanged(folder: Path) -> Generator[None]:
    before = files(folder / "data")
    yield
    assert files(folder / "data") == before


def test_another_passphrase_is_refused(made: Made, tmp_path: Path) -> None:
    folder, wanted, archive = made
    (tmp_path / "wrong").write_text("another passphrase\n")
    with unchanged(folder):
        found = clawnet(wanted, "restore", "--replace", str(archive), passphrase=tmp_path / "wrong")
    assert found.returncode == 1
    assert found.stderr.endswith("clawnet: the passphrase is not the one the archive was made with\n")


@pytest.mark.parametrize("what", ["head", "body", "cut", "dump"])
def test_a_damaged_archive_is_refused(made: Made, tmp_path: Path, what: str) -> None:
    folder, wanted, archive = made
    data = bytearray(archive.read_bytes())
    match what:
        case "head":
            data[50] ^= 1
        case "body":
            data[HEADER + 3] ^= 1
        case "cut":
            del data[-1000:]
        case _:
            data = bytearray(b"PGDMP and so on")
    (tmp_path / "archive").write_bytes(data)
    with unchanged(folder):
        found = clawnet(wanted, "restore", "--replace", str(tmp_path / "archive"), passphrase=folder / "passphrase")
    assert found.returncode == 1
    assert "changed or cut short" in found.stderr or "no backup of ClawNet" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_newer_archive_is_refused(made: Made, tmp_path: Path) -> None:
    folder, wanted, archive = made
    rewrite(archive, tmp_path / "newer", lambda manifest: manifest["migrations"].append("2036-01-01T00:00:00:000000"))
    with unchanged(folder):
        found = clawnet(wanted, "restore", "--replace", str(tmp_path / "newer"), passphrase=folder / "passphrase")
    assert found.returncode == 1
    assert "made by a newer ClawNet" in found.stderr
    assert "2036-01-01" in found.stderr


def test_an_archive_laid_out_otherwise_is_refused(made: Made, tmp_path: Path) -> None:
    folder, wanted, archive = made
    rewrite(archive, tmp_path / "other", lambda manifest: manifest.update(format=2))
    with unchanged(folder):
        found = clawnet(wanted, "restore", "--replace", str(tmp_path / "other"), passphrase=folder / "passphrase")
    assert found.returncode == 1
    assert "format 2" in found.stderr


def rewrite(archive: Path, to: Path, change: Any, dump: Any = bytes) -> None:
    """The archive with another manifest, as another version would have made it."""
    from app.vault.archive import Reader, Writer

    with archive.open("rb") as file:
        plain = b"".join(Reader(file, PASSPHRASE).chunks())
    length = int.from_bytes(plain[:4], "big")
    manifest = json.loads(plain[4 : 4 + length])
    change(manifest)
    text = json.dumps(manifest).encode()
    with to.open("wb") as file:
        writer = Writer(file, PASSPHRASE)
        writer.write(len(text).to_bytes(4, "big") + text + dump(plain[4 + length :]))
        writer.finish()


async def test_a_dump_that_does_not_load_leaves_what_was_there(made: Made, tmp_path: Path) -> None:
    folder, wanted, archive = made
    before = await content(folder / "data")
    rewrite(archive, tmp_path / "cut", lambda _: None, lambda rest: rest[: len(rest) // 2])
    rewrite(archive, tmp_path / "short", lambda manifest: manifest.update(users=7))
    for name, why in (("cut", "pg_restore failed"), ("short", "not loaded whole")):
        found = await to_thread.run_sync(
            lambda name=name: clawnet(
                wanted, "restore", "--replace", str(tmp_path / name), passphrase=folder / "passphrase"
            )
        )
        assert found.returncode == 1
        assert why in found.stderr
        assert await content(folder / "data") == before


async def test_another_key_is_refused_and_the_archive_s_own_can_be_had(made: Made, tmp_path: Path) -> None:
    folder, wanted, archive = made
    before = await content(folder / "data")
    found = await to_thread.run_sync(
        lambda: clawnet(
            wanted | {"ENCRYPTION_KEY": OTHER_KEY}, "restore", "--replace", str(archive),
            passphrase=folder / "passphrase",
        )
    )  # fmt: skip
    assert found.returncode == EX_CONFIG
    assert "wanted kek" in found.stderr
    assert "--write-key" in found.stderr
    assert OTHER_KEY not in found.stderr
    assert await content(folder / "data") == before

    key = tmp_path / "key"
    # Without the key that is missing: that is what it is for.
    lost = {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/x", "CLAWNET_DATA_DIR": str(tmp_path / "none")}
    await ran(lost, "restore", "--write-key", str(key), str(archive), passphrase=folder / "passphrase")
    assert key.read_text() == (folder / "data" / "encryption.key").read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    again = await to_thread.run_sync(
        lambda: clawnet(lost, "restore", "--write-key", str(key), str(archive), passphrase=folder / "passphrase")
    )
    assert again.returncode == 1
    assert "cannot be written" in again.stderr


async def test_a_different_key_file_is_moved_aside(made: Made, folder: Path) -> None:
    other, wanted = place(folder, "other"), environ(folder / "other", None, None)
    with await to_thread.run_sync(serve, wanted) as server:
        assert await to_thread.run_sync(server.stop) == 0
    mine = (other / "data" / "encryption.key").read_text()
    said = await ran(wanted, "restore", "--replace", str(made[2]), passphrase=folder / "passphrase")
    moved = Path(said.split("that was here before is kept in ")[1].splitlines()[0])
    assert (other / "data" / moved.name).read_text() == mine
    assert (other / "data" / "encryption.key").read_text() == (made[0] / "data" / "encryption.key").read_text()
    assert [name for name in names_in(other / "data") if "key" in name] == ["encryption.key", moved.name]
    with await to_thread.run_sync(serve, wanted) as server:
        assert server.token is None
        assert await to_thread.run_sync(server.stop) == 0


def test_a_file_that_is_there_is_not_replaced_unasked(made: Made, tmp_path: Path) -> None:
    folder, wanted, _ = made
    there = tmp_path / "there"
    there.write_text("precious")
    found = clawnet(wanted, "backup", str(there), passphrase=folder / "passphrase")
    assert found.returncode == 1
    assert found.stderr == f"clawnet: {there} exists; --force replaces it\n"
    assert there.read_text() == "precious"
    found = clawnet(wanted, "backup", "--force", str(there), passphrase=folder / "passphrase")
    assert found.returncode == 0
    assert there.read_bytes().startswith(b"CLAWNETB")
    assert list(tmp_path.iterdir()) == [there]


def test_places_where_no_archive_can_be_are_refused(made: Made, tmp_path: Path) -> None:
    folder, wanted, _ = made
    for name in ("/dev/null", str(tmp_path), str(tmp_path / "none" / "archive")):
        found = clawnet(wanted, "backup", "--force", name, passphrase=folder / "passphrase")
        assert found.returncode == 1
        assert "nothing was written" in found.stderr
    assert Path("/dev/null").is_char_device()


def test_the_manifest_tells_no_secret(made: Made) -> None:
    folder, wanted, archive = made
    with unchanged(folder):
        found = clawnet(wanted, "restore", "--show-manifest", str(archive), passphrase=folder / "passphrase")
    manifest = json.loads(found.stdout)
    assert (manifest["users"], manifest["bots"], manifest["format"]) == (1, 0, 1)
    assert (folder / "data" / "encryption.key").read_text().strip() not in found.stdout


def test_a_database_without_an_installation_has_nothing_to_back_up(folder: Path) -> None:
    found = clawnet(environ(folder, None, None), "backup", str(folder / "archive"), passphrase=folder / "passphrase")
    assert found.returncode == 1
    assert "nothing to back up" in found.stderr
    assert not (folder / "data" / "encryption.key").exists()
    assert not (folder / "archive").exists()


def test_a_backup_without_its_key_is_refused(made: Made, tmp_path: Path) -> None:
    folder, wanted, _ = made
    key = folder / "data" / "encryption.key"
    key.rename(tmp_path / "key")
    try:
        found = clawnet(wanted, "backup", str(tmp_path / "archive"), passphrase=folder / "passphrase")
    finally:
        (tmp_path / "key").rename(key)
    assert found.returncode == EX_CONFIG
    assert "is gone" in found.stderr
    assert not (tmp_path / "archive").exists()


# The passphrase.


@pytest.mark.parametrize("text", ["", "short", "eleven char\n", "x" * 2000])
def test_a_passphrase_of_the_wrong_length_is_refused(made: Made, tmp_path: Path, text: str) -> None:
    _, wanted, _ = made
    (tmp_path / "passphrase").write_text(text)
    found = clawnet(wanted, "backup", str(tmp_path / "archive"), passphrase=tmp_path / "passphrase")
    assert found.returncode == EX_CONFIG
    assert "expected 12 to 1024" in found.stderr
    assert not (tmp_path / "archive").exists()


def test_there_is_no_backup_without_a_passphrase(made: Made, tmp_path: Path) -> None:
    folder, wanted, _ = made
    found = clawnet(wanted, "backup", str(tmp_path / "archive"))
    assert found.returncode == EX_CONFIG
    assert "CLAWNET_BACKUP_PASSPHRASE_FILE" in found.stderr
    assert not (tmp_path / "archive").exists()
    named = wanted | {"CLAWNET_BACKUP_PASSPHRASE_FILE": str(folder / "passphrase")}
    assert clawnet(named, "backup", str(tmp_path / "archive")).returncode == 0
    missing = wanted | {"CLAWNET_BACKUP_PASSPHRASE_FILE": str(folder / "none")}
    found = clawnet(missing, "backup", str(tmp_path / "other"))
    assert found.returncode == EX_CONFIG
    assert "cannot be read" in found.stderr


def test_at_a_terminal_it_is_asked_for_twice(made: Made, tmp_path: Path) -> None:
    _, wanted, _ = made
    code, said = typed(wanted, ["backup", str(tmp_path / "archive")], PASSPHRASE, "something else")
    assert code == 1
    assert "differ" in said
    assert not (tmp_path / "archive").exists()
    code, said = typed(wanted, ["backup", str(tmp_path / "archive")], PASSPHRASE, PASSPHRASE)
    assert code == 0
    assert PASSPHRASE not in said
    code, said = typed(wanted, ["restore", "--show-manifest", str(tmp_path / "archive")], PASSPHRASE)
    assert code == 0
    assert '"users": 1' in said


def typed(wanted: dict[str, str], arguments: list[str], *lines: str) -> tuple[int, str]:
    """Runs it at a terminal of its own and answers each question with the next line; all that was shown."""
    words, env = command(wanted, *arguments)
    ours, theirs = pty.openpty()
    said = b""
    # The terminal must be the one that controls its session: that is where passphrases are asked for.
    process = subprocess.Popen(["setsid", "--ctty", "--wait", *words], cwd=REPO, env=env, stdin=theirs, stdout=theirs,
                               stderr=theirs)  # fmt: skip
    os.close(theirs)
    questions, deadline = 0, time.monotonic() + PATIENCE
    while time.monotonic() < deadline and select.select([ours], [], [], PATIENCE)[0]:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            break
        said += piece
        while questions < len(lines) and said.count(b": ") > questions and said.rstrip(b" ").endswith(b":"):
            os.write(ours, f"{lines[questions]}\n".encode())
            questions += 1
    os.close(ours)
    return process.wait(PATIENCE), said.decode()


# Interrupted.


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, TERMINATED)])
async def test_an_interrupted_backup_leaves_nothing(
    made: Made, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    folder, wanted, _ = made
    async with database(folder / "data") as connection:
        await connection.execute("BEGIN")
        # The dump waits for this, as it would for a long migration.
        await connection.execute("LOCK TABLE notification IN ACCESS EXCLUSIVE MODE")
        with started(wanted, "backup", str(tmp_path / "archive"), passphrase=folder / "passphrase") as process:
            await until_dumping(process)
            process.send_signal(number)
            assert await to_thread.run_sync(process.wait, PATIENCE) == status
        assert names_in(tmp_path) == []
        with anyio.fail_after(PATIENCE):
            while await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump'"):
                await anyio.sleep(0.02)


@contextmanager
def started(wanted: dict[str, str], *arguments: str, passphrase: Path) -> Generator[subprocess.Popen[str]]:
    words, env = command(wanted, *arguments, passphrase=passphrase)
    with subprocess.Popen(
        words, cwd=REPO, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def until_dumping(process: subprocess.Popen[str]) -> int:
    """The number of its `pg_dump`, once there is one."""
    with anyio.fail_after(PATIENCE):
        while True:
            if found := [child for child in children(process.pid) if "--snapshot=" in shown(child, "cmdline")]:
                return found[0]
            assert process.poll() is None
            await anyio.sleep(0.02)


def shown(pid: int, name: str) -> str:
    """What a process shows of itself: its arguments or its environment."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_text().replace("\0", "\n")
    return ""


def children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in file.read_text().split()]
    return found


async def test_an_interrupted_restore_changes_nothing(made: Made, folder: Path) -> None:
    _, wanted, archive = made
    data = made[0] / "data"
    before = await content(data)
    with started(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase") as process:
        assert process.stderr is not None
        await to_thread.run_sync(lambda: next(line for line in process.stderr or () if "loading" in line))
        process.send_signal(signal.SIGTERM)
        assert await to_thread.run_sync(process.wait, PATIENCE) == TERMINATED
    assert await content(data) == before


async def test_what_a_killed_restore_left_is_in_nobody_s_way(made: Made, folder: Path) -> None:
    _, wanted, archive = made
    data = made[0] / "data"
    before = await content(data)
    with started(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase") as process:
        assert process.stderr is not None
        await to_thread.run_sync(lambda: next(line for line in process.stderr or () if "loading" in line))
        process.kill()
    found = await content(data)
    assert {name: found[name] for name in before} == before
    said = await ran(wanted, "restore", "--replace", str(archive), passphrase=folder / "passphrase")
    kept = said.split("kept as '")[1].split("'")[0]
    async with database(data, "postgres") as connection:
        names = [row[0] for row in await connection.fetch("SELECT datname FROM pg_database WHERE datname ~ '^clawnet'")]
        assert sorted(names) == ["clawnet", kept]
        await connection.execute(f"DROP DATABASE {kept}")
