"""What must hold for every value, place and text: what is sealed opens there alone, and nothing else opens at all."""

import base64
import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import vault
from app.domain.errors import CiphertextTampered, SecretError
from app.graphql.mutations.credentials import MAX_SECRET
from app.vault import Place, Vault
from app.vault.cn1 import _keys

DEKS = {1: bytes(range(32)), 2: bytes(range(32, 64))}
VAULT = Vault("inst-1", DEKS, 2)
PLACE = Place("bot_channel", "018f3c1e-0000-7000-8000-000000000001", "credentials", "discord.token")

#: Text as a row can hold it, and all else that a damaged one may.
_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_json: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
_places = st.builds(Place, _text, _text | st.uuids(), _text, _text)


@pytest.mark.parametrize(
    "plain", [b"", b"x", b"1234567890abcdef", bytes(17), "zwölf Boxkämpfer".encode(), bytes(range(256))], ids=len
)
def test_every_flipped_bit_is_refused(plain: bytes) -> None:
    blob = base64.b64decode(VAULT.seal(plain, PLACE))
    for bit in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SecretError):
            VAULT.unseal(base64.b64encode(changed).decode(), PLACE)


def test_every_flipped_bit_of_the_stored_text_is_refused() -> None:
    text = VAULT.seal("1234567890abcdef", PLACE).encode()
    for bit in range(len(text) * 8):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SecretError):
            VAULT.unseal(changed.decode("latin-1"), PLACE)


def test_every_swap_between_rows_fields_tables_and_installations_is_refused() -> None:
    tables, rows = ("bot_channel", "bot_secret", "model_provider"), (PLACE.row_id, str(PLACE.row_id)[:-1] + "2")
    columns, paths = ("credentials", "sealed", "api_key"), ("slack.botToken", "slack.appToken", "telegram.botToken")
    vaults = [Vault(name, DEKS, 2) for name in ("inst-1", "inst-2")]
    places = [Place(*parts) for parts in itertools.product(tables, rows, columns, paths)]
    every = [(it, place, it.seal("hunter2", place)) for it in vaults for place in places]
    assert len(every) == 2 * 3 * 2 * 3 * 3
    for (_, _, sealed), (opened, place, own) in itertools.product(every, every):
        if sealed is own:
            assert opened.unseal(sealed, place).reveal() == "hunter2"
        else:
            with pytest.raises(CiphertextTampered):
                opened.unseal(sealed, place)


def test_what_is_sealed_with_one_data_key_cannot_be_passed_off_as_another_s() -> None:
    blob = bytearray(base64.b64decode(VAULT.seal("hunter2", PLACE)))
    blob[6] = 1
    with pytest.raises(CiphertextTampered):
        VAULT.unseal(base64.b64encode(blob).decode(), PLACE)


@settings(deadline=None, max_examples=60)  # A busy machine is no bug of ours.
@given(text=_text, times=st.integers(1, MAX_SECRET), place=_places)
def test_whatever_is_no_longer_than_a_secret_may_be_opens_again(text: str, times: int, place: Place) -> None:
    secret = (text * times)[:MAX_SECRET]
    sealed = VAULT.seal(secret, place)
    assert VAULT.unseal(sealed, place).reveal() == secret
    assert VAULT.reseal(sealed, place) != sealed
    assert len(secret) < 8 or secret not in sealed


@settings(deadline=None)
@given(here=_places, there=_places)
def test_only_its_own_place_opens_a_value(here: Place, there: Place) -> None:
    sealed = VAULT.seal("hunter2", here)
    if here == there or here.encode() == there.encode():
        assert VAULT.unseal(sealed, there).reveal() == "hunter2"
    else:
        with pytest.raises(CiphertextTampered):
            VAULT.unseal(sealed, there)


@pytest.mark.parametrize("path", ["x" * 65_536, "\ud800"])
def test_a_place_that_nothing_can_be_sealed_for_opens_nothing(path: str) -> None:
    sealed = VAULT.seal("hunter2", PLACE)
    with pytest.raises(CiphertextTampered):
        VAULT.unseal(sealed, Place(PLACE.table, PLACE.row_id, PLACE.column, path))


def test_no_salt_key_or_nonce_comes_twice() -> None:
    salts = {base64.b64decode(VAULT.seal("hunter2", PLACE))[7:31] for _ in range(20_000)}
    assert len(salts) == 20_000
    keys = [_keys(DEKS[2], salt) for salt in itertools.islice(salts, 5_000)]
    assert (
        len({key for key, _, _ in keys}) == len({nonce for _, nonce, _ in keys}) == len({c for *_, c in keys}) == 5_000
    )


@settings(deadline=None, max_examples=300)
@given(found=_json | st.binary(max_size=300).map(lambda raw: base64.b64encode(raw).decode()), place=_places)
def test_garbage_is_refused_with_the_vault_s_own_error(found: Any, place: Place) -> None:
    with pytest.raises(SecretError):
        VAULT.unseal(found, place)
    with pytest.raises(SecretError):
        VAULT.reseal(found, place)


@settings(deadline=None, max_examples=300)
@given(body=st.binary(max_size=300), number=st.integers(0, 2**32 - 1) | st.sampled_from([1, 2]))
def test_garbage_that_looks_like_a_ciphertext_is_refused(body: bytes, number: int) -> None:
    text = base64.b64encode(b"CN\1" + number.to_bytes(4, "big") + body).decode()
    with pytest.raises(SecretError):
        VAULT.unseal(text, PLACE)


@settings(deadline=None, max_examples=300)
@given(plain=st.binary(max_size=60), data=st.data())
def test_a_ciphertext_cut_extended_or_spliced_is_refused(plain: bytes, data: st.DataObject) -> None:
    blob, other = (base64.b64decode(VAULT.seal(plain, PLACE)) for _ in range(2))
    at = data.draw(st.integers(0, len(blob) - 1))
    more = data.draw(st.binary(min_size=1, max_size=40))
    for changed in (
        blob[:at],
        blob[at + 1 :],
        blob + more,
        more + blob,
        blob[:at] + more + blob[at:],
        blob[:63] + other[63:],
    ):
        with pytest.raises(SecretError):
            VAULT.unseal(base64.b64encode(changed).decode(), PLACE)
    text = base64.b64encode(blob).decode()
    cut = data.draw(st.integers(0, len(text) - 1))
    for changed in (text[:cut], text + "=", text + text, text[:cut] + "\n" + text[cut:], text.lower(), f" {text}"):
        with pytest.raises(SecretError):
            VAULT.unseal(changed, PLACE)


@pytest.mark.parametrize(
    "text",
    ["A" * 8_000_000, "=" * 8_000_000, "\n" * 8_000_000, "é" * 4_000_000, "Q04BAAAAAQ" + "A" * 7_999_990],
    ids=["letters", "padding", "newlines", "beyond ASCII", "a header"],
)
def test_a_very_long_text_is_refused_soon(text: str) -> None:
    began = time.process_time()
    with pytest.raises(SecretError):
        VAULT.unseal(text, PLACE)
    # It takes some 20 ms; what grows faster than its length would take minutes.
    assert time.process_time() - began < 5


def test_no_refusal_holds_what_was_refused() -> None:
    for found in ("sk-canary-plain", vault.encrypt(b"sk-canary", 9, bytes(32), "inst-1", PLACE), {"sk-canary": 1}):
        with pytest.raises(SecretError) as refused:
            VAULT.unseal(found, PLACE)  # pyright: ignore[reportArgumentType]
        assert "canary" not in str(refused.value)
        assert str(found)[:20] not in str(refused.value)
