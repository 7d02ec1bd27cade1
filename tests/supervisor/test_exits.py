"""Why a gateway ended, read from its exit."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from app.domain.states import BotStatus, Reason
from app.gateway import config
from app.gateway.process import Exit
from app.supervisor import launch
from app.supervisor.exits import classify


@pytest.mark.parametrize(
    ("status", "exit_", "reason"),
    [
        (BotStatus.ACTIVE, Exit(signal="SIGKILL"), Reason.CRASHED),
        (BotStatus.ACTIVE, Exit(code=0), Reason.CRASHED),
        (BotStatus.ACTIVE, Exit(lost=True), Reason.LOST),
        (BotStatus.STARTING, Exit(rebooted=True, lost=True), Reason.HOST_RESTART),
        (BotStatus.STARTING, Exit(code=1), Reason.EXITED),
        (BotStatus.STARTING, Exit(code=78), Reason.CONFIG_INVALID),
        (BotStatus.STARTING, Exit(code=1, tail=("Error: listen EADDRINUSE 127.0.0.1:18789",)), Reason.PORT_IN_USE),
    ],
)
def test_an_exit_is_read_by_what_the_bot_was(status: BotStatus, exit_: Exit, reason: Reason) -> None:
    assert classify(status, exit_, None)[0] is reason


def test_what_we_ended_ourselves_keeps_our_reason() -> None:
    assert classify(BotStatus.ACTIVE, Exit(signal="SIGKILL"), Reason.UNHEALTHY)[0] is Reason.UNHEALTHY


def test_the_sentence_says_how_it_ended() -> None:
    assert classify(BotStatus.ACTIVE, Exit(signal="SIGKILL"), None)[1].endswith("(signal SIGKILL)")
    assert "exit code 3" in classify(BotStatus.STARTING, Exit(code=3), None)[1]


def test_what_an_active_bot_said_last_is_nobody_s_business() -> None:
    said = classify(BotStatus.ACTIVE, Exit(code=1, tail=("a private word",)), None)[1]
    assert "private" not in said
    assert "a reason" in classify(BotStatus.STARTING, Exit(code=1, tail=("a reason",)), None)[1]


@pytest.mark.parametrize("changed", [{}, {"gateway": {"auth": {"token": "tok-of-its-own"}}}, {"a": float("nan")}, []])
def test_nothing_is_told_of_a_bot_that_changed_what_says_which_secrets_it_has(tmp_path: Path, changed: object) -> None:
    said = ("it runs with tok-0123456789",)
    file = tmp_path / launch.CONFIG_FILE
    config.write(file, config.to_text({"gateway": {"auth": {"token": "tok-0123456789"}}}))
    assert launch.without_secrets(tmp_path, said) == ("it runs with ***",)
    file.write_text(json.dumps(changed))
    assert launch.without_secrets(tmp_path, said) == ()


def test_nothing_is_told_where_another_server_s_file_was_emptied(tmp_path: Path) -> None:
    file = tmp_path / launch.CONFIG_FILE
    file.write_text('{"gateway": {"auth": {"token": "tok-0123456789"}}}')
    assert launch.without_secrets(tmp_path, ("it runs with tok-0123456789",)) == ("it runs with ***",)
    file.write_text("{}")
    assert launch.without_secrets(tmp_path, ("it runs with tok-0123456789",)) == ()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.with_name("elsewhere").write_text('{"gateway": {"auth": {"token": "tok-0123456789"}}}')
    path.symlink_to(path.with_name("elsewhere"))


def make_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("spoil", [make_pipe, make_link, make_large, Path.mkdir])
async def test_what_a_bot_puts_in_its_configuration_s_place_holds_nobody_up(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / launch.CONFIG_FILE)
    with anyio.fail_after(10):
        said = await to_thread.run_sync(launch.without_secrets, tmp_path, ("a word",), abandon_on_cancel=True)
    assert said == ()


def test_many_lines_and_secrets_cost_little(tmp_path: Path) -> None:
    words = {str(n): {"token": f"tok{n:05} {n:05}tok"} for n in range(8_000)}
    tree = {"gateway": {"auth": {"token": "tok-0123456789"}}, "channels": words}
    (tmp_path / launch.CONFIG_FILE).write_text(json.dumps(tree))
    lines = tuple(f"tok{n:05}  {n:05}tok and others, some words of it" for n in range(20))
    began = time.thread_time()
    assert set(launch.without_secrets(tmp_path, lines)) == {"*** and others, some words of it"}
    # When each line asked anew what is secret, it took a minute.
    assert time.thread_time() - began < 3
