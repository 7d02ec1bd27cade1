"""How keys are derived from other keys, and from what people remember."""

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

#: Memory and time of stretching a passphrase: 128 MiB and about half a second.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**17, 8, 1


def hkdf(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(ikm)


def stretch(passphrase: bytes, salt: bytes) -> bytes:
    """32 bytes of scrypt (RFC 7914); call it in a thread."""
    return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase)
