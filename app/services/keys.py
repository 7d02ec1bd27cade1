"""The keyring in the database, opened once at start, and secrets put into and read from rows."""

from uuid import UUID

import anyio.to_thread

from app import vault
from app.db.engine import DB
from app.domain.errors import CredentialsUnreadable, SecretError
from app.vault import Place, Sealed, Secret, Vault, WrappedKey

#: Labels of the sealed columns' tables as they stand in the AAD; they never change (crypto.md, "Settled").
BOT_SECRET, MODEL_PROVIDER = "bot_secret", "model_provider"
GATEWAY_TOKEN = "gateway.token"


async def open_vault(key: str) -> Vault:
    """The vault of this database, made at the first start. Raises `KeyMismatch` for another key than then."""
    parsed = vault.master_key(key)
    async with DB.transaction():
        # Two servers starting together on an empty database would make two keyrings.
        await DB.fetch("LOCK TABLE installation IN SHARE ROW EXCLUSIVE MODE")
        row = await DB.fetch_one("SELECT id, salt, kdf FROM installation")
        if row is None:
            installation, first = await anyio.to_thread.run_sync(vault.new_keyring, parsed)
            await _create(installation, first)
        else:
            installation = vault.Installation(row["id"], bytes(row["salt"]), row["kdf"])
    rows = await DB.fetch("SELECT key_id, state, kek_id, nonce, wrapped FROM keyring")
    ring = [
        WrappedKey(r["key_id"], r["state"], bytes(r["kek_id"]), bytes(r["nonce"]), bytes(r["wrapped"])) for r in rows
    ]
    # A passphrase is stretched for half a second and 128 MiB.
    return await anyio.to_thread.run_sync(vault.open_keyring, parsed, installation, ring)


async def are_made() -> bool:
    """This database has a keyring, so there is a master key somewhere that fits it."""
    return await DB.fetch_one("SELECT id FROM installation") is not None


async def _create(installation: vault.Installation, key: WrappedKey) -> None:
    await DB.fetch(
        "INSERT INTO installation (id, salt, kdf, created_at) VALUES ($1, $2, $3, now())",
        installation.id, installation.salt, installation.kdf,
    )  # fmt: skip
    await DB.fetch(
        "INSERT INTO keyring (key_id, state, kek_id, nonce, wrapped, created_at) VALUES ($1, $2, $3, $4, $5, now())",
        key.key_id, key.state, key.kek_id, key.nonce, key.wrapped,
    )  # fmt: skip


async def keep_gateway_token(bot_id: UUID, sealed: Sealed, row_id: UUID, key_id: int) -> None:
    await DB.fetch(
        "INSERT INTO bot_secret (id, bot, name, sealed, key_id, created_at) VALUES ($1, $2, $3, $4, $5, now())",
        row_id, bot_id, GATEWAY_TOKEN, str(sealed), key_id,
    )  # fmt: skip


def gateway_token_place(row_id: UUID) -> Place:
    return Place(BOT_SECRET, str(row_id), "sealed", GATEWAY_TOKEN)


def provider_place(row_id: UUID) -> Place:
    return Place(MODEL_PROVIDER, str(row_id), "api_key", "api_key")


async def gateway_token(open_: Vault, bot_id: UUID) -> Secret:
    """The token of the bot's gateway. Raises `CredentialsUnreadable`."""
    row = await DB.fetch_one("SELECT id, sealed FROM bot_secret WHERE bot = $1 AND name = $2", bot_id, GATEWAY_TOKEN)
    if row is None:
        raise CredentialsUnreadable("the gateway's token is not in the database; delete the bot and make it anew")
    return read(open_, row["sealed"], gateway_token_place(row["id"]), "the gateway's token")


def read(open_: Vault, sealed: str, place: Place, what: str) -> Secret:
    """Unseals for use; `CredentialsUnreadable` names what, never the value."""
    try:
        return open_.unseal(Sealed(sealed), place)
    except SecretError as error:
        raise CredentialsUnreadable(f"{what} cannot be read with this server's keys; set it anew ({error})") from error
