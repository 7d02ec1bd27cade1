"""Which columns are sealed, which keys they need, when an old key may go, and who hears of its end."""

from pathlib import Path
from typing import Any

import pytest

from app.db.engine import DB
from app.domain.errors import Conflict, KeyMismatch
from app.domain.states import UserRole
from app.services import accounts, data_keys, keys, rotation
from app.services.rotation import Rotations
from app.vault import Vault
from tests.graphql.people import house, provider
from tests.graphql.test_channels import channel
from tests.journeys import story
from tests.services.sealed_rows import KEY, fill, opened, stored
from tests.services.test_rotation import quiet

#: A column that numbers data keys and belongs to no secret.
OF_THE_RING = {("keyring", "key_id")}


async def _columns(*types: str) -> set[tuple[str, str]]:
    rows = await DB.fetch(
        "SELECT table_name, column_name FROM information_schema.columns JOIN information_schema.tables t "
        "USING (table_schema, table_name) WHERE table_schema = 'public' AND t.table_type = 'BASE TABLE' "
        "AND data_type = ANY($1)",
        list(types),
    )
    return {(row["table_name"], row["column_name"]) for row in rows}


async def test_every_column_that_numbers_a_data_key_belongs_to_a_sealed_one(database: dict[str, Any]) -> None:
    async with opened(database):
        integers, texts = await _columns("integer", "bigint"), await _columns("text", "jsonb")
    numbers = {it for it in integers if it[1] == "key_id" or it[1].endswith("_key_id")}
    assert numbers - OF_THE_RING == {(it.table, it.key_id) for it in keys.SEALED}
    for sealed in keys.SEALED:
        assert (sealed.table, sealed.column) in texts
        assert (sealed.table, "row_version") in integers


async def test_ciphertext_is_found_in_the_sealed_columns_and_nowhere_else(
    database: dict[str, Any], tmp_path: Path
) -> None:
    async with house(database, tmp_path) as api:
        bot = await story.make_bot(api)
        await channel(api, bot, provider="slack", credentials={"botToken": "xoxb-1", "appToken": "xapp-1"})
        await provider(api, "own", apiKey="sk-canary-0123456789")
        found = set[tuple[str, str]]()
        every = await _columns("text", "character varying", "jsonb", "json", "bytea", "ARRAY")
        assert {(it.table, it.column) for it in keys.SEALED} <= every
        for table, column in every:
            begins = "\\x434e01%" if (table, column) in await _columns("bytea") else "%Q04B%"
            if await DB.fetch(f'SELECT 1 FROM "{table}" WHERE "{column}"::text LIKE $1 LIMIT 1', begins):
                found.add((table, column))
        assert found == {(it.table, it.column) for it in keys.SEALED}


async def _rotated(vault: Vault, days_ago: int) -> None:
    rotations = Rotations(vault, quiet, 0)
    await rotations.start(None)
    assert await rotations.carry_on()
    await DB.fetch(
        "UPDATE keyring SET retired_at = now() - make_interval(days => $1) WHERE state = 'retired'", days_ago
    )


async def _numbers() -> list[int]:
    return [key.key_id for key in await data_keys.versions()]


async def test_old_keys_go_once_they_were_out_of_use_for_long_enough(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 3)
        assert await data_keys.prune() == []
        await _rotated(vault, 29)
        assert await data_keys.prune() == []
        await _rotated(vault, 31)
        await DB.fetch("UPDATE keyring SET retired_at = now() WHERE key_id = 2")
        assert [key.key_id for key in await data_keys.prune()] == [1]
        assert await _numbers() == [2, 3]
        (note,) = await DB.fetch("SELECT detail FROM audit_entry WHERE action = 'keysPrune'")
        assert note["detail"] == {"keys": [1]}
        # Nothing is lost, keys still change, and no number comes again.
        fresh = await keys.open_vault(KEY)
        assert await stored(fresh) == known
        await _rotated(fresh, 0)
        assert await _numbers() == [2, 3, 4]


