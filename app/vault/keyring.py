"""The keys that rest in the database, each wrapped with one that is derived from the master key."""

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.domain.errors import CiphertextTampered, KeyMismatch, SettingsError
from app.vault.kdf import hkdf
from app.vault.masterkey import MasterKey


@dataclass(frozen=True, slots=True)
class WrappedFingerprintKey:
    """The key of fingerprints, wrapped like a data key. It stays the same for ever, or nothing would be found again."""

    kek_id: bytes
    nonce: bytes
    wrapped: bytes


@dataclass(frozen=True, slots=True)
class Installation:
    """The row of `installation`: what every key of a database hangs on."""

    id: UUID
    salt: bytes
    kdf: str
    fingerprint: WrappedFingerprintKey | None = None


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A row of `keyring`: a data key that only the right master key opens.

    Args:
        state: `active` (the one that seals), `decrypt` or `retired`.
    """

    key_id: int
    state: str
    kek_id: bytes
    nonce: bytes
    wrapped: bytes


def kek(ikm: bytes, salt: bytes) -> bytes:
    """The key that wraps the data keys of the installation with this salt."""
    return hkdf(ikm, salt, b"clawnet/kek/v1", 32)


def kek_id(kek: bytes) -> bytes:
    """Eight bytes that tell key-encryption keys apart and give nothing away."""
    return hmac.digest(kek, b"clawnet/kek-id/v1", sha256)[:8]


def wrap(dek: bytes, kek: bytes, key_id: int, install_id: str, nonce: bytes) -> bytes:
    return AESGCM(kek).encrypt(nonce, dek, _dek_aad(key_id, install_id))


def unwrap(row: WrappedKey, kek: bytes, install_id: str) -> bytes:
    """The data key of a row.

    Raises:
        CiphertextTampered: The row was changed, or belongs to another key, number or installation.
    """
    try:
        return AESGCM(kek).decrypt(row.nonce, row.wrapped, _dek_aad(row.key_id, install_id))
    except (InvalidTag, ValueError) as error:
        raise CiphertextTampered(f"the wrapped data key {row.key_id} was changed") from error


def new_key(kek: bytes, key_id: int, install_id: str) -> WrappedKey:
    """A fresh data key, active and wrapped."""
    nonce = secrets.token_bytes(12)
    wrapped = wrap(secrets.token_bytes(32), kek, key_id, install_id, nonce)
    return WrappedKey(key_id, "active", kek_id(kek), nonce, wrapped)


def new_fingerprint_key(kek: bytes, install_id: str) -> WrappedFingerprintKey:
    """A fresh key of fingerprints, wrapped."""
    return _wrap_fingerprint_key(secrets.token_bytes(32), kek, install_id)


def _wrap_fingerprint_key(key: bytes, kek: bytes, install_id: str) -> WrappedFingerprintKey:
    nonce = secrets.token_bytes(12)
    return WrappedFingerprintKey(kek_id(kek), nonce, AESGCM(kek).encrypt(nonce, key, _fingerprint_aad(install_id)))


def unwrap_fingerprint_key(row: WrappedFingerprintKey, kek: bytes, install_id: str) -> bytes:
    """The key of fingerprints. Raises `CiphertextTampered` for a row that is not this installation's."""
    try:
        return AESGCM(kek).decrypt(row.nonce, row.wrapped, _fingerprint_aad(install_id))
    except (InvalidTag, ValueError) as error:
        raise CiphertextTampered("the wrapped key of fingerprints was changed") from error


def wrapping_key(master: MasterKey, salt: bytes) -> bytes:
    """The key-encryption key of a master key; a passphrase takes half a second and 128 MiB, so call it in a thread."""
    return kek(master.ikm(salt), salt)


def rewrap(
    rows: Iterable[WrappedKey], fingerprint: WrappedFingerprintKey | None, old: bytes, new: bytes, install_id: str
) -> tuple[list[WrappedKey], WrappedFingerprintKey | None]:
    """The same keys under another key-encryption key. Raises `CiphertextTampered`."""
    wrapped: list[WrappedKey] = []
    for row in rows:
        nonce = secrets.token_bytes(12)
        text = wrap(unwrap(row, old, install_id), new, row.key_id, install_id, nonce)
        wrapped.append(WrappedKey(row.key_id, row.state, kek_id(new), nonce, text))
    if fingerprint is None:
        return wrapped, None
    key = unwrap_fingerprint_key(fingerprint, old, install_id)
    return wrapped, _wrap_fingerprint_key(key, new, install_id)


def new_keyring(master: MasterKey) -> tuple[Installation, WrappedKey]:
    """The rows of an installation that has none yet; insert both in one transaction."""
    identity, salt = uuid4(), secrets.token_bytes(16)
    wrapping = wrapping_key(master, salt)
    fingerprint = new_fingerprint_key(wrapping, str(identity))
    return Installation(identity, salt, master.kdf, fingerprint), new_key(wrapping, 1, str(identity))


def unwrap_all(rows: Iterable[WrappedKey], wrapping: bytes, install_id: str) -> dict[int, bytes]:
    try:
        return {row.key_id: unwrap(row, wrapping, install_id) for row in rows}
    except CiphertextTampered as error:
        raise SettingsError(f"{error}: restore the table keyring from a backup") from error


def require_same(
    rows: Iterable[WrappedKey | WrappedFingerprintKey], got: bytes, variable: str = "ENCRYPTION_KEY"
) -> None:
    """Raises `KeyMismatch` where another master key wraps them."""
    for row in rows:
        if row.kek_id != got:
            raise KeyMismatch(
                f"{variable} does not match this database (wanted kek {row.kek_id.hex()}, got {got.hex()})"
            )


def active(rows: list[WrappedKey]) -> int:
    """The number of the key that seals. Raises `SettingsError` where there is none, or more than one."""
    found = [row.key_id for row in rows if row.state == "active"]
    if len(found) != 1:
        raise SettingsError(f"the keyring of this database has {len(found)} active keys; expected one")
    return found[0]


def _dek_aad(key_id: int, install_id: str) -> bytes:
    return b"clawnet/dek/v1" + key_id.to_bytes(4, "big") + install_id.encode()


def _fingerprint_aad(install_id: str) -> bytes:
    return b"clawnet/fingerprint-key/v1" + install_id.encode()
