"""The format CN1 of one sealed value, byte by byte.

It is stored in standard base64, so that it always begins with `Q04B`:

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
import secrets
import struct
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.domain.errors import CiphertextTampered, KeyUnavailable, UnsupportedCiphertext
from app.vault.kdf import hkdf
from app.vault.values import Place, Sealed, counted

_HEADER = struct.Struct(">2sBI")
_MAGIC, _VERSION = b"CN", 1
_SALT, _COMMITMENT, _TAG = 24, 32, 16
_BODY = _HEADER.size + _SALT + _COMMITMENT


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
    key, nonce, commitment = _keys(dek, salt)
    body = AESGCM(key).encrypt(nonce, plain, _aad(header, install_id, place))
    return Sealed(base64.b64encode(header + salt + commitment + body).decode())


def decrypt(sealed: str, keys: Mapping[int, bytes], install_id: str, place: Place) -> bytes:
    """What was sealed for this very place. Magic, version and length, then the key, its commitment and the tag decide.

    Args:
        keys: The data keys by number.

    Raises:
        UnsupportedCiphertext: It is no CN1.
        KeyUnavailable: Its data key is not among `keys`.
        CiphertextTampered: It was changed, or belongs to another place.
    """
    blob = _parse(sealed)
    _, _, number = _HEADER.unpack_from(blob)
    dek = keys.get(number)
    if dek is None:
        raise KeyUnavailable(number)
    header, salt = blob[: _HEADER.size], blob[_HEADER.size : _HEADER.size + _SALT]
    key, nonce, commitment = _keys(dek, salt)
    if not hmac.compare_digest(commitment, blob[_HEADER.size + _SALT : _BODY]):
        raise CiphertextTampered("the ciphertext was not made with the key it names, or was changed")
    try:
        return AESGCM(key).decrypt(nonce, blob[_BODY:], _aad(header, install_id, place))
    except (InvalidTag, OverflowError, UnicodeEncodeError) as error:  # Nothing was sealed for a place without words.
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


def _keys(dek: bytes, salt: bytes) -> tuple[bytes, bytes, bytes]:
    """Key, nonce and commitment of one value."""
    okm = hkdf(dek, salt, b"clawnet/field/v1", 76)
    return okm[:32], okm[32:44], okm[44:]


def _aad(header: bytes, install_id: str, place: Place) -> bytes:
    return header + b"clawnet/aad/v1" + counted(install_id) + place.encode()
