"""One form for every record, and no secret in any of them."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from app import log
from app.domain.errors import Unavailable
from app.vault import Secret

TOKEN = "cn_p_abcdefghij23_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4_x1Y2z3"


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Leaves logging as other tests want it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(form: str, level: str = "info") -> io.StringIO:
    out = io.StringIO()
    log.configure(form, level, out)
    return out


def objects(out: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_json_is_one_object_a_line_with_its_time_first():
    out = lines("json")
    structlog.stdlib.get_logger("app.runner").info("bot_status_changed", status="ACTIVE", pid=12, ratio=0.5, at=None)
    (found,) = objects(out)
    assert list(found) == ["timestamp", "level", "logger", "event", "status", "pid", "ratio", "at"]
    assert str(found.pop("timestamp")).endswith("Z")
    assert found == {
        "level": "info",
        "logger": "app.runner",
        "event": "bot_status_changed",
        "status": "ACTIVE",
        "pid": 12,
        "ratio": 0.5,
        "at": None,
    }


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "litestar", "anything"])
def test_records_of_libraries_have_the_same_form(name: str):
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
    logging.getLogger("uvicorn.access").propagate = False
    out = lines("json")
    logging.getLogger(name).warning("%s went %d times", "it", 3, extra={"color_message": "x"})
    (found,) = objects(out)
    assert list(found) == ["timestamp", "level", "logger", "event"]
    assert (found["level"], found["logger"], found["event"]) == ("warning", name, "it went 3 times")


def test_warnings_of_python_come_out_in_the_same_form():
    out = lines("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    (found,) = objects(out)
    assert found["logger"] == "py.warnings"
    assert "DeprecationWarning: old way" in str(found["event"])


def test_request_and_bot_are_on_every_line_said_inside_them():
    out = lines("json")
    with structlog.contextvars.bound_contextvars(request_id="r1", bot_id="b1"):
        structlog.stdlib.get_logger().info("ours")
        logging.getLogger("library").info("theirs")
    structlog.stdlib.get_logger().info("after")
    ours, theirs, after = objects(out)
    assert (ours["request_id"], ours["bot_id"]) == (theirs["request_id"], theirs["bot_id"]) == ("r1", "b1")
    assert "bot_id" not in after


@pytest.mark.parametrize(("level", "heard"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_only_what_reaches_the_level_is_said(level: str, heard: int):
    out = lines("json", level)
    for logger in (structlog.stdlib.get_logger("ours"), logging.getLogger("theirs")):
        for say in (logger.debug, logger.info, logger.warning, logger.error):
            say("said")
    assert len(objects(out)) == 2 * heard


def test_chatty_libraries_are_kept_down():
    out = lines("json", "debug")
    logging.getLogger("httpx").info("HTTP Request: GET /readyz")
    logging.getLogger("watchfiles.main").info("1 change detected")
    logging.getLogger("websockets.server").debug("< TEXT 'secret words'")
    assert objects(out) == []


def test_configuring_again_does_not_double_the_lines():
    lines("json")
    out = lines("json")
    logging.getLogger("theirs").info("once")
    assert len(objects(out)) == 1


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "access_token",
        "accessToken",
        "bot-token",
        "password",
        "new_password",
        "password_hash",
        "secret",
        "client_secret",
        "api_key",
        "openai_api_key",
        "apiKey",
        "authorization",
        "Authorization",
        "credentials",
        "ENCRYPTION_KEY",
        "set-cookie",
    ],
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_values_of_secret_names_are_hidden(form: str, name: str):
    out = lines(form)
    value = {"inner": ["hunter2"]}
    structlog.stdlib.get_logger().info(
        "said", **{name: "hunter2"}, nested={"list": [{name: value}]}, number={name: 4711}
    )
    assert "hunter2" not in out.getvalue()
    assert "4711" not in out.getvalue()
    assert out.getvalue().count("<secret>") == 3


def test_what_only_tells_about_a_secret_stays():
    out = lines("json")
    told = {"token_id": "abc", "tokens": 12, "input_tokens": 3, "has_token": True, "credentials_key_id": 2, "key": "k"}
    structlog.stdlib.get_logger().info("said", **told, token=None)
    (found,) = objects(out)
    assert {name: found[name] for name in told} == told
    assert found["token"] is None


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Bearer {TOKEN}",
        f"GET /graphql?x=Bearer%20{TOKEN}&y=1",
        f"x{TOKEN}x",
        TOKEN.replace("_p_", "_future_"),
        "authorization header was Bearer Zm9vYmFyYmF6cXV4Zm9vYmFy",
        "postgresql://clawnet:Zm9vYmFyYmF6@x@db:5432/clawnet",
        "{'token': 'Zm9vYmFyYmF6cXV4'}",
        "?access_token=Zm9vYmFyYmF6cXV4&a=b",
    ],
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_secrets_inside_any_text_are_hidden(form: str, text: str):
    out = lines(form)
    structlog.stdlib.get_logger().info(
        f"event {text}", value=text, **{text: 1}, table={text: [text]}, other=Secret(text)
    )
    logging.getLogger("theirs").info("message %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        structlog.stdlib.get_logger().exception("failed")
        logging.getLogger("theirs").exception("failed")
    assert "Zm9v" not in out.getvalue()
    assert out.getvalue().count("ValueError") == 4


def test_the_id_of_a_token_may_be_told_and_plain_words_stay():
    out = lines("json")
    structlog.stdlib.get_logger().info(TOKEN, said="basic authentication, bearer of news, token: none, a://b:80/c")
    (found,) = objects(out)
    assert found["event"] == "cn_p_abcdefghij23_<secret>"
    assert found["said"] == "basic authentication, bearer of news, token: none, a://b:80/c"


def test_a_traceback_is_a_text_in_json_and_stands_behind_bars_on_the_console():
    for form in ("json", "console"):
        out = lines(form)
        try:
            raise ValueError("first\n2026-01-01 [info] forged\x1b[2J")
        except ValueError:
            structlog.stdlib.get_logger().exception("failed")
        said = out.getvalue()
        assert "\x1b" not in said
        if form == "json":
            assert "Traceback" in str(objects(out)[0]["exception"])
        else:
            assert all(line.startswith("  | ") for line in said.splitlines()[1:])
            assert "  | 2026-01-01 [info] forged\\x1b[2J" in said


@settings(deadline=None)  # A busy machine is no bug of ours.
@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=20))
def test_no_text_begins_a_line_or_moves_the_cursor(text: str, name: str):
    for form in ("json", "console"):
        out = lines(form)
        structlog.stdlib.get_logger().info("said", value=text, table={name: text}, **{f"x{name}": text})
        logging.getLogger("theirs").info(text)
        said = out.getvalue()
        assert len(said.splitlines()) == 2
        assert said.replace("\n", "").isprintable()


def test_values_that_json_does_not_know_are_said_all_the_same():
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    nested: dict[str, object] = {}
    nested["self"] = nested
    out = lines("json")
    structlog.stdlib.get_logger().info(
        "said", nan=float("nan"), odd=Odd(), raw=b"\xff", many={1}, keys={1: 2}, nested=nested, half="\ud800"
    )
    (found,) = objects(out)
    assert (found["nan"], found["odd"], found["raw"]) == ("nan", "<Odd>", "b'\\xff'")
    assert (found["many"], found["keys"], found["half"]) == ([1], {"1": 2}, "\ud800")


def test_a_barrier_tells_what_went_wrong_and_lets_a_loop_go_on():
    out = lines("json")
    logger = structlog.stdlib.get_logger()
    for wrong in (Unavailable("the database does not answer"), ZeroDivisionError("by accident"), None):
        with log.barrier(logger, "not_looked_at") as look:
            if wrong is not None:
                raise wrong
        assert look.has_failed is (wrong is not None)
    planned, accident = objects(out)
    assert (planned["level"], planned["error"]) == ("warning", "the database does not answer")
    assert accident["level"] == "error"
    assert "by accident" in json.dumps(accident)
    # Who is cancelled, or told to end, is not held up.
    with pytest.raises(KeyboardInterrupt), log.barrier(logger, "not_looked_at"):
        raise KeyboardInterrupt
