"""Keys change while everything else goes on, and nothing is ever lost by it."""

import asyncio
import contextlib
import io
import json
import random
import secrets
from typing import Any

import anyio
import pytest
import structlog
from piccolo.table import Table

from app import vault as vaults
from app.db import tables
from app.db.engine import DB
from app.domain.errors import Conflict, CredentialsUnreadable, KeyMismatch, KeyUnavailable
from app.domain.states import KeyRotationState
from app.services import data_keys, keys, rotation, sealed_rows
from app.services.rotation import Rotations
from app.vault import Vault
from tests.services.sealed_rows import KEY, channel, credentials, fill, key_ids, opened, stored

OTHER = secrets.token_hex(32)

#: Secret columns that hold the hash of a secret, from which nobody gets it back.
HASHES = {("app_user", "password_hash"), ("access_token", "secret_sha256")}


def quiet(_: Any) -> None:
    """Nobody listens."""


def test_a_change_of_keys_goes_through_every_sealed_column() -> None:
    every = [it for it in vars(tables).values() if isinstance(it, type) and issubclass(it, Table) and it is not Table]
    secret = {(t._meta.tablename, column._meta.name) for t in every for column in t._meta.secret_columns}
    assert secret - HASHES == {(it.table, it.column) for it in keys.SEALED}
    by_name = {table._meta.tablename: table for table in every}
    for sealed in keys.SEALED:
        columns = {column._meta.name for column in by_name[sealed.table]._meta.columns}
        assert {"id", "row_version", sealed.key_id} <= columns


async def test_everything_is_encrypted_anew_and_the_old_key_retires(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 30)
        before = {row["id"]: row["sealed"] for row in await DB.fetch("SELECT id, sealed FROM bot_secret")}
        rotations = Rotations(vault, quiet, 0)
        started = await rotations.start("every year")
        assert (started.from_key, started.to_key, started.total, started.done) == (1, 2, len(known), 0)
        assert await rotations.carry_on()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.total, ended.done, ended.failed) == ("SUCCEEDED", len(known), len(known), 0)
        assert ended.finished_at is not None
        assert await stored(vault) == known
        assert await key_ids() == {2}
        after = {row["id"]: row["sealed"] for row in await DB.fetch("SELECT id, sealed FROM bot_secret")}
        assert all(vaults.key_id(after[row]) == 2 and after[row] != before[row] for row in before)
        old, new = await data_keys.versions()
        assert (old.state, new.state, old.counts, new.counts["channel"]) == ("retired", "active", {}, 120)
        assert not await rotations.carry_on()
        notes = await DB.fetch("SELECT action, detail FROM audit_entry ORDER BY id")
        assert [note["action"] for note in notes] == ["keyRotationStart", "keyRotationEnd"]
        assert notes[0]["detail"]["reason"] == "every year"
        # Backups from before can still be read.
        assert (await keys.open_vault(KEY)).unseal(*next(iter(_sealed(before))))


def _sealed(rows: dict[Any, str]) -> list[tuple[str, vaults.Place]]:
    return [(sealed, keys.gateway_token_place(row_id)) for row_id, sealed in rows.items()]


async def test_an_empty_installation_changes_its_key_at_once(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        rotations = Rotations(vault, quiet, 0)
        started = await rotations.start(None)
        assert await rotations.carry_on()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.total, vault.active_key_id) == ("SUCCEEDED", 0, 2)


async def test_one_change_of_keys_at_a_time(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 20)
        here, there = (Rotations(vault, quiet, 0.3) for _ in range(2))
        await here.start(None)
        with pytest.raises(Conflict, match="under way already"):
            await there.start(None)
        assert sorted(await asyncio.gather(here.carry_on(), there.carry_on())) == [False, True]
        assert await stored(vault) == known
        await there.start(None)
        assert await there.carry_on()
        assert await stored(vault) == known
        assert await key_ids() == {3}


async def test_a_change_of_keys_that_nobody_carries_on_any_more_is_found(
    database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "WATCH_INTERVAL", 0.05)
    async with opened(database) as vault:
        known = await fill(vault, 3)
        other = Rotations(await keys.open_vault(KEY), quiet, 0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other.run)
            started = await Rotations(vault, quiet, 0).start(None)
            with anyio.fail_after(10):
                while await rotation.running():
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.done) == ("SUCCEEDED", len(known))


