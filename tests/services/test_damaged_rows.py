"""A row that is damaged, however it is, is named, stays as it is, and holds up nothing else."""

import io
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from app import vault as vaults
from app.db.engine import DB
from app.domain.states import KeyRotationState
from app.services import data_keys, keys, rotation, sealed_rows
from app.services.rotation import Rotations
from app.vault import Vault
from tests.services.sealed_rows import Known, channel, credentials, fill, key_ids, opened, stored
from tests.services.test_rotation import quiet

#: What credentials may have become, with the number of values in it that can be read and that cannot.
Damage = tuple[Callable[[Vault, UUID], str], int, int]

CANARY = "xoxb-canary-plain"


def _leaf(vault: Vault, row: UUID, key: str = "botToken") -> str:
    return vault.seal("good", keys.channel_place(row, "slack", key))


def _of_key(vault: Vault, row: UUID, number: int) -> str:
    return vaults.encrypt(b"x", number, bytes(32), vault.install_id, keys.channel_place(row, "slack", "botToken"))


def _flipped(vault: Vault, row: UUID) -> str:
    text = _leaf(vault, row)
    return text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]


DAMAGED: dict[str, Damage] = {
    "a text": (lambda _v, _r: json.dumps(CANARY), 0, 1),
    "a list": (lambda _v, _r: json.dumps([CANARY, CANARY]), 0, 1),
    "a number": (lambda _v, _r: "5", 0, 1),
    "null": (lambda _v, _r: "null", 0, 1),
    "plain text in a leaf": (lambda v, r: json.dumps({"botToken": CANARY, "appToken": _leaf(v, r, "appToken")}), 1, 1),
    "a leaf that is an object": (lambda _v, _r: json.dumps({"botToken": {"token": CANARY}}), 0, 1),
    "leaves of other types": (lambda _v, _r: '{"a": 5, "b": null, "c": [], "d": true, "e": 1e400}', 0, 5),
    "an unknown key": (
        lambda v, r: json.dumps({"botToken": _of_key(v, r, 99), "appToken": _leaf(v, r, "appToken")}),
        1,
        1,
    ),
    "another key's number": (lambda v, r: json.dumps({"botToken": _of_key(v, r, 1)}), 0, 1),
    "a flipped bit": (lambda v, r: json.dumps({"botToken": _flipped(v, r)}), 0, 1),
    "another leaf's place": (lambda v, r: json.dumps({"appToken": _leaf(v, r)}), 0, 1),
    "a name beyond all bounds": (lambda v, r: json.dumps({"x" * 70_000: _leaf(v, r)}), 0, 1),
    "a document that is too deep": (lambda _v, _r: "[" * 3_000 + "]" * 3_000, 0, 1),
}


async def _damage(vault: Vault) -> tuple[dict[UUID, str], int, int]:
    """A channel for each damage: what it holds, and how many values can and cannot be read."""
    bot = (await DB.fetch("SELECT id FROM bot LIMIT 1"))[0]["id"]
    held, good, bad = dict[UUID, str](), 0, 0
    for number, (make, readable, unreadable) in enumerate(DAMAGED.values()):
        row = await channel(vault, bot, f"damaged{number}", Known())
        held[row] = make(vault, row)
        await DB.fetch("UPDATE channel SET credentials = $2::jsonb WHERE id = $1", row, held[row])
        good, bad = good + readable, bad + unreadable
    return held, good, bad


async def _now(row: UUID) -> str:
    return (await DB.fetch("SELECT credentials::text AS it FROM channel WHERE id = $1", row))[0]["it"]


