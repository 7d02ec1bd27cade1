"""What ENCRYPTION_KEY may be: 32 bytes as they are, or a passphrase that is stretched."""

import base64
import re
from dataclasses import dataclass

from app.domain.errors import SettingsError
from app.vault.kdf import stretch

#: Shortest passphrase, in characters.
MIN_PASSPHRASE = 32
#: Fewest different characters (of a raw key: bytes); below it a key is a pattern and not a secret.
MIN_DISTINCT = 10

#: What `installation.kdf` says about a raw key and about a passphrase.
KDF_RAW, KDF_SCRYPT = "raw", "scrypt-17-8-1"

#: Keys that stand in somebody's documentation, in lower case and without punctuation.
PLACEHOLDERS = ("changeme", "changethis", "placeholder", "randomstring", "your32character", "yourencryptionkey")

EXPECTED_KEY = (
    f"expected 64 hex digits, the base64 of 32 bytes, or a passphrase of at least {MIN_PASSPHRASE} characters "
    f"of which at least {MIN_DISTINCT} differ (`openssl rand -hex 32` makes a good one)"
)


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
        return stretch(self.material, salt)


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