async def test_who_starts_at_the_same_moment_is_told_that_one_is_under_way(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        starts = await asyncio.gather(
            *[Rotations(vault, quiet, 0).start(None) for _ in range(5)], return_exceptions=True
        )
        assert sorted(type(it).__name__ for it in starts) == [*["Conflict"] * 4, "Rotation"]
        assert [key.key_id for key in await data_keys.versions()] == [1, 2]


async def test_a_process_that_does_not_know_the_new_key_yet_loses_nothing(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 3)
        stale = await keys.open_vault(KEY)
        rotations = Rotations(vault, quiet, 0.5)
        started = await rotations.start(None)
        (bot, *_) = [row["id"] for row in await DB.fetch("SELECT id FROM bot")]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rotations.carry_on)
            while await key_ids() != {2}:
                await anyio.sleep(0.01)
            # The first pass is through; what is sealed with the old key now is found by the next one.
            late = await channel(stale, bot, "late", known)
            assert stale.active_key_id == 1
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.done, ended.total) == ("SUCCEEDED", len(known), len(known))
        assert await stored(vault) == known
        (row,) = await DB.fetch("SELECT credentials, credentials_key_id FROM channel WHERE id = $1", late)
        assert row["credentials_key_id"] == 2
        # And what it must read needs a key that it has not seen.
        place = keys.channel_place(late, "slack", "botToken")
        with pytest.raises(KeyUnavailable):
            stale.unseal(row["credentials"]["botToken"], place)
        secret = await keys.unseal(stale, row["credentials"]["botToken"], place, "it")
        assert secret.reveal() == known["channel", late, "botToken"]
        assert stale.active_key_id == 2


async def test_a_row_that_says_the_wrong_key_is_encrypted_anew_all_the_same(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 2)
        rotations = Rotations(vault, quiet, 0)
        await rotations.start(None)
        await DB.fetch("UPDATE channel SET credentials_key_id = 2")
        assert await rotations.carry_on()
        for row in await DB.fetch("SELECT credentials FROM channel"):
            assert {vaults.key_id(sealed) for sealed in row["credentials"].values()} == {2}
        assert await stored(vault) == known


async def test_who_sets_a_credential_meanwhile_wins(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 40)
        rows = [row["id"] for row in await DB.fetch("SELECT id FROM channel")]
        rotations, writes = Rotations(vault, quiet, 0), 0
        keys_of = ("botToken", "appToken")

        async def write_on() -> None:
            nonlocal writes
            while True:
                row_id = random.choice(rows)
                plain = {key: secrets.token_urlsafe(24) for key in keys_of}
                async with DB.transaction():
                    # As services do: the seal is made before the row is held.
                    sealed, key_id = credentials(vault, row_id, "slack", plain), vault.active_key_id
                    await DB.fetch("SELECT id FROM channel WHERE id = $1 FOR UPDATE", row_id)
                    await asyncio.sleep(random.random() * 0.01)
                    await DB.fetch(
                        "UPDATE channel SET credentials = $2::jsonb, credentials_key_id = $3, "
                        "row_version = row_version + 1 WHERE id = $1",
                        row_id, sealed, key_id,
                    )  # fmt: skip
                for key, secret in plain.items():
                    known["channel", row_id, key] = secret
                writes += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(write_on)
            for number in range(2, 8):
                await rotations.start(None)
                assert await rotations.carry_on()
                assert vault.active_key_id == number
            tasks.cancel_scope.cancel()
        assert writes > 20
        # A write whose commit was cut off may have happened, so the row is compared by what can be opened.
        found = await stored(vault)
        assert found.keys() == known.keys()
        assert sum(found[key] != known[key] for key in known) <= 2 * 4
        assert await key_ids() <= {6, 7}


async def test_what_cannot_be_read_is_named_and_keeps_its_key(database: dict[str, Any], logged: io.StringIO) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 5)
        first, second, third = [row["id"] for row in await DB.fetch("SELECT id FROM bot_secret ORDER BY id LIMIT 3")]
        (sealed,) = [row["sealed"] for row in await DB.fetch("SELECT sealed FROM bot_secret WHERE id = $1", first)]
        await DB.fetch("UPDATE bot_secret SET sealed = $2 WHERE id = $1", second, sealed)
        await DB.fetch("UPDATE bot_secret SET sealed = 'sk-canary-plain' WHERE id = $1", third)
        rotations = Rotations(vault, quiet, 0)
        started = await rotations.start(None)
        assert await rotations.carry_on()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.failed, ended.done) == (KeyRotationState.FAILED, 2, len(known) - 2)
        assert [key.state for key in await data_keys.versions()] == ["decrypt", "active"]
        told = [json.loads(line) for line in logged.getvalue().splitlines() if "secret_unreadable" in line]
        assert {(it["table"], it["row"]) for it in told} == {("bot_secret", str(second)), ("bot_secret", str(third))}
        checked = await sealed_rows.verify(vault, quiet)
        assert {row_id for _, row_id in checked.unreadable} == {second, third}
        assert checked.opened == {"bot_secret": 3, "model_provider": 5, "channel": 20}
        with pytest.raises(CredentialsUnreadable) as refused:
            await keys.unseal(vault, sealed, keys.gateway_token_place(second), "the token")
        # Neither the log nor any error holds a word of it.
        for secret in [*known.values(), "sk-canary", sealed]:
            assert secret not in logged.getvalue()
            assert secret not in str(refused.value)
        # Set anew, and the next change of keys gets through.
        await DB.fetch("DELETE FROM bot_secret WHERE id = ANY($1)", [second, third])
        await rotations.start(None)
        assert await rotations.carry_on()
        assert [key.state for key in await data_keys.versions()] == ["retired", "retired", "active"]