@pytest.mark.parametrize(
    "back",
    [
        "UPDATE channel SET credentials = $2::jsonb WHERE id = $1",
        "UPDATE channel SET credentials_key_id = 1 WHERE id = $1 AND $2::text IS NOT NULL",
        "UPDATE channel SET credentials = '[]', credentials_key_id = 1 WHERE id = $1 AND $2::text IS NOT NULL",
    ],
    ids=["a value names it", "a row says so", "a damaged row says so"],
)
async def test_a_key_that_one_row_needs_after_all_stays(database: dict[str, Any], back: str) -> None:
    async with opened(database) as vault:
        await fill(vault, 2)
        (row,) = await DB.fetch("SELECT id, credentials::text AS it FROM channel ORDER BY id LIMIT 1")
        await _rotated(vault, 40)
        await _rotated(vault, 40)
        await DB.fetch(back, row["id"], row["it"])
        with pytest.raises(Conflict, match=r"still needed: key 1 \(1 rows\); nothing was deleted"):
            await data_keys.prune()
        assert await _numbers() == [1, 2, 3]
        await DB.fetch("DELETE FROM channel WHERE id = $1", row["id"])
        assert [key.key_id for key in await data_keys.prune()] == [1, 2]


async def test_a_key_that_something_unreadable_asks_for_is_not_even_old(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 1)
        await DB.fetch("UPDATE bot_secret SET sealed = 'x'")
        await _rotated(vault, 40)
        assert await data_keys.prune(1) == []
        assert await _numbers() == [1, 2]


async def test_administrators_are_told_how_a_change_of_keys_ended(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 2)
        wanted = [await accounts.add_user(name, UserRole.ADMIN) for name in ("Ada", "Bo")]
        gone = await accounts.add_user("Cleo", UserRole.ADMIN)
        await accounts.add_user("Dan", UserRole.OBSERVER)
        await DB.fetch("UPDATE app_user SET disabled_at = now() WHERE id = $1", gone)
        woken = set[str]()
        rotations = Rotations(vault, woken.update, 0)
        await rotations.start(None)
        assert await rotations.carry_on()
        await DB.fetch("UPDATE channel SET credentials = '[\"sk-canary\"]'")
        await rotations.start(None)
        assert await rotations.carry_on()
        told = await DB.fetch('SELECT "user", kind, title, body, bot FROM notification ORDER BY created_at, "user"')
        assert [row["user"] for row in told] == sorted(wanted) * 2
        assert {(row["kind"], row["bot"]) for row in told} == {("KEY_ROTATION", None)}
        ended, failed = told[::2]
        assert (ended["title"], ended["body"]) == ("The key was changed to version 2", "Encrypted with it: 12")
        assert failed["title"] == "The change of the key to version 3 left something out"
        assert failed["body"].startswith("Encrypted with it: 4, not readable: 4. `clawnet keys verify` names it")
        assert "canary" not in failed["body"]
        assert {f"notifications:user:{user}" for user in wanted} <= woken
        assert f"notifications:user:{gone}" not in woken


async def test_no_new_keyring_is_made_where_something_is_sealed(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        await fill(vault, 1)
        for column in keys.SEALED:  # Whoever loses them does not ask.
            await DB.fetch(f"ALTER TABLE {column.table} DROP CONSTRAINT {column.table}_keyring")
        await DB.fetch("DELETE FROM keyring")
        await DB.fetch("DELETE FROM installation")
        for emptied in ("DELETE FROM bot_secret", "UPDATE model_provider SET api_key = NULL", "DELETE FROM channel"):
            with pytest.raises(KeyMismatch, match="holds secrets, and this database has no keys: restore"):
                await keys.open_vault(KEY)
            assert await keys.installation() is None
            await DB.fetch(emptied)
        assert (await keys.open_vault(KEY)).active_key_id == 1
        assert await rotation.running() is None
