"""Seals and opens the secrets that rest in the database; the only module that imports `cryptography`.

    ENCRYPTION_KEY ─ master_key ─► MasterKey ─ kek ─► key-encryption key ─ unwrap ─► data keys ─► Vault

A sealed value is the format CN1 in standard base64, so that it always begins with `Q04B`:

    offset  length
    0       2       magic `CN`
    2       1       version, 1
    3       4       number of the data key, big-endian
    7       24      random salt
    31      32      commitment to the key
    63      n + 16  AES-256-GCM ciphertext and tag

Each value has a key of its own, derived from the data key and its salt, and is bound to its installation, table,
row, column and path: moved anywhere else it does not open.
"""

import base64
import hmac
import os
import re
import secrets
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import NoReturn
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from app.domain.errors import CiphertextTampered, KeyMismatch, KeyUnavailable, SettingsError, UnsupportedCiphertext

#: Shortest passphrase, in characters.
MIN_PASSPHRASE = 32
#: Fewest different characters (of a raw key: bytes); below it a key is a pattern and not a secret.
MIN_DISTINCT = 10
#: Memory and time of stretching a passphrase: 128 MiB and about half a second, once a start.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**17, 8, 1

#: What `installation.kdf` says about a raw key and about a passphrase.
KDF_RAW, KDF_SCRYPT = "raw", "scrypt-17-8-1"

#: Keys that stand in somebody's documentation, in lower case and without punctuation.
PLACEHOLDERS = ("changeme", "changethis", "placeholder", "randomstring", "your32character", "yourencryptionkey")

EXPECTED_KEY = (
    f"expected 64 hex digits, the base64 of 32 bytes, or a passphrase of at least {MIN_PASSPHRASE} characters "
    f"of which at least {MIN_DISTINCT} differ (`openssl rand -hex 32` makes a good one)"
)

_HEADER = struct.Struct(">2sBI")
_MAGIC, _VERSION = b"CN", 1
_SALT, _COMMITMENT, _TAG = 24, 32, 16
_BODY = _HEADER.size + _SALT + _COMMITMENT


class Sealed(str):
    """A secret's ciphertext, safe to store and to show to people who may see the row."""

    __slots__ = ()


class Secret:
    """A secret in plain text, which shows itself only to who calls `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value.encode() if isinstance(value, str) else value

    def reveal(self) -> str:
        """The secret as text."""
        return self._value.decode()

    def reveal_bytes(self) -> bytes:
        """The secret as it was sealed."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not copied, pickled or encoded; call reveal() where it is needed")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value stands. Opening it anywhere else fails.

    Args:
        table: `bot_channel` for a channel's credentials, `bot_secret` for a bot's own secrets, `model_provider` for
            model keys; these labels stay the same when a table is renamed.
        row_id: The row's immutable id.
        path: `<provider>.<key>` inside a JSON column, nested keys joined with dots.
    """

    table: str
    row_id: str | UUID
    column: str
    path: str

    def encode(self) -> bytes:
        """Each part with its length before it, so that no two places read the same."""
        return b"".join(map(_counted, (self.table, str(self.row_id), self.column, self.path)))


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


class Vault:
    """Seals with the active data key and opens with any that the keyring holds.

    It lives as long as its process, and takes in what others change in the keyring (`renew`).

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
        self._keys = dict(keys)
        self._wrapping = wrapping
        self._fingerprint_key = fingerprint_key

    @property
    def kek_id(self) -> bytes:
        """Which master key this vault was opened with."""
        return kek_id(self._wrapping)

    def __repr__(self) -> str:
        return f"Vault(install_id={self.install_id!r}, keys={sorted(self._keys)}, active={self.active_key_id})"

    def seal(self, secret: str | bytes | Secret, place: Place) -> Sealed:
        key_id = self.active_key_id
        plain = secret if isinstance(secret, Secret) else Secret(secret)
        return encrypt(plain.reveal_bytes(), key_id, self._keys[key_id], self.install_id, place)

    def unseal(self, sealed: str, place: Place) -> Secret:
        """The secret that was sealed for this very place.

        Raises:
            UnsupportedCiphertext: It is no CN1.
            KeyUnavailable: Its data key is not in the keyring.
            CiphertextTampered: It was changed, or belongs to another place.
        """
        blob = _parse(sealed)
        _, _, key_id = _HEADER.unpack_from(blob)
        dek = self._keys.get(key_id)
        if dek is None:
            raise KeyUnavailable(key_id)
        return Secret(_decrypt(blob, dek, self.install_id, place))

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
        row = row or new_fingerprint_key(self._wrapping, self.install_id)
        self._fingerprint_key = unwrap_fingerprint_key(row, self._wrapping, self.install_id)
        return row

    def new_key(self, key_id: int) -> "WrappedKey":
        """A fresh data key for the keyring; this vault knows it once it was renewed with the row."""
        return new_key(self._wrapping, key_id, self.install_id)

    def renew(self, rows: Iterable["WrappedKey"]) -> None:
        """Takes in the keyring as it is now.

        Raises:
            KeyMismatch: Another master key wraps it by now. What this vault knows it can still open.
            SettingsError: The keyring is not one that this version can use.
        """
        rows = list(rows)
        require_same(rows, self.kek_id)
        active = _active(rows)
        fresh = [row for row in rows if row.key_id not in self._keys]
        self._keys = self._keys | _unwrap_all(fresh, self._wrapping, self.install_id)
        # Numbers only grow, and a look that began before a change of keys may end after it.
        self.active_key_id = max(active, self.active_key_id)


