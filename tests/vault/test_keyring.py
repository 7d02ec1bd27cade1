"""Sealing: the format byte by byte, what must not open, and where the master key comes from."""

import base64
import copy
import hmac
import json
import os
import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import vault
from app.domain.errors import CiphertextTampered, KeyMismatch, KeyUnavailable, SettingsError, UnsupportedCiphertext
from app.vault import MasterKey, Place, Sealed, Secret, Vault

DEK = bytes(range(32))
PLACE = Place("bot_channel", "018f3c1e-0000-7000-8000-000000000001", "credentials", "discord.token")
VECTOR = (
    "Q04BAAAAAWRlZmdoaWprbG1ub3BxcnN0dXZ3eHl6e8Yos3sRCzgeEXloye8Il7AkYmP2GLU0Tk6oyrvtByMbg4RyNGcUJOs1IHsGX3KQ"
    "NYkO9+Q0L5kqsS3cS0dJ3lI="
)
VAULT = Vault("inst-1", {1: DEK, 2: bytes(32)}, 1)
PASSPHRASE = "an-example-32-character-string!!"
HEX = "00112233445566778899aabbccddeeff" * 2


# The format


def test_the_first_vector_seals_to_its_text():
    assert vault.encrypt(b"1234567890abcdef", 1, DEK, "inst-1", PLACE, salt=bytes(range(0x64, 0x7C))) == VECTOR


def test_the_first_vector_opens():
    assert VAULT.unseal(VECTOR, PLACE).reveal() == "1234567890abcdef"


def test_the_second_vector_names_its_key():
    salt = bytes(range(16))
    key = vault.kek(vault.master_key(PASSPHRASE).ikm(salt), salt)
    assert vault.kek_id(key).hex() == "aa1285fb9c31c6ec"


def test_every_flipped_bit_of_a_ciphertext_is_refused():
    blob = base64.b64decode(VECTOR)
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises((UnsupportedCiphertext, KeyUnavailable, CiphertextTampered)):
            VAULT.unseal(base64.b64encode(changed).decode(), PLACE)


@pytest.mark.parametrize("cut", [1, 2, 16, 17, 94])
def test_a_shortened_or_lengthened_ciphertext_is_refused(cut: int):
    blob = base64.b64decode(VECTOR)
    for changed in (blob[:-cut], blob + bytes(cut)):
        with pytest.raises((UnsupportedCiphertext, CiphertextTampered)):
            VAULT.unseal(base64.b64encode(changed).decode(), PLACE)


@pytest.mark.parametrize(
    "text",
    ["", "Q", "plain text", "1234567890abcdef", VECTOR + "\n", " " + VECTOR, VECTOR[:-1], VECTOR[:-2] + "J=", "é" * 8],
)
def test_a_text_that_is_no_ciphertext_is_unsupported(text: str):
    with pytest.raises(UnsupportedCiphertext):
        VAULT.unseal(text, PLACE)


@pytest.mark.parametrize("found", [None, 5, [], {}, b"Q04x"])
def test_what_is_no_text_is_unsupported(found: Any):
    with pytest.raises(UnsupportedCiphertext):
        VAULT.unseal(found, PLACE)


def test_checks_come_in_their_order():
    blob = bytearray(base64.b64decode(VECTOR))
    blob[6], blob[31] = 9, blob[31] ^ 1
    with pytest.raises(KeyUnavailable) as refused:
        VAULT.unseal(base64.b64encode(blob).decode(), PLACE)
    assert refused.value.key_id == 9
    blob[2] = 2
    with pytest.raises(UnsupportedCiphertext):
        VAULT.unseal(base64.b64encode(blob).decode(), PLACE)


@pytest.mark.parametrize(
    "place",
    [
        replace(PLACE, table="bot_secret"),
        replace(PLACE, row_id="018f3c1e-0000-7000-8000-000000000002"),
        replace(PLACE, column="settings"),
        replace(PLACE, path="discord.secret"),
        replace(PLACE, path=""),
        Place(PLACE.table + str(PLACE.row_id), "", PLACE.column, PLACE.path),
        Place(PLACE.table, PLACE.row_id, PLACE.column + "d", PLACE.path[1:]),
        Place(str(PLACE.row_id), PLACE.table, PLACE.column, PLACE.path),
    ],
)
def test_a_ciphertext_opens_nowhere_else(place: Place):
    with pytest.raises(CiphertextTampered):
        VAULT.unseal(VECTOR, place)


def test_a_ciphertext_does_not_open_in_another_installation():
    with pytest.raises(CiphertextTampered):
        Vault("inst-2", {1: DEK}, 1).unseal(VECTOR, PLACE)


