"""Checks on what people type: each returns the value as it is kept, or refuses it by name."""

import json
import re
from collections.abc import Iterable
from typing import Any, cast

from app.domain.errors import BadInput, Blank, Invalid, TooLong

#: Longest texts that are kept, in characters. OpenClaw cuts a persona's file at 20,000, our marks around it included.
MAX_NAME, MAX_DESCRIPTION, MAX_PROMPT, MAX_MODEL, MAX_MESSAGE = 100, 2_000, 19_000, 200, 100_000
#: Labels a bot may have, and how long each may be.
MAX_TAGS, MAX_TAG = 20, 50
#: Largest JSON value that is kept, in bytes, and how deep it may be nested: what is kept must be readable again.
MAX_JSON, MAX_JSON_DEPTH = 64 * 1024, 32

#: A folder and a process are named after it, so nothing but small letters, digits and inner hyphens.
AGENT_ID = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?\Z")

# PostgreSQL keeps no NUL, UTF-8 no lone surrogate, and control characters have no business in what people read.
_UNWANTED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_UNKEEPABLE = re.compile(r"[\x00\ud800-\udfff]")
# As JSON writes it; a backslash of the text's own is doubled.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LINE_BREAKS = re.compile(r"[\r\n\u2028\u2029]")


def line(value: str, field: str, limit: int) -> str:
    """One line of text: trimmed, not empty, no line breaks."""
    text = prose(value, field, limit).strip()
    if not any(character.isprintable() and not character.isspace() for character in text):
        raise Blank(f"{field} is empty", field)
    if _LINE_BREAKS.search(text):
        raise Invalid(f"{field} must be a single line", field)
    return text


def prose(value: str, field: str, limit: int) -> str:
    """Text of any shape up to a length."""
    if len(value) > limit:
        raise TooLong(f"{field} has {len(value)} characters; at most {limit} are allowed", field)
    if _UNWANTED.search(value):
        raise Invalid(f"{field} holds control characters that cannot be kept", field)
    return value


def sought(value: str, name: str) -> str:
    """Text to look for in a query. Raises `BadInput` for what PostgreSQL cannot even be asked."""
    if _UNKEEPABLE.search(value):
        raise BadInput(f"`{name}` holds characters that no text here has")
    return value


def tags(values: list[str]) -> list[str]:
    if len(values) > MAX_TAGS:
        raise TooLong(f"a bot has at most {MAX_TAGS} tags", "tags")
    return list(dict.fromkeys(line(value, "tags", MAX_TAG) for value in values))


def agent_id(value: str) -> str:
    if not AGENT_ID.match(value):
        raise Invalid(
            "agentId must be 1 to 40 small letters, digits or hyphens, and begin and end with a letter or digit",
            "agentId",
        )
    return value


def json_text(value: Any, field: str) -> str:
    """The value as JSON text, bounded in size and depth."""
    if _is_deep(value):
        raise TooLong(f"{field} is nested more than {MAX_JSON_DEPTH} levels deep", field)
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise Invalid(f"{field} holds text that is no valid Unicode", field) from error
    except ValueError as error:
        raise Invalid(f"{field} holds a number that JSON cannot carry", field) from error
    if size > MAX_JSON:
        raise TooLong(f"{field} is larger than {MAX_JSON // 1024} KiB", field)
    if _NUL.search(text):
        raise Invalid(f"{field} holds a NUL character, which cannot be kept", field)
    return text


def _is_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for outer in level for inner in _parts(outer)]
    return bool(level)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).values()
    return cast("list[Any]", value) if isinstance(value, list) else ()


def slug(name: str) -> str:
    """An agentId made from a name; `bot` where nothing is left of it."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:32].strip("-")
    return text or "bot"
