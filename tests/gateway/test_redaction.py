"""What a gateway prints of its secrets is not kept, however it spells them and wherever they stand."""

import base64
import json
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.gateway import redaction
from app.gateway.redaction import Redactor

TOKEN = '123456789:AAq/Zx+9 ü"k\\Q-_7'
PEM = (
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj\n"
    "-----END PRIVATE KEY-----\n"
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[int]:
    folder = os.open(tmp_path, os.O_RDONLY)
    yield folder
    os.close(folder)


def configure(folder: Path, *secrets: str) -> None:
    draft = folder / "draft"
    draft.write_text(json.dumps({"channels": {str(n): {"botToken": each} for n, each in enumerate(secrets)}}))
    draft.replace(folder / "config.json5")


def knowing(home: int, folder: Path, *secrets: str) -> Redactor:
    configure(folder, *secrets)
    redactor = Redactor(home)
    redactor.learn()
    return redactor


SPELLINGS = {
    "as it is": TOKEN,
    "as JSON": json.dumps(TOKEN),
    "as JSON that leaves letters alone": json.dumps(TOKEN, ensure_ascii=False),
    "in an address": quote(TOKEN, safe=""),
    "in an address, in small letters": re.sub("%..", lambda found: found[0].lower(), quote(TOKEN, safe="")),
    "in base64": base64.b64encode(TOKEN.encode()).decode(),
    "in base64 with a name before": base64.b64encode(f"user:{TOKEN}".encode()).decode(),
    "in base64 amid others": base64.b64encode(f"u:{TOKEN}:x".encode()).decode(),
    "in base64 for addresses": base64.urlsafe_b64encode(f"ab{TOKEN}".encode()).decode(),
    "in a form": quote_plus(TOKEN),
    "in an address, as a browser writes it": quote(TOKEN, safe=";/?:@&=+$,#!~*'()"),
    "as JSON in JSON": json.dumps(json.dumps(TOKEN)),
    "as JSON in JSON that leaves letters alone": json.dumps(json.dumps(TOKEN, ensure_ascii=False), ensure_ascii=False),
    "as Node and Python show it": repr(TOKEN),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_a_secret_is_found_in_each_spelling(home: int, tmp_path: Path, how: str) -> None:
    redactor = knowing(home, tmp_path, TOKEN)
    said = redactor.clean(f"before <{SPELLINGS[how]}> after".encode()).decode()
    assert said.startswith("before <")
    assert said.endswith("> after")
    assert "***" in said
    # At most the characters that it shares with its neighbours are left of it.
    assert len(said.removeprefix("before <").removesuffix("> after").replace("***", "")) <= 16


@given(
    before=st.binary(max_size=40),
    secret=st.text(st.characters(codec="ascii", categories="LN"), min_size=6),
    n=st.integers(0, 9),
)
def test_a_secret_is_found_wherever_it_stands(
    tmp_path_factory: pytest.TempPathFactory, before: bytes, secret: str, n: int
) -> None:
    folder = tmp_path_factory.mktemp("home")
    home = os.open(folder, os.O_RDONLY)
    try:
        redactor = knowing(home, folder, secret, *(f"another-secret-{i}" for i in range(n)))
        assert secret.encode() not in redactor.clean(before + secret.encode() + before)
        assert redactor.clean(b"nothing of it") == b"nothing of it"
    finally:
        os.close(home)


def test_a_key_of_many_lines_is_found_line_by_line(home: int, tmp_path: Path) -> None:
    account = json.dumps({"type": "service_account", "private_key": PEM})
    redactor = knowing(home, tmp_path, account)
    for spelled in (PEM, account, json.dumps(account), repr(PEM)):
        said = redactor.clean(spelled.encode()).decode()
        assert [line for line in PEM.splitlines() if line in said] == []


@pytest.mark.parametrize(
    ("secret", "said"),
    [
        ("a*b(c)d!1~'e", "a%2Ab%28c%29d%211~%27e"),
        ("a*b(c)d!1~'e", "a*b%28c%29d%211%7E%27e"),
        ("it's-my\"secret9", r"it\'s-my" + '"secret9'),
        ("a  very \t long phrase", "a very long phrase"),
        ("one\x00two\x7fthree\x85four\u2028five", "onetwothreefourfive"),
        ("p\\ath's\nnext-line-of-it", r"p\\ath\'s\nnext-line-of-it"),
    ],
)
def test_a_secret_is_found_as_programs_print_it(home: int, tmp_path: Path, secret: str, said: str) -> None:
    assert knowing(home, tmp_path, secret).clean(f"<{said}>".encode()) == b"<***>"


def test_user_and_password_in_an_address_are_not_kept(home: int, tmp_path: Path) -> None:
    redactor = knowing(home, tmp_path)
    said = redactor.clean(b'at http://user:pw-12@host/a@b and {"at":"http://host","mail":"me@host"}\nssh://x@host')
    assert said == b'at http://***@host/a@b and {"at":"http://host","mail":"me@host"}\nssh://***@host'
    assert urlsplit(said.decode().split()[1]).hostname == "host"


def test_a_secret_of_any_length_is_found_to_its_end(home: int, tmp_path: Path) -> None:
    secret = "".join(random.Random(1).choices('abcdefgh+/ "ü', k=16_000))
    redactor = knowing(home, tmp_path, secret)
    assert redactor.longest < 16 * 1024
    for spelled in (secret, json.dumps(secret)):
        assert len(redactor.clean(spelled.encode()).replace(b"*", b"")) < 100


def test_what_is_too_short_to_be_told_from_words_is_left(home: int, tmp_path: Path) -> None:
    redactor = knowing(home, tmp_path, "a1b2", "a1b2c")
    assert redactor.clean(b"a1b2 a1b2c") == b"a1b2 ***"


def test_a_new_configuration_is_learned_and_the_old_one_is_remembered(home: int, tmp_path: Path) -> None:
    redactor = knowing(home, tmp_path, "the-first-secret")
    configure(tmp_path, "the-second-secret")
    redactor.learn()
    (tmp_path / "config.json5").unlink()
    redactor.learn()
    assert redactor.clean(b"the-first-secret the-second-secret") == b"*** ***"


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "5", '"x"', '{"token": "\\ud800abcdef"}', '{"a": {"b": [null]}}', "\xff"]
)
def test_what_the_bot_writes_in_its_configurations_place_changes_nothing(home: int, tmp_path: Path, text: str) -> None:
    redactor = knowing(home, tmp_path, "the-first-secret")
    (tmp_path / "config.json5").write_bytes(text.encode("latin-1"))
    redactor.learn()
    assert redactor.clean(b"the-first-secret") == b"***"


