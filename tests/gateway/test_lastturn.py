"""Telling a bot's answer from its model's failure, by what real OpenClaw 2026.2.1 wrote."""

import json
from pathlib import Path

import pytest

from app.gateway import lastturn

KEY = "agent:hana:openai-user:ada"


def home(folder: Path, *messages: dict[str, object], session_id: str = "0b") -> Path:
    sessions = folder / "agents" / "hana" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "sessions.json").write_text(json.dumps({KEY: {"sessionId": session_id}}))
    lines = [{"type": "session", "version": 3}, *({"type": "message", "message": message} for message in messages)]
    (sessions / "0b.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


FAILED = {"role": "assistant", "content": [], "stopReason": "error", "errorMessage": "500 the model is unwell"}
ANSWERED = {"role": "assistant", "content": [{"type": "text", "text": "Hello"}], "stopReason": "stop"}


def test_a_failed_turn_is_a_failure(tmp_path: Path) -> None:
    found = lastturn.failure(home(tmp_path, ANSWERED, FAILED), "hana", KEY, "500 the model is unwell")
    assert found == "500 the model is unwell"


def test_an_answer_after_a_failure_is_an_answer(tmp_path: Path) -> None:
    assert lastturn.failure(home(tmp_path, FAILED, ANSWERED), "hana", KEY, "Hello") is None


def test_an_answer_that_was_not_written_yet_is_an_answer(tmp_path: Path) -> None:
    assert lastturn.failure(home(tmp_path, FAILED), "hana", KEY, "Hello") is None


@pytest.mark.parametrize("session_id", ["../../../../etc/passwd", "", "a/b", 7])
def test_an_index_cannot_lead_out_of_its_folder(tmp_path: Path, session_id: str) -> None:
    assert lastturn.failure(home(tmp_path, FAILED, session_id=session_id), "hana", KEY, "500") is None


def test_no_link_is_followed_and_nothing_broken_raises(tmp_path: Path) -> None:
    made = home(tmp_path, FAILED)
    transcript = made / "agents" / "hana" / "sessions" / "0b.jsonl"
    transcript.rename(tmp_path / "elsewhere")
    transcript.symlink_to(tmp_path / "elsewhere")
    assert lastturn.failure(made, "hana", KEY, "500 the model is unwell") is None
    transcript.unlink()
    transcript.write_text("[" * 100_000)
    assert lastturn.failure(made, "hana", KEY, "500 the model is unwell") is None
    assert lastturn.failure(tmp_path / "nowhere", "hana", KEY, "Hello") is None