def test_another_data_key_is_refused_before_decryption():
    with pytest.raises(CiphertextTampered, match="not made with the key it names"):
        Vault("inst-1", {1: bytes(32)}, 1).unseal(VECTOR, PLACE)


_parts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(deadline=None)  # A busy machine is no bug of ours.
@given(secret=_parts | st.binary(max_size=300), place=st.builds(Place, _parts, _parts | st.uuids(), _parts, _parts))
def test_what_is_sealed_opens_again(secret: str | bytes, place: Place):
    sealed = VAULT.seal(secret, place)
    opened = VAULT.unseal(sealed, place)
    assert (opened.reveal() if isinstance(secret, str) else opened.reveal_bytes()) == secret
    assert sealed.startswith("Q04B")
    assert len(base64.b64decode(sealed)) == 79 + len(opened.reveal_bytes())


@settings(deadline=None)  # A busy machine is no bug of ours.
@given(one=st.builds(Place, _parts, _parts, _parts, _parts), other=st.builds(Place, _parts, _parts, _parts, _parts))
def test_two_places_never_read_the_same(one: Place, other: Place):
    assert (one.encode() == other.encode()) == (one == other)


def test_sealing_twice_gives_two_texts_and_names_the_active_key():
    active = Vault("inst-1", {1: DEK, 7: bytes(32)}, 7)
    first, second = active.seal("hunter2", PLACE), active.seal("hunter2", PLACE)
    assert first != second
    assert isinstance(first, Sealed)
    assert vault.key_id(first) == 7
    assert vault.key_id(VECTOR) == 1
    assert active.unseal(VECTOR, PLACE) == Secret("1234567890abcdef")


# What a secret shows


def test_a_secret_shows_itself_to_nobody_who_does_not_ask():
    secret = Secret("hunter2")
    shown = f"{secret} {secret!r} {secret!s} {[secret]} %s" % secret
    assert "hunter2" not in shown
    assert str(secret) == repr(secret) == "<secret>"
    assert secret.reveal() == "hunter2"
    assert "hunter2" not in repr(vault.master_key("hunter2-" * 2 + "abcdefghijklmnop"))
    assert str(DEK) not in repr(VAULT)


@pytest.mark.parametrize("encode", [json.dumps, pickle.dumps, copy.copy, copy.deepcopy, msgspec.json.encode])
def test_a_secret_is_neither_encoded_nor_copied(encode):
    with pytest.raises(TypeError):
        encode(Secret("hunter2"))


# Master keys


@pytest.mark.parametrize(
    ("text", "kdf"),
    [
        (HEX, "raw"),
        (HEX.upper(), "raw"),
        (f" {HEX}\n", "raw"),
        (base64.b64encode(bytes.fromhex(HEX)).decode(), "raw"),
        (base64.urlsafe_b64encode(bytes.fromhex(HEX)).decode(), "raw"),
        (base64.urlsafe_b64encode(bytes.fromhex(HEX)).decode().rstrip("="), "raw"),
        (PASSPHRASE, "scrypt-17-8-1"),
        (HEX[:-2], "scrypt-17-8-1"),
        (HEX + "00", "scrypt-17-8-1"),
        ("g" + HEX[1:], "scrypt-17-8-1"),
        (base64.b64encode(bytes(range(31))).decode(), "scrypt-17-8-1"),
        (base64.b64encode(bytes(range(33))).decode(), "scrypt-17-8-1"),
        ("correct horse battery staple, zwölf!", "scrypt-17-8-1"),
        # 43 characters of the alphabet that no encoder of 32 bytes would end in "9".
        ("abcdefghijklmnopqrstuvwxyz0123456789ABCDEF9", "scrypt-17-8-1"),
    ],
)
def test_a_key_is_raw_when_it_spells_32_bytes_and_a_passphrase_otherwise(text: str, kdf: str):
    key = vault.master_key(text)
    assert key.kdf == kdf
    assert key.material == (bytes.fromhex(HEX) if kdf == "raw" else text.encode())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "is empty"),
        ("   \n", "is empty"),
        ("a-short-passphrase", "has 18 characters"),
        ("abcdefghijklmnopqrstuvwxyz01234", "has 31 characters"),
        ("abcabcabc" * 5, "has only 3 different characters"),
        ("0" * 64, "holds only 1 different bytes"),
        ("A" * 43 + "=", "holds only 1 different bytes"),
        ("abcdefghijklmnopqrstuvwxyz0123456789\udcff", "is not UTF-8"),
        ("32-character-random-string", "is a placeholder"),
        ("your-32-character-encryption-key!", "is a placeholder"),
        ("CHANGE_ME_CHANGE_ME_CHANGE_ME_0123456789", "is a placeholder"),
    ],
)
def test_a_weak_key_is_refused_without_being_shown(text: str, found: str):
    with pytest.raises(SettingsError) as refused:
        vault.master_key(text)
    assert str(refused.value).startswith(f"ENCRYPTION_KEY {found}")
    assert "expected 64 hex digits" in str(refused.value)
    assert not text.strip() or text not in str(refused.value)


