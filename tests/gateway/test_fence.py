"""The fence by itself: started as a program, as checks and installations are."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import anyio
import pytest

from app.gateway import check, fenced, openclaw
from app.gateway import home as homes
from tests import fake_openclaw
from tests.gateway.planted import FENCED, plant, seen
from tests.journeys.story import is_alive

PATIENCE = 20.0
#: A descendant in a session of its own, whose parent is gone; its pid is printed.
STRAY = """
import os, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        print(os.getpid(), flush=True)
        os.close(1)
        time.sleep(600)
    os._exit(0)
os.wait()
"""


def fence(*argv: str) -> list[str]:
    return [sys.executable, "-I", "-S", str(fenced.FENCE), "nofile=64", "--", *argv]


def test_a_program_behind_it_has_no_privileges_and_its_limits() -> None:
    asked = "import json, resource as r; print(open('/proc/self/status').read()); print(r.getrlimit(r.RLIMIT_NOFILE))"
    done = subprocess.run(fence(sys.executable, "-c", asked), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    *status, limit = [line for line in done.stdout.splitlines() if line]
    facts = dict(line.split(":", 1) for line in status)
    assert {name: int(facts[name], 16) for name in FENCED} == FENCED
    assert limit == "(64, 64)"


@pytest.mark.parametrize(
    ("program", "code"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 128 + 9)]
)
def test_it_ends_as_its_program_did(program: str, code: int) -> None:
    assert subprocess.run(fence(sys.executable, "-c", program), timeout=PATIENCE).returncode == code


def test_a_program_that_is_not_there_is_said() -> None:
    done = subprocess.run(fence("/nowhere/node"), capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (127, "/nowhere/node does not run: No such file or directory\n")


@pytest.mark.parametrize("end", ["exit", "term", "cancel"])
async def test_nothing_of_a_program_is_left(end: str) -> None:
    program = STRAY + ("" if end == "exit" else "time.sleep(600)")
    with anyio.fail_after(PATIENCE):
        async with fenced.started([sys.executable, "-c", program], dict(os.environ), stdout=PIPE) as process:
            assert process.stdout is not None
            stray = int(await process.stdout.receive())
            if end == "term":
                process.send_signal(signal.SIGTERM)
            if end != "cancel":
                await process.wait()
        assert not is_alive(stray)


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    inner = fence(sys.executable, "-c", STRAY + "time.sleep(600)")
    starter = f"import subprocess, sys; subprocess.run({inner!r})"
    with subprocess.Popen([sys.executable, "-c", starter], stdout=PIPE) as process:
        assert process.stdout is not None
        stray = int(process.stdout.readline())
        process.kill()
        # The end of file says that nobody is left who has the pipe, the fence included.
        process.stdout.read()
    assert not is_alive(stray)


async def test_a_check_runs_a_bot_s_own_code_behind_it(tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    found = await openclaw.find(str(wrapper), "2026.9.6", tmp_path / "cache")
    assert found is not None
    bot = tmp_path / "hana"
    homes.make(bot)
    plant(bot)
    assert await check.Checker(found).issues({"gateway": {"mode": "local"}}, bot) == ()
    assert [one["fence"] for one in seen(bot)] == [FENCED]
    assert "DATABASE_URL" not in json.dumps(seen(bot))


async def test_a_pipe_in_the_place_of_a_bot_s_environment_is_not_waited_for(tmp_path: Path) -> None:
    wrapper = fake_openclaw.install(tmp_path / "openclaw")
    found = await openclaw.find(str(wrapper), "2026.9.6", tmp_path / "cache")
    assert found is not None
    bot = tmp_path / "hana"
    homes.make(bot)
    os.mkfifo(bot / ".env")
    with anyio.fail_after(PATIENCE):
        assert await check.Checker(found).issues({"gateway": {"mode": "local"}}, bot) == ()