def key_id(sealed: str) -> int:
    """The number of the data key that a sealed value needs."""
    return _HEADER.unpack_from(_parse(sealed))[2]


def encrypt(plain: bytes, key_id: int, dek: bytes, install_id: str, place: Place, salt: bytes | None = None) -> Sealed:
    """The CN1 text of `plain`.

    Args:
        salt: Only for test vectors. A salt that is used twice gives both secrets away.
    """
    salt = secrets.token_bytes(_SALT) if salt is None else salt
    header = _HEADER.pack(_MAGIC, _VERSION, key_id)
    key, nonce, commitment = _field_keys(dek, salt)
    body = AESGCM(key).encrypt(nonce, plain, _field_aad(header, install_id, place))
    return Sealed(base64.b64encode(header + salt + commitment + body).decode())


def _decrypt(blob: bytes, dek: bytes, install_id: str, place: Place) -> bytes:
    header, salt = blob[: _HEADER.size], blob[_HEADER.size : _HEADER.size + _SALT]
    key, nonce, commitment = _field_keys(dek, salt)
    if not hmac.compare_digest(commitment, blob[_HEADER.size + _SALT : _BODY]):
        raise CiphertextTampered("the ciphertext was not made with the key it names, or was changed")
    try:
        return AESGCM(key).decrypt(nonce, blob[_BODY:], _field_aad(header, install_id, place))
    except InvalidTag as error:
        raise CiphertextTampered("the ciphertext was changed, or belongs to another place") from error


def _parse(sealed: object) -> bytes:
    """The bytes of a CN1 text whose outside is right; a damaged row may hold anything."""
    if not isinstance(sealed, str):
        raise UnsupportedCiphertext("what is stored is no text")
    try:
        blob = base64.b64decode(sealed, validate=True)
    except ValueError as error:
        raise UnsupportedCiphertext("the stored text is not base64") from error
    # Python's decoder forgives stray bits in the last character; one ciphertext has one text.
    if base64.b64encode(blob).decode() != sealed:
        raise UnsupportedCiphertext("the stored text is not canonical base64")
    if blob[:2] != _MAGIC or blob[2:3] != bytes([_VERSION]):
        raise UnsupportedCiphertext("the stored text is no ciphertext of the format CN1")
    if len(blob) < _BODY + _TAG:
        raise UnsupportedCiphertext("the stored ciphertext is cut short")
    return blob


