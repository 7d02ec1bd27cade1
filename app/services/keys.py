"""The keyring in the database, opened once at start, and secrets put into and read from rows."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID

import anyio
import anyio.to_thread
import asyncpg
import structlog

from app import vault
from app.db.engine import DB
from app.domain.errors import (
    CredentialsUnreadable,
    KeyMismatch,
    KeyUnavailable,
    SecretError,
    SettingsError,
    Unavailable,
)
from app.log import barrier
from app.services import audit
from app.vault import Installation, MasterKey, Place, Sealed, Secret, Vault, WrappedFingerprintKey, WrappedKey

log = structlog.get_logger()

#: Labels of the sealed columns' tables as they stand in the AAD; they never change (crypto.md, "Settled").
BOT_SECRET, MODEL_PROVIDER, BOT_CHANNEL = "bot_secret", "model_provider", "bot_channel"
GATEWAY_TOKEN = "gateway.token"
#: Seconds between two looks at the keyring: what another process seals is read, and the old key is used no longer.
REFRESH_INTERVAL = 30.0


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column whose values are sealed. What it says of the AAD never changes, whatever the table is called.

    Args:
        key_id: The column that says which data key the row's values need.
        label: The table's name in the AAD.
        path: SQL for the path in the AAD; of a JSON column for its first part, `<path>.<key>`.
    """

    table: str
    column: str
    key_id: str
    label: str
    path: str
    is_json: bool = False

    def leaves(self, row_id: UUID, path: str, value: Any) -> dict[str, tuple[Place, str]]:
        """The sealed values of a row with their places, by key; a plain column's key is empty."""
        if not self.is_json:
            return {"": (Place(self.label, str(row_id), self.column, path), value)}
        if not isinstance(value, dict):
            # Nothing in it can be told apart: it is refused as one value.
            return {"": (Place(self.label, str(row_id), self.column, path), "")}
        return {
            # What is no text is no ciphertext either, and is refused as such.
            key: (Place(self.label, str(row_id), self.column, f"{path}.{key}"), it if isinstance(it, str) else "")
            for key, it in cast("dict[str, Any]", value).items()
        }


#: Every column with sealed values: what a change of keys goes through. A test finds one that is missing here.
SEALED = (
    SealedColumn("bot_secret", "sealed", "key_id", BOT_SECRET, path="name"),
    SealedColumn("model_provider", "api_key", "api_key_key_id", MODEL_PROVIDER, path="'api_key'"),
    SealedColumn("channel", "credentials", "credentials_key_id", BOT_CHANNEL, path="provider", is_json=True),
)
#: Why nothing is sealed where an older database was put in this one's place.
_LOST = "the database's keyring lacks the key of this server, which seals nothing until it is started again"

#: Foreign keys to the keyring: a row names a key that is there, and that key stays.
_OF_THE_RING = {f"{column.table}_keyring" for column in SEALED}

_RING = "SELECT key_id, state, kek_id, nonce, wrapped FROM keyring ORDER BY key_id"
# Every column there is: a backup is also made of a database that an older version left, which has fewer.
_INSTALLATION = "SELECT * FROM installation"


async def open_vault(key: str) -> Vault:
    """The vault of this database, made at the first start. Raises `KeyMismatch` for another key than then."""
    parsed = vault.master_key(key)
    found = await installation() or await _create(parsed)
    # A passphrase is stretched for half a second and 128 MiB.
    opened = await anyio.to_thread.run_sync(vault.open_keyring, parsed, found, await ring())
    if not opened.has_fingerprints:
        await _learn_fingerprints(opened)
    return opened


async def check(key: str) -> None:
    """Raises `KeyMismatch` where the key does not open this database's keyring. Changes nothing."""
    found = await installation()
    if found is not None:
        await anyio.to_thread.run_sync(vault.open_keyring, vault.master_key(key), found, await ring())


async def are_made() -> bool:
    """This database has a keyring, so there is a master key somewhere that fits it.

    Asked of older databases too, which know less of an installation than `installation` reads.
    """
    return await DB.fetch_one("SELECT id FROM installation") is not None


