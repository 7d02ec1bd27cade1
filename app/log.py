"""The log: one form for our own events and for everybody else's records, and no secrets in it.

`structlog.stdlib.get_logger()` gives the logger; `structlog.contextvars.bound_contextvars(bot_id=…)` adds to every
line said inside it, also to lines of libraries. uvicorn must be given `log_config=None`, so that it leaves this alone.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.domain.errors import ClawNetError

#: Libraries that tell at INFO what is no news here (each probe of a bot's health, each change of a watched file).
QUIET = ("httpcore", "httpx", "uvicorn.error", "watchfiles", "websockets")
#: Libraries whose DEBUG lines hold frames and bodies, and so other people's words.
NEVER_DEBUG = ("asyncio", "hpack", "litestar", "strawberry", "uvicorn", "websockets")
#: What is nested deeper than this is not written out.
MAX_DEPTH = 6

HIDDEN = "<secret>"

_SECRET_WORDS = frozenset(
    ["authorization", "cookie", "credential", "credentials", "passphrase", "passwd", "password", "secret", "secrets"]
)
#: Words that hide a value only at a name's end: `bot_token` is a secret, `token_id` is not.
_SECRET_ENDS = ("token", "api_key", "apikey", "encryption_key", "private_key", "master_key")
#: Names that end like this tell about a secret and do not hold it.
_ABOUT = frozenset(["at", "count", "id", "ids", "kind", "name", "names", "status"])

_IN_TEXT = (
    # Our tokens: the id between kind and secret is a name and may be told.
    (re.compile(r"(cn_[a-z]_[a-z2-7]{12}_)[A-Za-z0-9_-]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(r"(?<![A-Za-z0-9])(cn_)[A-Za-z0-9_-]{16,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(bearer(?:\s+|%20))(?!cn_)[A-Za-z0-9._~+/=%-]{16,}", re.IGNORECASE), rf"\1{HIDDEN}"),
    # The password of an address.
    (re.compile(r"(://[^\s/:@]*:)[^\s/]*@"), rf"\1{HIDDEN}@"),
    # The value beside a telling name, as in a query string or a dict inside somebody's message.
    (
        re.compile(
            r"""((?:password|passphrase|token|secret|api_?key|authorization)(?:=|["']\s*:\s*)b?["']?)[^\s"'&,;}]+""",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


@dataclass(slots=True)
class Outcome:
    """What became of a block behind a barrier."""

    has_failed: bool = False


@contextmanager
def barrier(log: Any, event: str) -> Generator[Outcome, None, None]:
    """Lets what goes wrong inside be told and go no further: one look that broke must not take a whole loop along.

    What was raised on purpose (the database is away, say) is a warning, anything else an error with its traceback.
    Cancellation passes.
    """
    outcome = Outcome()
    try:
        yield outcome
    except ClawNetError as error:
        outcome.has_failed = True
        log.warning(event, error=str(error))
    except Exception:
        outcome.has_failed = True
        log.exception(event)


def configure(format: str, level: str, stream: TextIO | None = None) -> None:  # noqa: A002 - the setting's word
    """Sends every log record of this process to `stream` (standard error) in one form.

    Args:
        format: `json`, one object a line, or `console`, for people.
        level: `debug`, `info`, `warning` or `error`.
    """
    out = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    handler = _Handler(out)
    handler.setFormatter(_formatter(format, has_colors=out.isatty()))
    _replace_handlers(handler, threshold)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_common(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def _common() -> list[Processor]:
    """What every line is given, ours and a library's."""
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


def _formatter(form: str, *, has_colors: bool) -> logging.Formatter:
    last: list[Processor] = [_json] if form == "json" else [_printable, _console(has_colors)]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_common(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            redact,
            *last,
        ],
    )


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, to be told from those of others when the log is configured again."""


def _replace_handlers(handler: logging.Handler, threshold: int) -> None:
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in ("uvicorn", "uvicorn.access", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for name in QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))
    for name in NEVER_DEBUG:
        logging.getLogger(name).setLevel(max(threshold, logging.INFO))
    logging.captureWarnings(True)


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hides what looks secret: values of names such as `token`, and tokens and passwords inside any text."""
    return {_text(key): _clean(key, value, 0) for key, value in event.items()}


def _clean(name: object, value: object, depth: int) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(name, str) and _is_secret(name):
        return HIDDEN
    match value:
        case int():
            return int(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case str():
            return _text(value)
        case Mapping() if depth < MAX_DEPTH:
            table = cast("Mapping[object, object]", value)
            return {_text(str(key)): _clean(key, item, depth + 1) for key, item in table.items()}
        case list() | tuple() | set() | frozenset() if depth < MAX_DEPTH:
            return [_clean(name, item, depth + 1) for item in cast("list[object]", value)]
        case _:
            return _text(_shown(value))


def _shown(value: object) -> str:
    """A value's own word for itself; a log line is no place to fail for a bad `__str__`."""
    try:
        return repr(value) if isinstance(value, bytes | bytearray) else str(value)
    except Exception:  # noqa: BLE001
        return f"<{type(value).__name__}>"


def _text(text: str) -> str:
    for pattern, instead in _IN_TEXT:
        text = pattern.sub(instead, text)
    return text


def _is_secret(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("-", "_").replace(".", "_").split("_")
    if words[-1] in _ABOUT:
        return False
    return not _SECRET_WORDS.isdisjoint(words) or "_".join(words).endswith(_SECRET_ENDS)


def _json(_: WrappedLogger, __: str, event: EventDict) -> str:
    """One line of JSON; what is not ASCII is escaped, so that no terminal or collector trips over it."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "logger", "event") if key in event}
    return json.dumps({**first, **event}, default=str, allow_nan=False)


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Escapes what could move the cursor or begin a line; a traceback keeps its lines, each behind a bar."""
    return {_one_line(key): _on_console(key, value) for key, value in event.items()}


def _on_console(key: str, value: object) -> object:
    if key in ("exception", "stack") and isinstance(value, str):
        return "\n".join(f"  | {_one_line(line)}" for line in value.split("\n"))
    if isinstance(value, str):
        return _one_line(value)
    return value if isinstance(value, int | float | None) else _one_line(str(value))


def _one_line(text: str) -> str:
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def _console(has_colors: bool) -> Processor:
    return structlog.dev.ConsoleRenderer(
        colors=has_colors, pad_event_to=24, exception_formatter=structlog.dev.plain_traceback
    )