def _field_keys(dek: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, nonce and commitment of one value."""
    okm = _hkdf(dek, salt, b"clawnet/field/v1", 76)
    return okm[:32], okm[32:44], okm[44:]


def _field_aad(header: bytes, install_id: str, place: Place) -> bytes:
    return header + b"clawnet/aad/v1" + _counted(install_id) + place.encode()


def _counted(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def _hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(ikm)


# Master key


@dataclass(frozen=True, slots=True, repr=False)
class MasterKey:
    """What ENCRYPTION_KEY says, not stretched yet."""

    kdf: str
    material: bytes

    def __repr__(self) -> str:
        return f"MasterKey(kdf={self.kdf!r}, material=<secret>)"

    def ikm(self, salt: bytes) -> bytes:
        """Input of the key derivation; a passphrase takes half a second and 128 MiB, so call it in a thread."""
        if self.kdf == KDF_RAW:
            return self.material
        return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(self.material)


def master_key(text: str, variable: str = "ENCRYPTION_KEY") -> MasterKey:
    """The key that a setting's text stands for.

    Args:
        variable: The setting's name, for the refusal.

    Raises:
        SettingsError: The text is too weak to be a key. The message never holds it.
    """
    text = text.strip()
    raw = _raw_key(text)
    found = _weakness_of_bytes(raw) if raw is not None else _weakness_of_text(text)
    if found:
        raise SettingsError(f"{variable} {found}; {EXPECTED_KEY}")
    return MasterKey(KDF_RAW, raw) if raw is not None else MasterKey(KDF_SCRYPT, text.encode())


def _raw_key(text: str) -> bytes | None:
    """The 32 bytes of a hex or base64 text; None when it is neither."""
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    if re.fullmatch(r"[0-9A-Za-z+/]{43}=?|[0-9A-Za-z_-]{43}=?", text):
        return _raw_base64(text.rstrip("=").translate({ord("+"): "-", ord("/"): "_"}))
    return None


def _raw_base64(text: str) -> bytes | None:
    """The bytes of 43 characters, unless no encoder would have written them (the last holds two bits too many)."""
    raw = base64.urlsafe_b64decode(text + "=")
    return raw if base64.urlsafe_b64encode(raw).decode() == text + "=" else None


def _weakness_of_bytes(raw: bytes) -> str | None:
    distinct = len(set(raw))
    return f"holds only {distinct} different bytes" if distinct < MIN_DISTINCT else None


def _weakness_of_text(text: str) -> str | None:
    letters = "".join(filter(str.isalnum, text.lower()))
    if not text:
        return "is empty"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "is not UTF-8"
    if any(placeholder in letters for placeholder in PLACEHOLDERS):
        return "is a placeholder out of somebody's documentation"
    if len(text) < MIN_PASSPHRASE:
        return f"has {len(text)} characters"
    if len(set(text)) < MIN_DISTINCT:
        return f"has only {len(set(text))} different characters"
    return None


# Keyring


def kek(ikm: bytes, salt: bytes) -> bytes:
    """The key that wraps the data keys of the installation with this salt."""
    return _hkdf(ikm, salt, b"clawnet/kek/v1", 32)


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


def open_keyring(master: MasterKey, installation: Installation, rows: Iterable[WrappedKey]) -> Vault:
    """The vault of a database.

    Raises:
        KeyMismatch: The database was made with another master key.
        SettingsError: The keyring is not one that this version can use.
    """
    rows = list(rows)
    if installation.kdf not in (KDF_RAW, KDF_SCRYPT):
        raise SettingsError(f"this database derives its keys by {installation.kdf!r}, which this version cannot")
    wrapping = wrapping_key(master, installation.salt)
    fingerprint, install_id = installation.fingerprint, str(installation.id)
    require_same([*rows, fingerprint] if fingerprint else rows, kek_id(wrapping))
    keys = _unwrap_all(rows, wrapping, install_id)
    try:
        known = unwrap_fingerprint_key(fingerprint, wrapping, install_id) if fingerprint else None
    except CiphertextTampered as error:
        raise SettingsError(f"{error}: restore the table installation from a backup") from error
    return Vault(install_id, keys, _active(rows), wrapping, known)


def _unwrap_all(rows: Iterable[WrappedKey], wrapping: bytes, install_id: str) -> dict[int, bytes]:
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


def _active(rows: list[WrappedKey]) -> int:
    active = [row.key_id for row in rows if row.state == "active"]
    if len(active) != 1:
        raise SettingsError(f"the keyring of this database has {len(active)} active keys; expected one")
    return active[0]


def _dek_aad(key_id: int, install_id: str) -> bytes:
    return b"clawnet/dek/v1" + key_id.to_bytes(4, "big") + install_id.encode()


def _fingerprint_aad(install_id: str) -> bytes:
    return b"clawnet/fingerprint-key/v1" + install_id.encode()


# Key file


def key_file(path: Path) -> str:
    """The master key in the file at `path`, which is made (mode 0600) when there is none.

    Raises:
        SettingsError: The file is readable for others, is no file, or cannot be read or made.
    """
    try:
        if not path.exists():
            _make_key_file(path)
        return _read_key_file(path)
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be used: {error.strerror}") from error


def write_key_file(path: Path, key: str) -> None:
    """Keeps a key in a new file (mode 0600). Raises OSError, also where the path is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        file.write(key + "\n")
        file.flush()
        os.fsync(fd)
    _sync_folder(path.parent)


def _make_key_file(path: Path) -> None:
    """Writes a whole key beside `path` and then links it there, so nobody ever reads half a key or loses one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(fd)
        _link(draft, path)
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _link(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return  # Another process was faster; its key counts.


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_key_file(path: Path) -> str:
    # O_NONBLOCK: a FIFO in the key's place is refused below and does not hold up the start.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SettingsError(f"the key file {path} is not a regular file")
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise SettingsError(
                f"the key file {path} has mode {mode:04o} and others can reach it; expected 0600 "
                f"(`chmod 600 {path}`, and think about whether the key has been read)"
            )
        return file.read(10_000).strip()