def test_a_link_and_a_pipe_in_its_place_are_not_read(home: int, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text(json.dumps({"token": "the-outside-secret"}))
    (tmp_path / "config.json5").symlink_to(tmp_path / "outside")
    redactor = Redactor(home)
    redactor.learn()
    (tmp_path / "config.json5").unlink()
    os.mkfifo(tmp_path / "config.json5")
    redactor.learn()
    assert redactor.clean(b"the-outside-secret") == b"the-outside-secret"


def test_what_is_remembered_has_an_end_and_the_present_ones_are_in_it(
    home: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "MOST", 300)
    redactor = knowing(home, tmp_path, "the-lasting-secret")
    for number in range(200):
        configure(tmp_path, "the-lasting-secret", f"a-secret-for-a-while-{number}")
        redactor.learn()
    assert redactor.clean(b"the-lasting-secret a-secret-for-a-while-199") == b"*** ***"
    assert redactor.clean(b"a-secret-for-a-while-0") == b"a-secret-for-a-while-0"


def test_what_was_there_first_is_not_pushed_out(home: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "MOST", 400)
    monkeypatch.setattr(redaction, "MOST_BYTES", 8_000)
    redactor = knowing(home, tmp_path, "the-first-secret")
    for number in range(20):
        configure(tmp_path, *(f"a-word-of-the-bot-s-{number}-{n}" for n in range(300)))
        redactor.learn()
    assert redactor.clean(b"the-first-secret a-word-of-the-bot-s-0-0") == b"*** a-word-of-the-bot-s-0-0"
    assert redactor.clean(b"a-word-of-the-bot-s-19-9") == b"***"


SIZE = redaction.CONFIG_MAX - 200
HOSTILE = {
    "one secret": json.dumps({"token": "x" * SIZE}),
    "one secret that is longer when it is encoded": json.dumps({"token": '%+"' * (SIZE // 4)}),
    "many lines": json.dumps({"token": "\n".join(f"{n:09}" for n in range(SIZE // 11))}),
    "many secrets": json.dumps({"headers": [f"{n:08}" for n in range(SIZE // 12)]}),
    "many secrets alike": json.dumps({"headers": ["12345678"] * (SIZE // 12)}),
    "many secrets of several words": json.dumps({"headers": [f"some words {n:08}" for n in range(SIZE // 23)]}),
    "nothing in many places": '{"token": [' + "{}," * (SIZE // 3) + "0]}",
    "a hundred times what there can be": json.dumps({"token": "x" * 50 * 1024 * 1024}),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_no_configuration_of_a_bot_s_making_costs_much(home: int, tmp_path: Path, how: str) -> None:
    (tmp_path / "config.json5").write_text(HOSTILE[how])
    redactor = Redactor(home)
    began = time.thread_time()
    redactor.learn()
    for block in (b"some words of it\n" * 4_000, b"1" * 65_536, b"00000001 " * 7_000):
        redactor.clean(block)
    # Before there was a bound, a configuration of 8 MiB took a minute and a gigabyte.
    assert time.thread_time() - began < 3
    assert redactor.longest <= 14 * redaction.PART


def test_a_configuration_that_costs_is_not_looked_at_all_the_time(home: int, tmp_path: Path) -> None:
    redactor = Redactor(home)
    began, looks = time.monotonic(), 20
    for number in range(looks):
        configure(tmp_path, *(f"a-secret-{number}-{n}" for n in range(4_000)))
        before = time.thread_time()
        redactor.learn()
        looks -= time.thread_time() - before < redaction.COSTLY / 2
    assert 1 <= looks <= 1 + (time.monotonic() - began) / redaction.PAUSE


def test_a_block_in_which_nearly_anything_may_be_a_secret_is_not_kept(home: int, tmp_path: Path) -> None:
    secrets = [f"{n:06}" for n in range(2 * redaction.MOST_CANDIDATES)]
    redactor = knowing(home, tmp_path, *secrets)
    assert redactor.clean(" ".join(secrets).encode()) == b"***"
    assert redactor.clean(b"000001 is one") == b"*** is one"
