"""Keys from the command line: nothing is lost, whenever it is killed and whoever writes meanwhile."""

import json
import os
import random
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.to_thread

from app.db.engine import DB
from app.domain.states import UserRole
from app.services import accounts, data_keys, keys, rotation, sealed_rows
from app.vault import Vault
from tests.commands.test_people import Clawnet
from tests.fake_openclaw import install
from tests.graphql.people import ERRORS, house, provider
from tests.harness import PATIENCE, REPO, environ
from tests.journeys import documents as docs
from tests.journeys import story
from tests.services.sealed_rows import Known, credentials, fill, key_ids, opened, stored

OTHER = secrets.token_hex(32)

#: Makes each write of a batch slow enough to be cut off in the middle.
SLOWED = """
CREATE FUNCTION slowed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;
"""


async def _slow(is_slow: bool) -> None:
    for table in ("bot_secret", "model_provider", "channel"):
        if is_slow:
            await DB.fetch(f"CREATE TRIGGER slowed BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION slowed()")
        else:
            await DB.fetch(f"DROP TRIGGER slowed ON {table}")


class Writer:
    """Sets credentials anew, one row after the other, and knows what it set."""

    def __init__(self, vault: Vault, known: Known) -> None:
        self._vault = vault
        self._known = known
        self._rows = list({row for table, row, _ in known if table == "channel"})
        self.writes = 0
        self.is_over = False

    async def run(self) -> None:
        while not self.is_over:
            await self._write(random.choice(self._rows))
            if self.writes % 20 == 0:
                await keys.refresh(self._vault)

    async def _write(self, row_id: UUID) -> None:
        plain = {key: secrets.token_urlsafe(24) for key in ("botToken", "appToken")}
        await DB.fetch(
            "UPDATE channel SET credentials = $2::jsonb, credentials_key_id = $3, row_version = row_version + 1 "
            "WHERE id = $1",
            row_id, credentials(self._vault, row_id, "slack", plain), self._vault.active_key_id,
        )  # fmt: skip
        for key, secret in plain.items():
            self._known["channel", row_id, key] = secret
        self.writes += 1


