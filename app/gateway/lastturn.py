"""What an old gateway wrote about its last turn: over HTTP it passes a model's failure off as the bot's own words.

The failure stands in the transcript, as an assistant's message without content, with `stopReason: "error"` and the
`errorMessage` that was sent as the answer. Versions that keep their sessions in SQLite answer with an error status.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from app.gateway import files

#: Most that is read of the index, and from the end of a transcript, in bytes.
MAX_INDEX, MAX_TAIL = 16 * 1024 * 1024, 256 * 1024

_SESSION_ID = re.compile(r"[0-9A-Za-z-]{1,64}\Z")


def failure(home: Path, agent_id: str, session_key: str, answer: str) -> str | None:
    """The model's error, if that is all the answer says; None for an answer, or where nothing is known.

    The files are the bot's own and nothing in them is trusted: links are refused and sizes bounded.
    """
    folder = home / "agents" / agent_id / "sessions"
    index = _object(_read(folder / "sessions.json", MAX_INDEX))
    session_id = _object_in(index, session_key).get("sessionId")
    if not isinstance(session_id, str) or not _SESSION_ID.match(session_id):
        return None
    for message in _backwards(_read(folder / f"{session_id}.jsonl", MAX_TAIL)):
        if message.get("role") == "assistant":
            said = message.get("errorMessage")
            if message.get("stopReason") != "error" or not isinstance(said, str):
                return None
            return said if said.strip() in answer else None
    return None


def _backwards(text: str) -> Iterator[dict[str, Any]]:
    for line in reversed(text.splitlines()):
        yield _object_in(_object(line), "message")


def _read(path: Path, limit: int) -> str:
    """The end of a regular file; nothing where there is none, or a link or a pipe in its place."""
    try:
        return files.end_of(path, limit).decode("utf-8", "replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _object_in(value: dict[str, Any], name: str) -> dict[str, Any]:
    inner = value.get(name)
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else {}
