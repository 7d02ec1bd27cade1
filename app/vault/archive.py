"""An archive under a passphrase: a stream of bytes in which nothing can be read, changed, left out or moved.

    offset  length
    0       8       magic `CLAWNETB`
    8       1       version, 1
    9       32      random salt
    41      32      commitment to the key
    73      32      SHA-256 of everything before, so that damage here is not taken for a wrong passphrase
    105     …       chunks of 65,536 bytes (the last one shorter), each AES-256-GCM ciphertext and its tag of 16 bytes

    okm   = HKDF-SHA256(ikm=scrypt(passphrase, salt), salt=salt, info="clawnet/backup/v1", length=64)
    key   = okm[0:32]   commitment = okm[32:64]
    nonce = u64be(number of the chunk, from 0) ‖ 00 00 00 ‖ 01 for the last chunk, else 00
    AAD   = the 105 bytes of the header

Each archive has a key of its own, so that counted nonces never meet. A chunk opens only at its number, and the last one
only as the last: an archive that ends early, also between two chunks, does not open.
"""

import hmac
import secrets
from collections.abc import Iterator
from hashlib import sha256
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.domain.errors import ArchiveDamaged, WrongPassphrase
from app.vault.kdf import hkdf, stretch

#: Shortest and longest passphrase, in characters.
MIN_PASSPHRASE, MAX_PASSPHRASE = 12, 1024
#: Bytes of plain text in a chunk: what is held in memory at a time.
CHUNK = 64 * 1024

_MAGIC, _VERSION = b"CLAWNETB", b"\x01"
_SALT, _COMMITMENT, _CHECK, _TAG = 32, 32, 32, 16
_BODY = len(_MAGIC) + len(_VERSION) + _SALT + _COMMITMENT + _CHECK


class Writer:
    """Encrypts what is written into a file. Without `finish` it does not open."""

    def __init__(self, file: IO[bytes], passphrase: str) -> None:
        """Takes half a second and 128 MiB."""
        salt = secrets.token_bytes(_SALT)
        key, commitment = _keys(passphrase, salt)
        head = _MAGIC + _VERSION + salt + commitment
        self._header = head + sha256(head).digest()
        self._file, self._cipher = file, AESGCM(key)
        self._number, self._rest = 0, bytearray()
        file.write(self._header)

    def write(self, data: bytes) -> None:
        self._rest += data
        # One chunk always stays back: only the end tells which one is the last.
        while len(self._rest) > CHUNK:
            self._seal(bytes(self._rest[:CHUNK]), is_last=False)
            del self._rest[:CHUNK]

    def finish(self) -> None:
        """Writes the last chunk; the file itself is the caller's to close."""
        self._seal(bytes(self._rest), is_last=True)

    def _seal(self, plain: bytes, *, is_last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, is_last=is_last), plain, self._header))
        self._number += 1


class Reader:
    """Decrypts an archive, as often as it is asked to."""

    def __init__(self, file: IO[bytes], passphrase: str) -> None:
        """Takes half a second and 128 MiB.

        Raises:
            ArchiveDamaged: It is no archive of ours, or its head was changed.
            WrongPassphrase: It is one, and was made with another passphrase.
        """
        self._file = file
        self._file.seek(0)
        self._header = self._read(_BODY)
        _require_head(self._header)
        start = len(_MAGIC) + len(_VERSION)
        salt = self._header[start : start + _SALT]
        key, commitment = _keys(passphrase, salt)
        if not hmac.compare_digest(commitment, self._header[start + _SALT : -_CHECK]):
            raise WrongPassphrase("the passphrase is not the one the archive was made with")
        self._cipher = AESGCM(key)

    def chunks(self) -> Iterator[bytes]:
        """The plain text from its beginning. Only what has been read to the end is whole.

        Raises:
            ArchiveDamaged: It was changed or cut short.
        """
        self._file.seek(_BODY)
        number, chunk = 0, self._read(CHUNK + _TAG)
        while True:
            following = self._read(CHUNK + _TAG)
            yield self._open(number, chunk, is_last=not following)
            if not following:
                return
            number, chunk = number + 1, following

    def verify(self) -> None:
        """Reads all of it. Raises `ArchiveDamaged`."""
        for _ in self.chunks():
            pass

    def _read(self, length: int) -> bytes:
        try:
            return self._file.read(length)
        except OSError as error:
            raise ArchiveDamaged(f"the archive cannot be read ({error.strerror})") from error

    def _open(self, number: int, chunk: bytes, *, is_last: bool) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(number, is_last=is_last), chunk, self._header)
        except (InvalidTag, ValueError) as error:
            raise ArchiveDamaged(
                f"the archive was changed or cut short (at byte {_BODY + number * (CHUNK + _TAG)})"
            ) from error


def _require_head(header: bytes) -> None:
    if not header.startswith(_MAGIC):
        raise ArchiveDamaged("this is no backup of ClawNet")
    if header[len(_MAGIC) : len(_MAGIC) + 1] not in (_VERSION, b""):
        raise ArchiveDamaged(
            f"the archive has the format {header[len(_MAGIC)]}, and this version of ClawNet knows 1: "
            "it was changed, or a newer one made it"
        )
    if len(header) < _BODY or sha256(header[:-_CHECK]).digest() != header[-_CHECK:]:
        raise ArchiveDamaged("the archive was changed or cut short (in its head)")


def _keys(passphrase: str, salt: bytes) -> tuple[bytes, bytes]:
    """The key, and the commitment to it."""
    okm = hkdf(stretch(passphrase.encode(), salt), salt, b"clawnet/backup/v1", 64)
    return okm[:32], okm[32:]


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(8, "big") + b"\0\0\0" + bytes([is_last])
