"""A server whose keyring is not the database's any more seals nothing, says so, and loses nobody's secret."""

import hashlib
import io
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import pytest

from app.db import migrate
from app.db.engine import DB
from app.domain.errors import Conflict, Unavailable
from app.domain.ids import new_id
from app.services import data_keys, keys
from app.services.rotation import Rotations
from app.vault import Vault
from tests.graphql.people import Caller, house
from tests.harness import PATIENCE
from tests.journeys import story
from tests.services.sealed_rows import KEY, Known, channel, fill, opened
from tests.services.test_rotation import quiet

#: As the settings of a house have it, and the one that it is changed to.
OLD, NEW = hashlib.sha256(b"a key for tests").hexdigest(), hashlib.sha256(b"another key").hexdigest()
ERRORS = "userErrors { code message field }"
SAVE = f"mutation($input: ModelProviderSaveInput!) {{ modelProviderSave(input: $input) {{ {ERRORS} }} }}"
OPEN = f"mutation($input: ChannelCreateInput!) {{ channelCreate(input: $input) {{ channel {{ id }} {ERRORS} }} }}"
CONSTRAINTS = "SELECT conname FROM pg_constraint WHERE conname LIKE '%\\_keyring'"
MAKE = f"mutation($input: BotCreateInput!) {{ botCreate(input: $input) {{ bot {{ id }} {ERRORS} }} }}"


async def _rotate(vault: Vault) -> None:
    rotations = Rotations(vault, quiet, 0)
    await rotations.start(None)
    assert await rotations.carry_on()
    await DB.fetch("UPDATE keyring SET retired_at = now() - interval '40 days' WHERE state = 'retired'")


async def _failing(api: Caller) -> dict[str, str]:
    return (await api.http.get(f"{api.url}/readyz")).json()["failing"]


async def _sealed() -> dict[str, int]:
    return {it.table: sum((await DB.fetch(f"SELECT count(*) AS n FROM {it.table}"))[0].values()) for it in keys.SEALED}


@asynccontextmanager
async def _left_behind(database: dict[str, Any], folder: Path) -> AsyncGenerator[tuple[Caller, dict[str, Any]]]:
    """A server that missed a change of the master key, of the data key, and the end of the old one."""
    async with house(database, folder) as api:
        bot = await story.make_bot(api)
        assert await keys.rekey(NEW, OLD)
        other = await keys.open_vault(NEW)
        await _rotate(other)
        assert [key.key_id for key in await data_keys.prune()] == [1]
        yield api, bot


async def _try(api: Caller, bot: dict[str, Any], what: str) -> str:
    """Sends a secret of each table's kind; how it is refused."""
    secrets = {"botToken": "xoxb-1", "appToken": "xapp-1"}
    document, given = {
        "provider": (SAVE, {"name": "late", "api": "OPENAI_COMPLETIONS", "apiKey": "sk-0123456789"}),
        "channel": (OPEN, {"botId": bot["id"], "provider": "slack", "name": "late", "credentials": secrets}),
        "bot": (MAKE, {"name": "late", "model": "local/echo"}),
    }[what]
    (error,) = (await api.ask(document, input=given))["errors"]
    assert error["extensions"]["code"] == "UNAVAILABLE", error
    return error["message"]


@pytest.mark.parametrize("what", ["provider", "channel", "bot"])
async def test_a_server_that_missed_a_change_of_keys_loses_no_secret(
    what: str, database: dict[str, Any], tmp_path: Path
) -> None:
    async with _left_behind(database, tmp_path) as (api, bot):
        before = await _sealed()
        # It has not looked yet: the database refuses the key that is gone.
        assert "started again with the new ENCRYPTION_KEY" in await _try(api, bot, what)
        assert await _sealed() == before
        assert "started again" in (await _failing(api))["keys"]


