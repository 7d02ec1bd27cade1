"""OpenClaw's database and folders in a home, when the bot has made something else of them."""

import os
import sqlite3
import struct
import time
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from app.gateway import home as homes
from app.gateway import plugin_records
from app.gateway.install import megabytes

#: What the look may take, on a busy machine as well.
PATIENCE = plugin_records.STORE_BUDGET + 10
#: A function that does not come back, and one that wants memory.
FOR_EVER = (
    "instr(zeroblob(100000000), cast(replace(hex(zeroblob(25000000)), '00', cast(x'0000' as text)) || x'01' as blob))"
)
MUCH = """'{"index": {"installRecords": "' || hex(zeroblob(400000000)) || '"}}'"""


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    homes.make(tmp_path / "hana")
    (tmp_path / "hana" / "state").mkdir()
    return tmp_path / "hana"


def make_store(bot: Path, *statements: str) -> Path:
    place = bot / "state" / "openclaw.sqlite"
    with closing(sqlite3.connect(place)) as store:
        for statement in statements:
            store.execute(statement)
        store.commit()
    return place


@pytest.mark.parametrize("value", [FOR_EVER, MUCH], ids=["for-ever", "much"])
async def test_what_is_no_table_is_not_asked(value: str, bot: Path) -> None:
    columns = f"'plugins.installedIndex' AS state_key, {value} AS value_json"
    make_store(bot, f"CREATE VIEW config_machine_state AS SELECT {columns}")
    with anyio.fail_after(PATIENCE):
        assert not await plugin_records.read(bot)


async def test_a_look_that_is_given_up_ends_at_once(bot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(bot / "state" / "slow")
    program = bot / "state" / "store.py"
    program.write_text(f"open({str(bot / 'state' / 'slow')!r}).read()\n")
    monkeypatch.setattr(plugin_records, "STORE", program)
    began = time.monotonic()
    with anyio.move_on_after(0.5) as scope:
        await plugin_records.read(bot)
    assert scope.cancelled_caught
    monkeypatch.setattr(plugin_records, "STORE_BUDGET", 0.5)
    assert await plugin_records.read(bot) == []
    assert time.monotonic() - began < PATIENCE


@pytest.mark.parametrize("victim", ["pipe", "trigger"])
async def test_the_end_of_a_lease_runs_into_nothing(
    victim: str, bot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_records, "STORE_BUDGET", 2.0)
    place = make_store(bot, "CREATE TABLE state_leases (scope)")
    if victim == "pipe":
        os.mkfifo(tmp_path / "pipe")
        plant_journal(place, tmp_path / "pipe")
    else:
        with closing(sqlite3.connect(place)) as store:
            store.execute("INSERT INTO state_leases VALUES ('core:plugin-lifecycle')")
            store.execute(f"CREATE TRIGGER x BEFORE DELETE ON state_leases BEGIN SELECT {FOR_EVER}; END")
            store.commit()
    with anyio.fail_after(PATIENCE):
        await plugin_records.end_lease(bot)


async def test_a_look_removes_nothing_that_a_journal_names(bot: Path, tmp_path: Path) -> None:
    place = make_store(bot, "CREATE TABLE config_machine_state (state_key, value_json)")
    (tmp_path / "foreign").write_text("precious\n" * 3)
    plant_journal(place, tmp_path / "foreign")
    assert not await plugin_records.read(bot)
    assert (tmp_path / "foreign").exists()


def plant_journal(place: Path, named: Path) -> None:
    """As of a transaction that was cut short, and was one of several databases under this file's lead."""
    page, magic = 4096, bytes.fromhex("d9d505f920a163d7")
    head = magic + struct.pack(">IIIII", 0, 0, place.stat().st_size // page, 512, page)
    name = str(named).encode()
    end = struct.pack(">I", 0x40000000 // page + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    place.with_name("openclaw.sqlite-journal").write_bytes(head.ljust(512, b"\0") + end)


async def test_a_lease_that_a_killed_installation_left_is_ended(bot: Path) -> None:
    place = make_store(
        bot,
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE state_leases (scope TEXT NOT NULL, lease_key TEXT NOT NULL, PRIMARY KEY (scope, lease_key))",
        "INSERT INTO state_leases VALUES ('core:plugin-lifecycle', 'global'), ('other', 'global')",
    )
    await plugin_records.end_lease(bot)
    with closing(sqlite3.connect(place)) as store:
        assert store.execute("SELECT scope FROM state_leases").fetchall() == [("other",)]


def test_folders_of_any_depth_are_removed_and_measured(bot: Path) -> None:
    stage = bot / "npm" / "projects" / f"{plugin_records.STAGE}x"
    stage.mkdir(parents=True)
    (stage / "large").write_bytes(b"x" * 3_000_000)
    dig(stage, 1500)
    assert megabytes(bot / "npm") == 3
    plugin_records.remove_stages(bot)
    assert list((bot / "npm" / "projects").iterdir()) == []


def test_no_link_is_followed_to_measure(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "large").write_bytes(b"x" * 3_000_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "foreign")
    (tmp_path / "link").symlink_to(tmp_path / "foreign")
    assert [megabytes(tmp_path / name) for name in ("foreign", "folder", "link", "none")] == [3, 0, 0, 0]


def dig(folder: Path, depth: int) -> None:
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
