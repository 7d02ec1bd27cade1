"""An open keyring: what seals and opens while a process runs."""

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from app.domain.errors import CiphertextTampered, KeyMismatch, SettingsError, Unavailable
from app.vault import cn1, keyring
from app.vault.keyring import Installation, WrappedFingerprintKey, WrappedKey
from app.vault.masterkey import KDF_RAW, KDF_SCRYPT, MasterKey
from app.vault.values import Place, Sealed, Secret

#: Why nothing is sealed: it would be lost with the next change of keys, or is already.
_REKEYED = "the master key was changed; this server seals nothing until it is started again with the new ENCRYPTION_KEY"
_UNUSABLE = "the database's keyring cannot be used; this server seals nothing until it is restored from a backup"


class Vault:
    """Seals with the active data key and opens with any that the keyring holds.

    It lives as long as its process, and takes in what others change in the keyring (`renew`). Once that fails it only
    opens.

    Args:
        wrapping: The key that wraps the others; without it the keyring stays as it is.
        fingerprint_key: Of `fingerprint`, where the installation has one.
    """

    def __init__(
        self,
        install_id: str,
        keys: Mapping[int, bytes],
        active_key_id: int,
        wrapping: bytes = b"",
        fingerprint_key: bytes | None = None,
    ) -> None:
        self.install_id = install_id
        self.active_key_id = active_key_id
        #: Why the keyring in memory is not the database's; None while it is, as far as anybody looked.
        self.trouble: str | None = None
        self._keys = dict(keys)
        self._wrapping = wrapping
        self._fingerprint_key = fingerprint_key

    @property
    def kek_id(self) -> bytes:
        """Which master key this vault was opened with."""
        return keyring.kek_id(self._wrapping)

    def __repr__(self) -> str:
        return f"Vault(install_id={self.install_id!r}, keys={sorted(self._keys)}, active={self.active_key_id})"

    def seal(self, secret: str | bytes | Secret, place: Place) -> Sealed:
        """Raises `Unavailable` while the keyring in memory is not the database's."""
        if self.trouble:
            raise Unavailable(self.trouble)
        key_id = self.active_key_id
        plain = secret if isinstance(secret, Secret) else Secret(secret)
        return cn1.encrypt(plain.reveal_bytes(), key_id, self._keys[key_id], self.install_id, place)

    def unseal(self, sealed: str, place: Place) -> Secret:
        """The secret that was sealed for this very place.

        Raises:
            UnsupportedCiphertext: It is no CN1.
            KeyUnavailable: Its data key is not in the keyring.
            CiphertextTampered: It was changed, or belongs to another place.
        """
        return Secret(cn1.decrypt(sealed, self._keys, self.install_id, place))

    def reseal(self, sealed: str, place: Place) -> Sealed:
        """The same secret under the active key. Raises as `unseal` does."""
        return self.seal(self.unseal(sealed, place), place)

    def fingerprint(self, provider: str, key: str, value: str | Secret) -> bytes:
        """What is the same for the same secret and gives nothing of it away without this installation's key."""
        if self._fingerprint_key is None:
            raise RuntimeError("this vault was opened without the key of fingerprints")
        secret = value.reveal_bytes() if isinstance(value, Secret) else value.encode()
        parts = b"".join(len(part).to_bytes(4, "big") + part for part in (provider.encode(), key.encode(), secret))
        return hmac.digest(self._fingerprint_key, parts, sha256)

    @property
    def has_fingerprints(self) -> bool:
        """Whether the key of fingerprints is known; an installation gets one when it is first opened without."""
        return self._fingerprint_key is not None

    def learn_fingerprints(self, row: WrappedFingerprintKey | None) -> WrappedFingerprintKey:
        """Takes in the installation's key of fingerprints, or makes one where there is none; keep what it answers."""
        row = row or keyring.new_fingerprint_key(self._wrapping, self.install_id)
        self._fingerprint_key = keyring.unwrap_fingerprint_key(row, self._wrapping, self.install_id)
        return row

    def new_key(self, key_id: int) -> WrappedKey:
        """A fresh data key for the keyring; this vault knows it once it was renewed with the row."""
        return keyring.new_key(self._wrapping, key_id, self.install_id)

    def renew(self, rows: Iterable[WrappedKey]) -> bool:
        """Takes in the keyring as it is now; whether the key that seals is in it.

        Raises:
            KeyMismatch: Another master key wraps it by now. What this vault knows it can still open.
            SettingsError: The keyring is not one that this version can use.
        """
        rows = list(rows)
        try:
            self._take(rows)
        except KeyMismatch:
            self.trouble = _REKEYED
            raise
        except SettingsError:
            self.trouble = _UNUSABLE
            raise
        self.trouble = None
        return any(row.key_id == self.active_key_id for row in rows)

    def _take(self, rows: list[WrappedKey]) -> None:
        keyring.require_same(rows, self.kek_id)
        active = keyring.active(rows)
        fresh = [row for row in rows if row.key_id not in self._keys]
        self._keys = self._keys | keyring.unwrap_all(fresh, self._wrapping, self.install_id)
        # Numbers only grow, and a look that began before a change of keys may end after it.
        self.active_key_id = max(active, self.active_key_id)


def open_keyring(master: MasterKey, installation: Installation, rows: Iterable[WrappedKey]) -> Vault:
    """The vault of a database.

    Raises:
        KeyMismatch: The database was made with another master key.
        SettingsError: The keyring is not one that this version can use.
    """
    rows = list(rows)
    if installation.kdf not in (KDF_RAW, KDF_SCRYPT):
        raise SettingsError(f"this database derives its keys by {installation.kdf!r}, which this version cannot")
    wrapping = keyring.wrapping_key(master, installation.salt)
    fingerprint, install_id = installation.fingerprint, str(installation.id)
    keyring.require_same([*rows, fingerprint] if fingerprint else rows, keyring.kek_id(wrapping))
    keys = keyring.unwrap_all(rows, wrapping, install_id)
    try:
        known = keyring.unwrap_fingerprint_key(fingerprint, wrapping, install_id) if fingerprint else None
    except CiphertextTampered as error:
        raise SettingsError(f"{error}: restore the table installation from a backup") from error
    return Vault(install_id, keys, keyring.active(rows), wrapping, known)