async def test_a_server_that_knows_it_missed_a_change_of_keys_seals_nothing(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        assert await keys.rekey(NEW, OLD)
        assert set(await _failing(api)) == {"keys"}
        before = await _sealed()
        for what in ("provider", "channel", "bot"):
            assert "started again with the new ENCRYPTION_KEY" in await _try(api, bot, what)
        assert await _sealed() == before


async def test_a_server_is_ready_again_when_its_keyring_is_the_databases(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        assert await keys.rekey(NEW, OLD)
        assert set(await _failing(api)) == {"keys"}
        assert await keys.rekey(OLD, NEW)
        assert await _failing(api) == {}
        await story.make_bot(api)


async def test_a_server_whose_key_the_database_never_had_seals_nothing(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await keys.add_key(replace(vault.new_key(2), state="decrypt"))
        await DB.fetch("UPDATE keyring SET state = CASE key_id WHEN 2 THEN 'active' ELSE 'decrypt' END")
        await keys.refresh(vault)
        assert (vault.active_key_id, vault.trouble) == (2, None)
        # As when an older database was put in the place of this one.
        await DB.fetch("DELETE FROM keyring WHERE key_id = 2")
        await DB.fetch("UPDATE keyring SET state = 'active'")
        assert "lacks the key" in (await keys.trouble(vault) or "")
        with pytest.raises(Unavailable, match="lacks the key"):
            vault.seal("late", keys.provider_place(new_id()))


async def test_a_watch_that_meets_another_master_key_ends_all_sealing(
    database: dict[str, Any], monkeypatch: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    monkeypatch.setattr(keys, "REFRESH_INTERVAL", 0.01)
    async with opened(database) as vault:
        await fill(vault, 1)
        await keys.rekey(NEW, KEY)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keys.watch, vault)
            with anyio.fail_after(PATIENCE):
                while "master_key_changed" not in logged.getvalue():
                    await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()
        with pytest.raises(Unavailable, match="the master key was changed"):
            vault.seal("late", keys.provider_place(new_id()))


async def test_a_key_that_went_is_refused_and_the_next_try_has_the_new_one(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 1)
        late, bot = await keys.open_vault(KEY), await _bot()
        await _rotate(vault)
        await data_keys.prune()
        with pytest.raises(Unavailable, match="is gone; try again"):
            async with keys.sealing(late):
                await channel(late, bot, "late", Known())
        await channel(late, bot, "late", Known())
        assert late.active_key_id == 2


async def test_a_row_written_between_the_count_and_the_end_of_a_key_keeps_it(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 1)
        late, bot = await keys.open_vault(KEY), await _bot()
        await _rotate(vault)
        written = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_write_slowly, late, bot, written)
            await written.wait()
            # It counts, sees nothing of this row, and waits for it to be there.
            with pytest.raises(Conflict, match="still needed: a row was written"):
                await data_keys.prune()
        assert [key.key_id for key in await data_keys.versions()] == [1, 2]


async def _write_slowly(late: Vault, bot: UUID, written: anyio.Event) -> None:
    """Commits once somebody waits for it."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM keyring%'"
    async with DB.transaction():
        await channel(late, bot, "late", Known())
        written.set()
        with anyio.fail_after(PATIENCE):
            while not await DB.fetch(waiting):
                await anyio.sleep(0.01)
                await DB.fetch("SELECT pg_stat_clear_snapshot()")


async def _bot() -> UUID:
    return (await DB.fetch("SELECT id FROM bot LIMIT 1"))[0]["id"]


async def test_every_column_that_names_a_key_names_one_of_the_keyring(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 1)
        for column in keys.SEALED:
            with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
                await DB.fetch(f"UPDATE {column.table} SET {column.key_id} = 99")
            assert getattr(caught.value, "constraint_name", None) == f"{column.table}_keyring"
        with pytest.raises((asyncpg.ForeignKeyViolationError, asyncpg.RestrictViolationError)):
            await DB.fetch("DELETE FROM keyring")
        assert len(await DB.fetch(f"{CONSTRAINTS} AND convalidated")) == len(keys.SEALED)


async def test_rows_whose_key_is_gone_already_do_not_keep_the_server_down(
    database: dict[str, Any], logged: io.StringIO
) -> None:
    async with opened(database) as vault:
        await fill(vault, 2)
        # As a database that lost a key before there were foreign keys.
        for column in keys.SEALED:
            await DB.fetch(f"ALTER TABLE {column.table} DROP CONSTRAINT {column.table}_keyring")
        await DB.fetch("UPDATE channel SET credentials_key_id = 7 WHERE id = (SELECT id FROM channel LIMIT 1)")
        await DB.fetch("DELETE FROM migration WHERE name = '2026-11-24T16:40:00:000000'")
        assert await migrate.run() == 1
        (told,) = [json.loads(line) for line in logged.getvalue().splitlines() if "rows_without_key" in line]
        assert (told["table"], told["rows"]) == ("channel", 1)
        valid = {row["conname"] for row in await DB.fetch(f"{CONSTRAINTS} AND convalidated")}
        assert valid == {"bot_secret_keyring", "model_provider_keyring"}
        # What is written from now on is checked there as well, and an old row may be changed and go.
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await DB.fetch("UPDATE channel SET credentials_key_id = 8")
        await DB.fetch("UPDATE channel SET name = 'renamed'")
        await DB.fetch("DELETE FROM channel WHERE credentials_key_id = 7")