async def test_nothing_is_lost_however_often_a_change_of_keys_is_killed(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    clawnet, came_to = Clawnet(wanted), list[int]()
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        known = await fill(vault, 300)
        await DB.fetch(SLOWED)
        await _slow(True)
        writer = Writer(await keys.open_vault(wanted["ENCRYPTION_KEY"]), known)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            for _ in range(5):
                await _rotate_and_kill(clawnet, random.random() * 1.5)
                now = await rotation.running()
                if now is None:
                    break
                came_to.append(now.done)
                # At any moment everything can be opened, by who knows both keys.
                await keys.refresh(vault)
                assert (await sealed_rows.verify(vault, print)).unreadable == []
            writer.is_over = True
        await _slow(False)
        assert writer.writes > 20
        assert came_to == sorted(came_to)
        assert came_to[-1] > 0
        printed = await clawnet("keys", "rotate")
        assert "not readable: 0" in printed
        await keys.refresh(vault)
        assert await stored(vault) == known
        assert await key_ids() == {vault.active_key_id}
        assert {key.state for key in await data_keys.versions()} == {"retired", "active"}
        verified = await clawnet("keys", "verify")
        assert verified.splitlines() == [
            "bot_secret: 300 can be opened",
            "model_provider: 300 can be opened",
            "channel: 1200 can be opened",
        ]
        for secret in known.values():
            assert secret not in printed + verified


async def _rotate_and_kill(clawnet: Clawnet, after: float) -> None:
    """Starts a change of keys, or carries one on, and kills it so many seconds after it said so."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "app", "keys", "rotate"]
        process = subprocess.Popen(command, cwd=REPO, env=clawnet._environ, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "is active" not in (line := process.stderr.readline()):
            assert line, process.wait(PATIENCE)
        return process

    process = await anyio.to_thread.run_sync(start)
    # Any moment will do: this is what the test is about, and no wait for something.
    await anyio.sleep(after)
    process.kill()
    assert process.stderr is not None
    process.stderr.close()
    await anyio.to_thread.run_sync(process.wait)


#: Where a change of keys is held until it was killed: the write that waits, and how many values are through by then.
POINTS = {
    "before it began": ("INSERT ON key_rotation FOR EACH ROW", None),
    "in its first batch": ("UPDATE ON bot_secret FOR EACH ROW", 0),
    "when its first batch is counted": ("UPDATE OF done ON key_rotation FOR EACH ROW", 0),
    "between two batches": ("UPDATE OF done ON key_rotation FOR EACH ROW WHEN (OLD.done = 200)", 200),
    "between two tables": ("UPDATE ON channel FOR EACH ROW", 500),
    "when the old key ends": ("UPDATE ON keyring FOR EACH ROW WHEN (NEW.state = 'retired')", 1500),
    "when it ends itself": ("UPDATE OF state ON key_rotation FOR EACH ROW", 1500),
    "when that is noted": ("INSERT ON audit_entry FOR EACH ROW WHEN (NEW.action = 'keyRotationEnd')", 1500),
    "when administrators are told": ("INSERT ON notification FOR EACH ROW", 1500),
}
#: The advisory lock that a held write waits for, and the locks of this kind in this database.
HELD = 4711
ADVISORY = (
    "SELECT objid FROM pg_locks JOIN pg_database d ON d.oid = database "
    "WHERE locktype = 'advisory' AND datname = current_database()"
)


async def test_a_change_of_keys_is_carried_on_from_wherever_it_was_killed(
    database: dict[str, Any], tmp_path: Path
) -> None:
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    clawnet = Clawnet(wanted)
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        known = await fill(vault, 250)
        await accounts.add_user("Ada", UserRole.ADMIN)
        for point, (write, done) in POINTS.items():
            await _kill_at(clawnet, write)
            now = await rotation.running()
            assert (now and now.done) == done, point
            assert [key.state for key in await data_keys.versions()] == (["decrypt"] if now else []) + ["active"], point
            # At any moment everything can be opened, by who knows both keys.
            await keys.refresh(vault)
            assert await stored(vault) == known, point
        printed = await clawnet("keys", "rotate")
        assert f"encrypted with key 2: {len(known)}, not readable: 0" in printed
        assert await stored(vault) == known
        assert await key_ids() == {2}
        assert [key.state for key in await data_keys.versions()] == ["retired", "active"]
        # What was cut off left no trace: one change, one beginning, one end, one notification.
        assert len(await DB.fetch("SELECT id FROM key_rotation")) == 1
        notes = await DB.fetch("SELECT action FROM audit_entry ORDER BY id")
        assert [note["action"] for note in notes] == ["keyRotationStart", "keyRotationEnd"]
        assert len(await DB.fetch("SELECT id FROM notification")) == 1


async def _kill_at(clawnet: Clawnet, write: str, deed: str = "rotate") -> None:
    """Runs a change of keys until its connection waits in this write, and kills it there."""
    await DB.fetch(
        "CREATE OR REPLACE FUNCTION held() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"PERFORM pg_advisory_xact_lock_shared({HELD}); RETURN NEW; END $$"
    )
    await DB.fetch(f"CREATE TRIGGER held BEFORE {write} EXECUTE FUNCTION held()")
    holder = await DB.connect()
    try:
        await holder.execute(f"SELECT pg_advisory_lock({HELD})")
        command = [sys.executable, "-m", "app", "keys", deed]
        async with await anyio.open_process(command, cwd=REPO, env=clawnet._environ, stderr=None) as process:
            with anyio.fail_after(PATIENCE):
                while not await _waiting(holder):
                    assert process.returncode is None
                    await anyio.sleep(0.02)
            process.kill()
            assert await process.wait() == -9
    finally:
        await holder.close()
    with anyio.fail_after(PATIENCE):
        # Its connections find that out one after the other.
        while await DB.fetch(ADVISORY):
            await anyio.sleep(0.02)
    await DB.fetch(f"DROP TRIGGER held ON {write.partition(' ON ')[2].split()[0]}")


async def _waiting(holder: Any) -> bool:
    return await holder.fetchval(f"SELECT EXISTS ({ADVISORY} AND objid = $1 AND NOT granted)", HELD)


async def test_keys_are_changed_beside_a_server_that_goes_on(database: dict[str, Any], tmp_path: Path) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0"))
    async with house(database, tmp_path) as api:
        saved = await provider(api, "own", apiKey="sk-canary-0123456789")
        printed = await clawnet("keys", "rotate", "--reason", "every year")
        assert "encrypted with key 2: 1, not readable: 0" in printed
        # The server sees it at its next look, or when it needs the key; what it seals until then can be read.
        again = await provider(api, "own", id=saved["id"], apiKey="sk-canary-9876543210")
        assert again["id"] == saved["id"]
        assert "model_provider: 1 can be opened" in await clawnet("keys", "verify")
        status = await clawnet("keys", "status")
        lines = [line.split() for line in status.splitlines()]
        assert [line[:2] for line in lines[1:3]] == [["1", "retired"], ["2", "active"]]
        assert "last change: to key 2, succeeded, 1 of 1 encrypted" in status
        (note, *_) = await DB.fetch("SELECT address, detail FROM audit_entry WHERE action = 'keyRotationStart'")
        assert note["address"].startswith("command line")
        assert note["detail"]["reason"] == "every year"


async def test_a_running_bot_stays_and_the_next_start_finds_the_new_key(
    database: dict[str, Any], tmp_path: Path
) -> None:
    clawnet = Clawnet(environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0"))
    async with house(database, tmp_path, install(tmp_path)) as api:
        await provider(api, "own", apiKey="sk-canary-0123456789", baseUrl="http://127.0.0.1:9/v1", models=[{"id": "m"}])
        bot = await story.make_bot(api, model="own/m")
        given = {"botId": bot["id"]}
        assert (await api.run(docs.BOT_START, input=given))["userErrors"] == []
        before = await DB.fetch("SELECT pid, nonce, config_revision, status_seq FROM bot_process")
        # This server has not looked at its keyring since, and everything in it is sealed with the new key.
        await clawnet("keys", "rotate")
        assert await DB.fetch("SELECT pid, nonce, config_revision, status_seq FROM bot_process") == before
        restart = f"mutation($input: BotRestartInput!) {{ botRestart(input: $input) {{ bot {{ id }} {ERRORS} }} }}"
        assert (await api.run(restart, input=given))["userErrors"] == []
        config = (tmp_path / "data/openclaw/bots" / bot["agentId"] / "config.json5").read_text()
        assert "sk-canary-0123456789" in config


async def test_what_cannot_be_opened_is_named_with_status_1(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    clawnet = Clawnet(wanted)
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        known = await fill(vault, 2)
        (row, *_) = [row_id for table, row_id, _ in known if table == "channel"]
        await DB.fetch(
            "UPDATE channel SET credentials = $2::jsonb WHERE id = $1",
            row, json.dumps({"botToken": vault.seal("sk-canary", keys.provider_place(row))}),
        )  # fmt: skip
        refused = await clawnet("keys", "verify", status=1)
        assert f"channel {row}: cannot be opened" in refused
        assert "sk-canary" not in refused
        assert "`clawnet keys verify` names them" in await clawnet("keys", "rotate", status=1)
        await DB.fetch("DELETE FROM channel WHERE id = $1", row)
        await clawnet("keys", "rotate")
        await clawnet("keys", "verify")


async def test_old_keys_are_deleted_with_a_word_about_backups(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    clawnet = Clawnet(wanted)
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        known = await fill(vault, 2)
        (old,) = await DB.fetch("SELECT id, sealed FROM bot_secret LIMIT 1")
        await clawnet("keys", "rotate")
        assert "no key has been out of use for 30 days" in await clawnet("keys", "prune")
        await DB.fetch("UPDATE keyring SET retired_at = '2026-01-02' WHERE key_id = 1")
        (now,) = await DB.fetch("SELECT sealed FROM bot_secret WHERE id = $1", old["id"])
        await DB.fetch("UPDATE bot_secret SET sealed = $2 WHERE id = $1", old["id"], old["sealed"])
        assert "still needed: key 1 (1 rows); nothing was deleted" in await clawnet("keys", "prune", status=1)
        await DB.fetch("UPDATE bot_secret SET sealed = $2 WHERE id = $1", old["id"], now["sealed"])
        assert await clawnet("keys", "prune", "--days", "300") == (
            "deleted: key 1\n"
            "rows out of backups from before 2026-01-02 cannot be opened here any more; a backup that is restored as a "
            "whole brings its keys\n"
        )
        assert await stored(await keys.open_vault(wanted["ENCRYPTION_KEY"])) == known


async def test_a_bar_shows_at_a_terminal_how_far_it_is(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None, CLAWNET_KEY_ROTATION_WAIT="0")
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        known = await fill(vault, 1)
    ours, theirs = os.openpty()
    try:
        command = [sys.executable, "-m", "app", "keys", "rotate"]
        process = await anyio.open_process(command, cwd=REPO, env=Clawnet(wanted)._environ, stderr=theirs)
        async with process:
            with anyio.fail_after(PATIENCE):
                assert await process.wait() == 0
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert f"\r  [{'#' * 40}] 100%  {len(known)} of {len(known)} encrypted" in shown


async def test_another_master_key_takes_the_place_of_the_one_before(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None)
    old = wanted["ENCRYPTION_KEY"]
    async with opened(database, old) as vault:
        known = await fill(vault, 2)
        # Killed at its last write, it has changed nothing.
        killed = Clawnet({**wanted, "ENCRYPTION_KEY": OTHER, "ENCRYPTION_KEY_PREVIOUS": old})
        await _kill_at(killed, "UPDATE OF kdf ON installation FOR EACH ROW", "rekey")
        assert await stored(await keys.open_vault(old)) == known
    assert "ENCRYPTION_KEY_PREVIOUS is not set" in await Clawnet(wanted)("keys", "rekey", status=78)
    changed = Clawnet({**wanted, "ENCRYPTION_KEY": OTHER, "ENCRYPTION_KEY_PREVIOUS": old})
    wrong = Clawnet({**wanted, "ENCRYPTION_KEY": OTHER, "ENCRYPTION_KEY_PREVIOUS": OTHER[::-1]})
    assert "ENCRYPTION_KEY_PREVIOUS does not match" in await wrong("keys", "rekey", status=78)
    assert "start every server again with it" in await changed("keys", "rekey")
    assert "already" in await changed("keys", "rekey")
    assert "does not match this database" in await Clawnet(wanted)("keys", "verify", status=78)
    printed = await changed("keys", "verify")
    assert OTHER not in printed
    async with opened(database, OTHER) as vault:
        assert await stored(vault) == known
        actions = [row["action"] for row in await DB.fetch("SELECT action FROM audit_entry")]
        assert actions == ["keysRekey"]


async def test_the_key_file_beside_the_data_is_the_one_before(database: dict[str, Any], tmp_path: Path) -> None:
    wanted = environ(tmp_path, database, None)
    (tmp_path / "data").mkdir(mode=0o700)
    file = tmp_path / "data" / "encryption.key"
    file.write_text(wanted["ENCRYPTION_KEY"])
    file.chmod(0o600)
    async with opened(database, wanted["ENCRYPTION_KEY"]) as vault:
        await fill(vault, 1)
    changed = Clawnet({**wanted, "ENCRYPTION_KEY": OTHER})
    assert "start every server again with it" in await changed("keys", "rekey")
    assert "bot_secret: 1 can be opened" in await changed("keys", "verify")
