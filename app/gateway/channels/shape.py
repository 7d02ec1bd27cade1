"""Holds a value against a JSON Schema: the few words of it that the catalogue uses. Patterns are of whole texts.

What is refused is told by the schema's words alone, never by quoting the value: it may be a secret in the wrong place.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

#: Text longer than this is refused where its schema sets no length.
TEXT_MAX = 1_000
#: So are longer names in an object whose names are free.
NAME_MAX = 200
#: Whole numbers reach from here to its opposite where their schema says nothing else.
NUMBER_MIN = -(2**63)

#: A name that may be shown in a path. Anything else could be a secret that was given as a name.
_SHOWN = re.compile(r"[A-Za-z][A-Za-z._-]{0,39}", re.ASCII)
#: Control characters and halves of characters; a text of lines may hold tabs and line feeds.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNPRINTABLE_IN_LINES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
#: Names with a meaning of their own, in OpenClaw's files or in JavaScript.
_SPECIAL = re.compile(r"\$.*|__proto__|prototype|constructor", re.DOTALL)
_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
}

Path = tuple[str, ...]


def problems(schema: Mapping[str, Any], value: Any, path: Path = ()) -> Iterator[tuple[Path, str]]:
    """Each place that does not fit, with the reason."""
    if why := _refused(schema, value):
        yield path, why
    elif isinstance(value, Mapping):
        yield from _in_object(schema, cast("Mapping[str, Any]", value), path)
    elif isinstance(value, list):
        for number, each in enumerate(cast("list[Any]", value)):
            yield from problems(schema["items"], each, (*path, str(number)))


def _in_object(schema: Mapping[str, Any], value: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, str]]:
    for name, part in value.items():
        if (below := _schema_of(schema, name)) is None:
            yield shown(path, str(name)), _why_unknown(schema, name)
        else:
            yield from problems(below, part, (*path, name))
    for name in schema.get("required", ()):
        if name not in value:
            yield (*path, name), "this is missing"


def fitted(schema: Mapping[str, Any], value: Any) -> Any:
    """What of the value fits: the rest is left out, down to None when nothing is left that could be said."""
    if isinstance(value, Mapping) and not _refused(schema, value):
        return _fitted_object(schema, cast("Mapping[str, Any]", value))
    if isinstance(value, list) and not _refused(schema, value):
        parts = [fitted(schema["items"], each) for each in cast("list[Any]", value)]
        kept = [part for part in parts if part is not None]
        return None if _refused(schema, kept) else kept
    return None if _refused(schema, value) else cast("Any", value)


def _fitted_object(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any] | None:
    kept: dict[str, Any] = {}
    for name, part in value.items():
        below = _schema_of(schema, name)
        if below is not None and (fits := fitted(below, part)) is not None:
            kept[name] = fits
    return kept if kept.keys() >= set(schema.get("required", ())) else None


def shown(path: Path, name: str) -> Path:
    """The path of a name that came from outside: a name that could be a secret is not repeated."""
    return (*path, name) if _SHOWN.fullmatch(name) else path


def _schema_of(schema: Mapping[str, Any], name: Any) -> Mapping[str, Any] | None:
    if not isinstance(name, str):
        return None
    if (known := schema.get("properties", {}).get(name)) is not None:
        return known
    for pattern, below in schema.get("patternProperties", {}).items():
        if re.fullmatch(pattern, name, re.ASCII):
            return below
    rest = schema.get("additionalProperties")
    return None if not isinstance(rest, Mapping) or _name_refused(schema, name) else cast("Mapping[str, Any]", rest)


def _name_refused(schema: Mapping[str, Any], name: str) -> str | None:
    if _SPECIAL.fullmatch(name):
        return "this name means something else to OpenClaw"
    return _text_refused({"minLength": 1, "maxLength": NAME_MAX, **schema.get("propertyNames", {})}, name)


def _why_unknown(schema: Mapping[str, Any], name: Any) -> str:
    if isinstance(name, str) and isinstance(schema.get("additionalProperties"), Mapping):
        return f"a name of this object: {_name_refused(schema, name)}"
    return "this is not known here"


def _refused(schema: Mapping[str, Any], value: Any) -> str | None:
    """Why the value itself does not fit; what is in it is looked at apart."""
    if choices := schema.get("enum"):
        fits = any(type(each) is type(value) and each == value for each in choices)
        return None if fits else f"one of {', '.join(json.dumps(each) for each in choices)}"
    kinds = cast("list[str]", [schema["type"]] if isinstance(schema["type"], str) else schema["type"])
    if _kind(value) not in kinds:
        return f"this has to be {' or '.join(_WORDS[kind] for kind in kinds)}"
    if isinstance(value, str):
        return _text_refused(schema, value)
    least, most = schema.get("minimum", NUMBER_MIN), schema.get("maximum", -NUMBER_MIN)
    if isinstance(value, int) and not least <= value <= most:
        return f"a number from {least} to {most}"
    if isinstance(value, list) and not schema.get("minItems", 0) <= len(cast("list[Any]", value)) <= schema["maxItems"]:
        return f"from {schema.get('minItems', 0)} to {schema['maxItems']} entries"
    if isinstance(value, Mapping) and len(cast("Mapping[str, Any]", value)) > schema.get("maxProperties", 1_000):
        return f"at most {schema.get('maxProperties', 1_000)} entries"
    return None


def _kind(value: Any) -> str:
    kinds = ((bool, "boolean"), (str, "string"), (int, "integer"), (list, "array"), (Mapping, "object"))
    return next((kind for each, kind in kinds if isinstance(value, each)), "null")


def _text_refused(schema: Mapping[str, Any], text: str) -> str | None:
    if not schema.get("minLength", 0) <= len(text) <= schema.get("maxLength", TEXT_MAX):
        return f"from {schema.get('minLength', 0)} to {schema.get('maxLength', TEXT_MAX)} characters"
    unprintable = _UNPRINTABLE_IN_LINES if schema.get("format") in ("lines", "json") else _UNPRINTABLE
    if unprintable.search(text):
        return "this holds characters that cannot be printed"
    pattern = schema.get("pattern")
    is_shaped = (not pattern or re.fullmatch(pattern, text, re.ASCII)) and (
        schema.get("format") != "json" or _is_json(text)
    )
    return None if is_shaped else f"the shape does not fit: {schema.get('description', 'another form is needed')}"


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