async def test_every_damaged_row_is_named_and_everything_else_gets_the_new_key(
    database: dict[str, Any], logged: io.StringIO
) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 5)
        held, good, bad = await _damage(vault)
        before = {row: await _now(row) for row in held}
        seen = list[int]()
        checked = await sealed_rows.verify(vault, seen.append)
        assert {row for _, row in checked.unreadable} == set(held)
        assert checked.opened == {"bot_secret": 5, "model_provider": 5, "channel": 20 + good}
        assert seen[-1] == len(known) + good + bad
        assert sum(sum(key.counts.values()) for key in await data_keys.versions()) == seen[-1]
        rotations = Rotations(vault, quiet, 0)
        started = await rotations.start(None)
        assert started.total == seen[-1]
        assert await rotations.carry_on()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.done, ended.failed) == (KeyRotationState.FAILED, len(known) + good, bad)
        assert ended.total == ended.done + ended.failed
        told = [json.loads(line) for line in logged.getvalue().splitlines() if "secret_unreadable" in line]
        assert {(it["table"], it["row"]) for it in told} == {("channel", str(row)) for row in held}
        assert "canary" not in logged.getvalue()
        # What can be read has the new key, also beside what cannot; that is as it was, to the letter.
        for row, (_, readable, _) in zip(held, DAMAGED.values(), strict=True):
            if not readable:
                assert await _now(row) == before[row]
                continue
            was, now = json.loads(before[row]), json.loads(await _now(row))
            assert now["botToken"] == was["botToken"]
            assert vaults.key_id(now["appToken"]) == 2
            assert vault.unseal(now["appToken"], keys.channel_place(row, "slack", "appToken")).reveal() == "good"
        assert {row for _, row in (await sealed_rows.verify(vault, quiet)).unreadable} == set(held)
        assert [key.state for key in await data_keys.versions()] == ["decrypt", "active"]


async def test_damaged_rows_that_were_mended_are_no_failure_any_more(database: dict[str, Any]) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 2)
        held, _, _ = await _damage(vault)
        rotations = Rotations(vault, quiet, 0)
        await rotations.start(None)
        assert await rotations.carry_on()
        first, *rest = held
        await DB.fetch("DELETE FROM channel WHERE id = ANY($1)", rest)
        again = await rotations.start(None)
        assert await rotations.carry_on()
        ended = await rotation.get(again.id)
        assert ended is not None
        assert (ended.state, ended.failed) == (KeyRotationState.FAILED, 1)
        # Its owner sets the credentials anew, as services write them.
        mended = credentials(vault, first, "slack", {"botToken": "new"})
        await DB.fetch(
            "UPDATE channel SET credentials = $2::jsonb, credentials_key_id = $3, row_version = row_version + 1 "
            "WHERE id = $1",
            first, mended, vault.active_key_id,
        )  # fmt: skip
        last = await rotations.start(None)
        assert await rotations.carry_on()
        ended = await rotation.get(last.id)
        assert ended is not None
        assert (ended.state, ended.failed, ended.done) == (KeyRotationState.SUCCEEDED, 0, len(known) + 1)
        assert await stored(vault) == {**known, ("channel", first, "botToken"): "new"}
        assert await key_ids() == {4}
        assert [key.state for key in await data_keys.versions()] == ["retired"] * 3 + ["active"]


@pytest.mark.parametrize("value", ["", "sk-canary", "Q04B", "Q04BAAAAY2RlZg=="])
async def test_a_damaged_value_in_a_column_of_its_own_is_named(database: dict[str, Any], value: str) -> None:
    async with opened(database) as vault:
        known = await fill(vault, 2)
        rows = [(table, row) for table, row, _ in known if table != "channel"][:2]
        for (table, row), column in zip(rows, ("sealed", "api_key"), strict=True):
            await DB.fetch(f"UPDATE {table} SET {column} = $2 WHERE id = $1", row, value)
        rotations = Rotations(vault, quiet, 0)
        started = await rotations.start(None)
        assert await rotations.carry_on()
        ended = await rotation.get(started.id)
        assert ended is not None
        assert (ended.state, ended.done, ended.failed) == (KeyRotationState.FAILED, len(known) - 2, 2)
        assert sorted((await sealed_rows.verify(vault, quiet)).unreadable) == sorted(rows)