@settings(deadline=None)  # A busy machine is no bug of ours.
@given(st.binary(min_size=32, max_size=32).filter(lambda raw: len(set(raw)) >= 10))
def test_every_spelling_of_32_bytes_is_the_same_key(raw: bytes):
    spellings = [raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()]
    spellings += [spelling.rstrip("=") for spelling in spellings]
    assert {vault.master_key(text) for text in spellings} == {MasterKey("raw", raw)}


@settings(deadline=None)  # A busy machine is no bug of ours.
@given(st.text(st.characters(), min_size=8, max_size=70))
def test_any_text_is_a_key_or_refused_without_being_shown(text: str):
    try:
        said = ""
        assert len(vault.master_key(text).material) >= 32
    except SettingsError as refused:
        said = str(refused)
    assert text not in said


# Keyring


def test_a_new_keyring_opens_and_seals():
    master = vault.master_key(HEX)
    installation, row = vault.new_keyring(master)
    opened = vault.open_keyring(master, installation, [row])
    assert (row.key_id, row.state, len(row.nonce), len(row.wrapped)) == (1, "active", 12, 48)
    assert (installation.kdf, len(installation.salt)) == ("raw", 16)
    assert (opened.install_id, opened.active_key_id) == (str(installation.id), 1)
    again = vault.open_keyring(master, installation, [row])
    assert again.unseal(opened.seal("hunter2", PLACE), PLACE).reveal() == "hunter2"


def test_a_passphrase_opens_its_keyring():
    installation, row = vault.new_keyring(vault.master_key(PASSPHRASE))
    assert installation.kdf == "scrypt-17-8-1"
    vault.open_keyring(vault.master_key(f"{PASSPHRASE}\n"), installation, [row])


def test_another_master_key_is_refused_and_both_are_named():
    installation, row = vault.new_keyring(vault.master_key(HEX))
    other = vault.master_key(HEX[::-1])
    got = vault.kek_id(vault.kek(other.ikm(installation.salt), installation.salt)).hex()
    with pytest.raises(KeyMismatch) as refused:
        vault.open_keyring(other, installation, [row])
    assert str(refused.value) == (
        f"ENCRYPTION_KEY does not match this database (wanted kek {row.kek_id.hex()}, got {got})"
    )


def test_a_keyring_holds_old_keys_beside_the_active_one():
    master = vault.master_key(HEX)
    installation, first = vault.new_keyring(master)
    sealed = vault.open_keyring(master, installation, [first]).seal("hunter2", PLACE)
    second = vault.new_key(vault.kek(master.ikm(installation.salt), installation.salt), 2, str(installation.id))
    rotated = vault.open_keyring(master, installation, [replace(first, state="decrypt"), second])
    assert rotated.unseal(sealed, PLACE).reveal() == "hunter2"
    assert vault.key_id(rotated.seal("hunter2", PLACE)) == 2


def test_a_changed_keyring_is_refused():
    master = vault.master_key(HEX)
    installation, row = vault.new_keyring(master)
    other, _ = vault.new_keyring(master)
    changed = [
        replace(row, wrapped=bytes(48)),
        replace(row, wrapped=b""),
        replace(row, nonce=bytes(12)),
        replace(row, key_id=2),
    ]
    for damaged in changed:
        with pytest.raises(SettingsError, match="was changed"):
            vault.open_keyring(master, installation, [damaged])
    with pytest.raises(SettingsError, match="was changed"):
        vault.open_keyring(master, replace(installation, id=other.id), [row])
    with pytest.raises(SettingsError, match="0 active keys"):
        vault.open_keyring(master, installation, [replace(row, state="decrypt")])
    with pytest.raises(SettingsError, match="argon"):
        vault.open_keyring(master, replace(installation, kdf="argon2id"), [row])


