"""Seals and opens the secrets that rest in the database; the only package that imports `cryptography`.

    ENCRYPTION_KEY ─ master_key ─► MasterKey ─ kek ─► key-encryption key ─ unwrap ─► data keys ─► Vault
    (keyfile)        (masterkey)   (kdf)              (keyring)                      (cn1)        (vault)

Each value has a key of its own, derived from the data key and its salt, and is bound to its installation, table,
row, column and path: moved anywhere else it does not open.
"""

from app.vault.cn1 import encrypt, key_id
from app.vault.kdf import SCRYPT_N, SCRYPT_P, SCRYPT_R
from app.vault.keyfile import key_file, write_key_file
from app.vault.keyring import (
    Installation,
    WrappedFingerprintKey,
    WrappedKey,
    kek,
    kek_id,
    new_fingerprint_key,
    new_key,
    new_keyring,
    require_same,
    rewrap,
    unwrap,
    unwrap_fingerprint_key,
    wrap,
    wrapping_key,
)
from app.vault.masterkey import EXPECTED_KEY, KDF_RAW, KDF_SCRYPT, MIN_DISTINCT, MIN_PASSPHRASE, MasterKey, master_key
from app.vault.values import Place, Sealed, Secret
from app.vault.vault import Vault, open_keyring

__all__ = [
    "EXPECTED_KEY",
    "KDF_RAW",
    "KDF_SCRYPT",
    "MIN_DISTINCT",
    "MIN_PASSPHRASE",
    "SCRYPT_N",
    "SCRYPT_P",
    "SCRYPT_R",
    "Installation",
    "MasterKey",
    "Place",
    "Sealed",
    "Secret",
    "Vault",
    "WrappedFingerprintKey",
    "WrappedKey",
    "encrypt",
    "kek",
    "kek_id",
    "key_file",
    "key_id",
    "master_key",
    "new_fingerprint_key",
    "new_key",
    "new_keyring",
    "open_keyring",
    "require_same",
    "rewrap",
    "unwrap",
    "unwrap_fingerprint_key",
    "wrap",
    "wrapping_key",
    "write_key_file",
]