async def test_a_row_that_somebody_holds_is_waited_for_by_nobody(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 3)
        rotations, is_held = Rotations(vault, quiet, 0), anyio.Event()
        await rotations.start(None)
        release = anyio.Event()

        async def hold() -> None:
            async with DB.transaction():
                await DB.fetch("SELECT id FROM model_provider LIMIT 1 FOR UPDATE")
                is_held.set()
                await release.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await is_held.wait()
            tasks.start_soon(rotations.carry_on)
            with anyio.fail_after(10):
                while (now := await rotation.running()) and now.done < len(known) - 1:
                    await anyio.sleep(0.01)
            assert now is not None
            assert now.done == len(known) - 1
            release.set()
        assert await key_ids() == {2}
        assert await stored(vault) == known


async def test_another_master_key_wraps_the_same_keys(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 2)
        fingerprint = vault.fingerprint("telegram", "botToken", "1:abc")
        sealed = await DB.fetch("SELECT id, sealed FROM bot_secret ORDER BY id")
        await Rotations(vault, quiet, 0).start(None)
        passphrase = "a passphrase of somebody who types it"
        assert await keys.rekey(passphrase, KEY)
        assert not await keys.rekey(passphrase, KEY)
        with pytest.raises(KeyMismatch, match=r"ENCRYPTION_KEY does not match .* \(wanted kek [0-9a-f]{16}, got"):
            await keys.open_vault(KEY)
        with pytest.raises(KeyMismatch, match="ENCRYPTION_KEY_PREVIOUS does not match"):
            await keys.rekey(OTHER, KEY)
        again = await keys.open_vault(passphrase)
        assert await stored(again) == known
        assert again.fingerprint("telegram", "botToken", "1:abc") == fingerprint
        assert await DB.fetch("SELECT id, sealed FROM bot_secret ORDER BY id") == sealed
        # A server that was started with the old one reads on, and makes no key that would not fit the others.
        assert await stored(vault) == known
        await DB.fetch("UPDATE key_rotation SET state = 'FAILED'")
        with pytest.raises(Conflict, match="start this server again"):
            await Rotations(vault, quiet, 0).start(None)
        assert len(await data_keys.versions()) == 2
        # The new one changes data keys as ever.
        rotations = Rotations(again, quiet, 0)
        await rotations.start(None)
        assert await rotations.carry_on()
        assert await keys.rekey(KEY, passphrase)
        assert await stored(await keys.open_vault(KEY)) == known


async def test_fingerprints_are_the_same_in_every_process_and_in_no_other_installation(
    database: dict[str, Any],
) -> None:
    async with opened(database) as vault:
        fingerprint = vault.fingerprint("telegram", "botToken", "1:abc")
        assert len(fingerprint) == 32
        # An installation from before there were any gets its key once, whoever is first.
        await DB.fetch(
            "UPDATE installation SET fingerprint_kek_id = NULL, fingerprint_nonce = NULL, fingerprint_wrapped = NULL"
        )
        found = await asyncio.gather(*[keys.open_vault(KEY) for _ in range(3)])
        (other,) = {it.fingerprint("telegram", "botToken", "1:abc") for it in found}
        assert other != fingerprint
        with pytest.raises(KeyMismatch):
            await keys.open_vault(OTHER)
        rotations = Rotations(found[0], quiet, 0)
        await rotations.start(None)
        assert await rotations.carry_on()
        assert (await keys.open_vault(KEY)).fingerprint("telegram", "botToken", "1:abc") == other


async def test_a_keyring_watched_takes_in_what_others_change(
    database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keys, "REFRESH_INTERVAL", 0.05)
    async with opened(database) as vault:
        other = await keys.open_vault(KEY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keys.watch, other)
            await Rotations(vault, quiet, 0).start(None)
            with anyio.fail_after(10):
                while other.active_key_id == 1:
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()


def test_no_key_shows_itself(logged: io.StringIO) -> None:
    wrapping, dek, prints = (secrets.token_bytes(32) for _ in range(3))
    vault = Vault("inst-1", {1: dek}, 1, wrapping, prints)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        print(repr(vault), str(vault), f"{vault!r}", [vault])
    structlog.get_logger().debug("vault", vault=vault, held={"it": vault})
    for secret in (wrapping, dek, prints):
        for text in (secret.hex(), repr(secret), str(list(secret))):
            assert text not in shown.getvalue() + logged.getvalue()