async def installation() -> Installation | None:
    row = await DB.fetch_one(_INSTALLATION)
    if row is None:
        return None
    wrapped: list[bytes | None] = [row.get(f"fingerprint_{part}") for part in ("kek_id", "nonce", "wrapped")]
    fingerprint = WrappedFingerprintKey(*(bytes(part or b"") for part in wrapped)) if all(wrapped) else None
    return Installation(row["id"], bytes(row["salt"]), row["kdf"], fingerprint)


async def ring() -> list[WrappedKey]:
    """The data keys, the oldest first."""
    return [
        WrappedKey(r["key_id"], r["state"], bytes(r["kek_id"]), bytes(r["nonce"]), bytes(r["wrapped"]))
        for r in await DB.fetch(_RING)
    ]


async def hold() -> None:
    """Lets nobody else change the keyring until the caller's transaction ends."""
    await DB.fetch("LOCK TABLE installation IN SHARE ROW EXCLUSIVE MODE")


async def refresh(opened: Vault) -> None:
    """Takes in what another process changed in the keyring."""
    # A look may be older than what another one has taken in already; the next is not.
    for _ in range(2):
        if opened.renew(await ring()):
            return
    opened.trouble = _LOST


async def trouble(opened: Vault) -> str | None:
    """Why the keyring in memory is not the database's, after a look at that."""
    with suppress(SettingsError):
        await refresh(opened)
    return opened.trouble


@asynccontextmanager
async def sealing(opened: Vault) -> AsyncGenerator[None, None]:
    """Around whatever writes sealed values: their key may have left the keyring since this process looked at it.

    Raises:
        Unavailable: It has. Where that helps, the next try has the new one.
    """
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        if getattr(error, "constraint_name", None) not in _OF_THE_RING:
            raise
        why = await trouble(opened) or "the key that this was encrypted with is gone; try again"
        raise Unavailable(why) from error


async def watch(opened: Vault) -> None:
    """Keeps up with changes of keys that other processes make. Runs until cancelled."""
    while True:
        await anyio.sleep(REFRESH_INTERVAL)
        with barrier(log, "keyring_not_read"):
            try:
                await refresh(opened)
            except KeyMismatch:
                log.error("master_key_changed", remedy="start this server again with the new ENCRYPTION_KEY")


async def _create(master: MasterKey) -> Installation:
    async with DB.transaction():
        # Two servers starting together on an empty database would make two keyrings.
        await hold()
        if found := await installation():
            return found
        await _require_nothing_sealed()
        found, first = await anyio.to_thread.run_sync(vault.new_keyring, master)
        await DB.fetch(
            "INSERT INTO installation (id, salt, kdf, created_at) VALUES ($1, $2, $3, now())",
            found.id, found.salt, found.kdf,
        )  # fmt: skip
        await keep_fingerprint_key(found.fingerprint)
        await add_key(first)
    return found


async def _require_nothing_sealed() -> None:
    """A new keyring opens nothing old, and once it is there nobody looks for the lost one."""
    for column in SEALED:
        empty = f" AND {column.column} <> '{{}}'::jsonb" if column.is_json else ""
        if await DB.fetch_one(f"SELECT 1 FROM {column.table} WHERE {column.column} IS NOT NULL{empty} LIMIT 1"):
            raise KeyMismatch(
                f"the table {column.table} holds secrets, and this database has no keys: restore the tables "
                "installation and keyring from a backup"
            )


