"""What a gateway prints of its secrets is not kept, however it spells them and wherever they stand."""

import base64
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

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


def test_what_is_too_short_to_be_told_from_words_is_left(home: int, tmp_path: Path) -> None:
    redactor = knowing(home, tmp_path, "a1b2c", "a1b2c3")
    assert redactor.clean(b"a1b2c a1b2c3") == b"a1b2c ***"


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