def test_a_vault_takes_in_what_was_changed_in_its_keyring():
    master = vault.master_key(HEX)
    installation, first = vault.new_keyring(master)
    opened = vault.open_keyring(master, installation, [first])
    sealed = opened.seal("hunter2", PLACE)
    second = opened.new_key(2)
    opened.renew([replace(first, state="decrypt"), second])
    again = opened.reseal(sealed, PLACE)
    assert (vault.key_id(sealed), vault.key_id(again)) == (1, 2)
    assert opened.unseal(again, PLACE) == opened.unseal(sealed, PLACE) == Secret("hunter2")
    # A look that began before the change, and came back after it, takes nothing back.
    opened.renew([first])
    assert vault.key_id(opened.seal("hunter2", PLACE)) == 2


def test_a_keyring_under_another_master_key_changes_nothing_in_an_open_vault():
    master, other = vault.master_key(HEX), vault.master_key(HEX[::-1])
    installation, first = vault.new_keyring(master)
    opened = vault.open_keyring(master, installation, [first])
    sealed = opened.seal("hunter2", PLACE)
    old, new = (vault.wrapping_key(it, installation.salt) for it in (master, other))
    rows, fingerprint = vault.rewrap([first], installation.fingerprint, old, new, str(installation.id))
    with pytest.raises(KeyMismatch):
        opened.renew(rows)
    assert opened.unseal(sealed, PLACE).reveal() == "hunter2"
    with pytest.raises(KeyMismatch):
        vault.open_keyring(master, replace(installation, fingerprint=fingerprint), rows)
    moved = vault.open_keyring(other, replace(installation, fingerprint=fingerprint), rows)
    assert moved.unseal(sealed, PLACE).reveal() == "hunter2"
    assert moved.fingerprint("a", "b", "c") == opened.fingerprint("a", "b", "c")


# Fingerprints


def test_a_fingerprint_is_the_hmac_of_its_parts_with_their_lengths():
    known = Vault("inst-1", {1: DEK}, 1, fingerprint_key=bytes(range(32)))
    parts = b"\0\0\0\x08telegram\0\0\0\x08botToken\0\0\0\x051:abc"
    assert known.fingerprint("telegram", "botToken", "1:abc") == hmac.digest(bytes(range(32)), parts, "sha256")
    assert known.fingerprint("telegram", "botToken", Secret("1:abc")) == hmac.digest(bytes(range(32)), parts, "sha256")


@given(st.lists(st.text(max_size=4), min_size=3, max_size=3), st.lists(st.text(max_size=4), min_size=3, max_size=3))
def test_two_fingerprints_are_the_same_only_for_the_same_secret(one: list[str], other: list[str]):
    known = Vault("inst-1", {1: DEK}, 1, fingerprint_key=DEK)
    assert (known.fingerprint(*one) == known.fingerprint(*other)) == (one == other)


def test_a_changed_key_of_fingerprints_is_refused():
    master = vault.master_key(HEX)
    installation, row = vault.new_keyring(master)
    other, _ = vault.new_keyring(master)
    assert installation.fingerprint is not None
    for damaged in (
        replace(installation.fingerprint, wrapped=bytes(48)),
        replace(installation.fingerprint, wrapped=row.wrapped, nonce=row.nonce),
        replace(installation.fingerprint, nonce=bytes(12)),
    ):
        with pytest.raises(SettingsError, match="key of fingerprints was changed: restore"):
            vault.open_keyring(master, replace(installation, fingerprint=damaged), [row])
    with pytest.raises(KeyMismatch):
        vault.open_keyring(master, replace(installation, fingerprint=other.fingerprint), [row])


def test_a_vault_without_the_key_of_fingerprints_makes_none_up():
    with pytest.raises(RuntimeError, match="without the key"):
        VAULT.fingerprint("telegram", "botToken", "1:abc")


# Key file


@pytest.fixture
def no_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_a_key_file_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path):
    path = tmp_path / "data" / "encryption.key"
    key = vault.key_file(path)
    assert vault.key_file(path) == key
    assert vault.master_key(key).kdf == "raw"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_starts_at_once_agree_on_one_key(tmp_path: Path):
    path, keys, go = tmp_path / "encryption.key", [], threading.Barrier(8)

    def start():
        go.wait(timeout=10)
        keys.append(vault.key_file(path))

    starts = [threading.Thread(target=start) for _ in range(8)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join(timeout=10)
    assert len(keys) == 8
    assert len(set(keys)) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int):
    path = tmp_path / "encryption.key"
    key = vault.key_file(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=f"mode {mode:04o} and others can reach it; expected 0600") as refused:
        vault.key_file(path)
    assert key not in str(refused.value)


def test_a_key_file_is_a_file(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "link", "pipe", "folder/../link/x"):
        with pytest.raises(SettingsError, match="key file"):
            vault.key_file(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()
