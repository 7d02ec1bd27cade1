"""Rows of every table that holds sealed values, and what was sealed in each."""

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from app.db.engine import DB
from app.domain.ids import new_id
from app.domain.states import UserRole
from app.services import accounts, keys
from app.vault import Vault

#: The master key of these tests.
KEY = secrets.token_hex(32)

#: What stands where: table, row and key inside the row (empty in a plain column).
Known = dict[tuple[str, UUID, str], str]


@asynccontextmanager
async def opened(database: dict[str, Any], key: str = KEY) -> AsyncGenerator[Vault]:
    await DB.open(database)
    try:
        yield await keys.open_vault(key)
    finally:
        await DB.close()


async def fill(vault: Vault, bots: int, channels: int = 2) -> Known:
    """So many bots with a token, a model key and channels with two credentials each."""
    owner, known = await accounts.add_user("Olga", UserRole.MEMBER), Known()
    for number in range(bots):
        bot = new_id()
        await DB.fetch(
            "INSERT INTO bot (id, owner, agent_id, name, model, tags) VALUES ($1, $2, $3, 'x', 'local/echo', '{}')",
            bot, owner, f"b{number}",
        )  # fmt: skip
        await _token(vault, bot, known)
        await _provider(vault, owner, number, known)
        for account in range(channels):
            await channel(vault, bot, f"a{account}", known)
    return known


async def _token(vault: Vault, bot: UUID, known: Known) -> None:
    row_id, secret = new_id(), secrets.token_urlsafe(24)
    sealed = vault.seal(secret, keys.gateway_token_place(row_id))
    await keys.keep_gateway_token(bot, sealed, row_id, vault.active_key_id)
    known["bot_secret", row_id, ""] = secret


async def _provider(vault: Vault, owner: UUID, number: int, known: Known) -> None:
    row_id, secret = new_id(), secrets.token_urlsafe(24)
    await DB.fetch(
        "INSERT INTO model_provider (id, owner, name, api, api_key, api_key_key_id) VALUES ($1, $2, $3, $4, $5, $6)",
        row_id, owner, f"p{number}", "openai-completions", str(vault.seal(secret, keys.provider_place(row_id))),
        vault.active_key_id,
    )  # fmt: skip
    known["model_provider", row_id, ""] = secret


async def channel(vault: Vault, bot: UUID, account: str, known: Known) -> UUID:
    row_id, provider = new_id(), "slack"
    plain = {key: secrets.token_urlsafe(24) for key in ("botToken", "appToken")}
    await DB.fetch(
        "INSERT INTO channel (id, bot, provider, account_id, name, credentials, credentials_key_id) "
        "VALUES ($1, $2, $3, $4, 'x', $5::jsonb, $6)",
        row_id, bot, provider, account, credentials(vault, row_id, provider, plain), vault.active_key_id,
    )  # fmt: skip
    for key, secret in plain.items():
        known["channel", row_id, key] = secret
    return row_id


def credentials(vault: Vault, row_id: UUID, provider: str, plain: dict[str, str]) -> str:
    return json.dumps({key: vault.seal(it, keys.channel_place(row_id, provider, key)) for key, it in plain.items()})


async def stored(vault: Vault) -> Known:
    """Everything that is sealed, opened."""
    found = Known()
    for row in await DB.fetch("SELECT id, sealed FROM bot_secret"):
        place = keys.gateway_token_place(row["id"])
        found["bot_secret", row["id"], ""] = vault.unseal(row["sealed"], place).reveal()
    for row in await DB.fetch("SELECT id, api_key FROM model_provider WHERE api_key IS NOT NULL"):
        place = keys.provider_place(row["id"])
        found["model_provider", row["id"], ""] = vault.unseal(row["api_key"], place).reveal()
    for row in await DB.fetch("SELECT id, provider, credentials FROM channel"):
        for key, sealed in row["credentials"].items():
            place = keys.channel_place(row["id"], row["provider"], key)
            found["channel", row["id"], key] = vault.unseal(sealed, place).reveal()
    return found


async def key_ids() -> set[int]:
    """Every key that some row says it needs."""
    rows = await DB.fetch(
        "SELECT key_id FROM bot_secret UNION SELECT api_key_key_id FROM model_provider WHERE api_key IS NOT NULL "
        "UNION SELECT credentials_key_id FROM channel WHERE credentials <> '{}'"
    )
    return {row["key_id"] for row in rows}