async def rekey(new: str, old: str) -> bool:
    """Wraps every key with another master key, in one transaction; not one sealed value is touched.

    Args:
        old: The master key that wraps them now.

    Returns:
        False where `new` wraps them already.

    Raises:
        KeyMismatch: Neither does, or there is nothing to wrap.
    """
    found = await installation()
    if found is None:
        raise KeyMismatch("this database has no keys yet; the first start makes them with ENCRYPTION_KEY")
    master, previous = vault.master_key(new), vault.master_key(old, "ENCRYPTION_KEY_PREVIOUS")
    wrapping = await anyio.to_thread.run_sync(vault.wrapping_key, master, found.salt)
    unwrapping = await anyio.to_thread.run_sync(vault.wrapping_key, previous, found.salt)
    async with DB.transaction():
        await hold()
        held = await installation()
        fingerprint, rows = held and held.fingerprint, await ring()
        if {row.kek_id for row in rows} == {vault.kek_id(wrapping)}:
            return False
        wrapped = [*rows, fingerprint] if fingerprint else rows
        vault.require_same(wrapped, vault.kek_id(unwrapping), "ENCRYPTION_KEY_PREVIOUS")
        rows, fingerprint = vault.rewrap(rows, fingerprint, unwrapping, wrapping, str(found.id))
        for row in rows:
            await DB.fetch(
                "UPDATE keyring SET kek_id = $2, nonce = $3, wrapped = $4 WHERE key_id = $1",
                row.key_id, row.kek_id, row.nonce, row.wrapped,
            )  # fmt: skip
        await keep_fingerprint_key(fingerprint)
        await DB.fetch("UPDATE installation SET kdf = $1", master.kdf)
        await audit.note("keysRekey", keys=len(rows))
    return True


async def add_key(key: WrappedKey) -> None:
    await DB.fetch(
        "INSERT INTO keyring (key_id, state, kek_id, nonce, wrapped, created_at) VALUES ($1, $2, $3, $4, $5, now())",
        key.key_id, key.state, key.kek_id, key.nonce, key.wrapped,
    )  # fmt: skip


async def keep_fingerprint_key(key: WrappedFingerprintKey | None) -> None:
    await DB.fetch(
        "UPDATE installation SET fingerprint_kek_id = $1, fingerprint_nonce = $2, fingerprint_wrapped = $3",
        key and key.kek_id, key and key.nonce, key and key.wrapped,
    )  # fmt: skip


async def _learn_fingerprints(opened: Vault) -> None:
    """An installation from before there were fingerprints gets their key now."""
    async with DB.transaction():
        await hold()
        found = await installation()
        await refresh(opened)  # Under another master key by now: nothing may be wrapped with the old one.
        known = found and found.fingerprint
        await keep_fingerprint_key(opened.learn_fingerprints(known))


async def keep_gateway_token(bot_id: UUID, sealed: Sealed, row_id: UUID, key_id: int) -> None:
    await DB.fetch(
        "INSERT INTO bot_secret (id, bot, name, sealed, key_id, created_at) VALUES ($1, $2, $3, $4, $5, now())",
        row_id, bot_id, GATEWAY_TOKEN, str(sealed), key_id,
    )  # fmt: skip


def gateway_token_place(row_id: UUID) -> Place:
    return Place(BOT_SECRET, str(row_id), "sealed", GATEWAY_TOKEN)


def provider_place(row_id: UUID) -> Place:
    return Place(MODEL_PROVIDER, str(row_id), "api_key", "api_key")


def channel_place(row_id: UUID, provider: str, key: str) -> Place:
    """Where one of a channel's credentials stands; the parts of a nested key are joined with dots."""
    return Place(BOT_CHANNEL, str(row_id), "credentials", f"{provider}.{key}")


async def gateway_token(open_: Vault, bot_id: UUID) -> Secret:
    """The token of the bot's gateway. Raises `CredentialsUnreadable`."""
    row = await DB.fetch_one("SELECT id, sealed FROM bot_secret WHERE bot = $1 AND name = $2", bot_id, GATEWAY_TOKEN)
    if row is None:
        raise CredentialsUnreadable("the gateway's token is not in the database; delete the bot and make it anew")
    return await unseal(open_, row["sealed"], gateway_token_place(row["id"]), "the gateway's token")


def read(open_: Vault, sealed: str, place: Place, what: str) -> Secret:
    """Unseals for use; `CredentialsUnreadable` names what, never the value."""
    try:
        return open_.unseal(Sealed(sealed), place)
    except SecretError as error:
        raise CredentialsUnreadable(f"{what} cannot be read with this server's keys; set it anew ({error})") from error


async def unseal(open_: Vault, sealed: str, place: Place, what: str) -> Secret:
    """As `read`, and looks for a new key in the keyring where the value needs one that is not known here."""
    try:
        return open_.unseal(Sealed(sealed), place)
    except KeyUnavailable:
        with suppress(SettingsError):
            await refresh(open_)
    except SecretError:
        pass  # It says so itself.
    return read(open_, sealed, place, what)
