"""The shim by itself: started as a program, with small programs in the gateway's place."""

import errno
import importlib.util
import json
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SHIM = Path(__file__).parents[2] / "app" / "gateway" / "shim.py"
#: Nothing here takes longer, on a busy machine as well.
PATIENCE = 20.0


class Started:
    """A shim that answered."""

    def __init__(self, home: Path, answered: subprocess.CompletedProcess[bytes]) -> None:
        self.home = home
        self.exit_code = answered.returncode
        self.answer: dict[str, Any] = json.loads(answered.stdout)
        self.fds = {name: pidfd(self.answer[name]) for name in ("pid", "shim_pid") if name in self.answer}

    def ended(self) -> dict[str, Any]:
        """Waits for the shim's end, then reads what it recorded."""
        assert is_over(self.fds["shim_pid"])
        return json.loads((self.home / "run" / "exit.json").read_text())

    def log(self) -> list[str]:
        return (self.home / "logs" / "bot.log").read_text().splitlines()

    def clean_up(self) -> None:
        send(self.fds.get("pid"), signal.SIGKILL)
        is_over(self.fds.get("shim_pid"))  # it clears up after its gateway
        for fd in self.fds.values():
            if fd is not None:
                os.close(fd)


def pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def is_over(fd: int | None, patience: float = PATIENCE) -> bool:
    if fd is None:
        return True
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def send(fd: int | None, number: signal.Signals) -> None:
    if fd is not None and not is_over(fd, 0):
        signal.pidfd_send_signal(fd, number)


def hear(fifo: Path) -> str:
    """What a process writes into the FIFO; waits for it."""
    fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(fd, True)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    with os.fdopen(fd) as file:
        assert poll.poll(PATIENCE * 1000)
        return file.readline().strip()


Start = Callable[..., Started]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    shims: list[Started] = []

    def start(*argv: str, **spec: Any) -> Started:
        limits: Callable[[], None] | None = spec.pop("preexec", None)
        whole = {"home": str(tmp_path), "argv": argv, "env": {}, "cwd": str(tmp_path), "nonce": "n1", **spec}
        answered = subprocess.run(
            [sys.executable, "-I", "-S", str(SHIM)],
            input=json.dumps(whole).encode(),
            stdout=subprocess.PIPE,
            timeout=PATIENCE,
            preexec_fn=limits,
        )
        shims.append(Started(tmp_path, answered))
        return shims[-1]

    yield start
    for shim in shims:
        shim.clean_up()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def shim_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shim_under_test", SHIM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


@pytest.mark.parametrize("code", [0, 1, 78, 255])
def test_an_exit_code_is_recorded(start: Start, code: int) -> None:
    shim = start(*sh(f"exit {code}"))
    recorded = shim.ended()
    assert shim.answer["ok"] is True
    assert (recorded["nonce"], recorded["pid"]) == ("n1", shim.answer["pid"])
    assert (recorded["code"], recorded["signal"], recorded["reaped"]) == (code, None, 0)
    assert recorded["at"] >= shim.answer["started_at"]
    assert recorded["max_rss_kb"] > 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_deadly_signal_is_recorded_by_name(start: Start, number: signal.Signals) -> None:
    shim = start("/bin/sleep", "600")
    send(shim.fds["pid"], number)
    recorded = shim.ended()
    assert (recorded["code"], recorded["signal"]) == (None, number.name)


def test_the_state_says_who_is_running(start: Start, tmp_path: Path) -> None:
    shim = start("/bin/sleep", "600")
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert shim.answer == {"ok": True, **state}
    assert state["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    for who in ("pid", "shim"):
        pid, start_time = state[who if who == "pid" else "shim_pid"], state[f"{who}_start"]
        assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) == start_time
    assert [oct(path.stat().st_mode & 0o777) for path in sorted(tmp_path.iterdir())] == ["0o700", "0o700"]
    assert oct((tmp_path / "run" / "state.json").stat().st_mode & 0o777) == "0o600"


def test_a_second_start_is_refused_by_the_lock(start: Start) -> None:
    first = start("/bin/sleep", "600")
    second = start("/bin/sleep", "600", nonce="n2")
    assert (second.exit_code, second.answer) == (75, {"ok": False, "error": "locked"})
    send(first.fds["pid"], signal.SIGKILL)
    first.ended()
    assert start("/bin/true", nonce="n3").answer["ok"] is True


@pytest.mark.parametrize(
    ("argv", "cwd", "step", "number"),
    [
        ("/no/such/node", "/", "execve", errno.ENOENT),
        ("/etc/passwd", "/", "execve", errno.EACCES),
        ("/bin/true", "/no/such/folder", "chdir", errno.ENOENT),
    ],
)
def test_a_failed_exec_is_answered(start: Start, argv: str, cwd: str, step: str, number: int, tmp_path: Path) -> None:
    shim = start(argv, cwd=cwd)
    message = os.strerror(number)
    assert shim.answer == {"ok": False, "error": "exec", "step": step, "errno": number, "message": message}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_an_unknown_limit_is_answered(start: Start) -> None:
    assert "RLIMIT_NONSENSE" in start("/bin/true", rlimits={"nonsense": 1}).answer["message"]


def test_a_broken_spec_is_answered() -> None:
    answered = subprocess.run(
        [sys.executable, "-I", "-S", str(SHIM)], input=b'{"home":', stdout=subprocess.PIPE, timeout=PATIENCE
    )
    assert answered.returncode == 71
    assert json.loads(answered.stdout)["error"] == "shim"


def test_a_run_folder_that_leads_elsewhere_is_refused(start: Start, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    assert start("/bin/true").answer["ok"] is False
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_gateway_gets_what_it_may_have_and_no_more(start: Start, tmp_path: Path) -> None:
    script = (
        "import os, resource, sys, json\n"
        "status = dict(line[:-1].split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
        "print(json.dumps({'env': dict(os.environ), 'cwd': os.getcwd(), 'umask': status['Umask'],\n"
        "  'caps': [status[n] for n in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')],\n"
        "  'nnp': status['NoNewPrivs'], 'blocked': status['SigBlk'], 'oom': open('/proc/self/oom_score_adj').read(),\n"
        "  'nofile': resource.getrlimit(resource.RLIMIT_NOFILE)[0], 'core': resource.getrlimit(resource.RLIMIT_CORE),\n"
        "  'fds': sorted(os.listdir('/proc/self/fd'))[:-1], 'stdin': os.readlink('/proc/self/fd/0'),\n"
        "  'leads': os.getsid(0) == os.getpid()}))"
    )
    shim = start(*python(script), env={"LC_ALL": "C.UTF-8", "A": "é"}, rlimits={"nofile": 512})
    (seen,) = map(json.loads, shim.ended()["tail"])
    nothing = "0" * 16
    # As root; without privileges the bounding set may stay, and leads nowhere under no_new_privs.
    bounding = seen["caps"].pop(3)
    assert bounding == nothing or os.getuid()
    assert seen == {
        "env": {"LC_ALL": "C.UTF-8", "A": "é"},
        "cwd": str(tmp_path),
        "umask": "0077",
        "caps": [nothing] * 4,
        "nnp": "1",
        "blocked": nothing,
        "oom": "500\n",
        "nofile": 512,
        "core": [0, 0],
        "fds": ["0", "1", "2"],
        "stdin": "/dev/null",
        "leads": True,
    }


def test_signals_the_shim_ignores_are_not_ignored_by_the_gateway(start: Start) -> None:
    shim = start(*sh("grep SigIgn /proc/self/status"))
    assert shim.ended()["tail"] == ["SigIgn:\t0000000000000000"]


def test_output_becomes_stamped_lines(start: Start) -> None:
    shim = start(*python("import sys; print('out\\tput'); print('trouble', file=sys.stderr); print('no end', end='')"))
    assert shim.ended()["code"] == 0
    stamps, letters, texts = zip(*(line.split(" ", 2) for line in shim.log()), strict=True)
    assert sorted(zip(letters, texts, strict=True)) == [("E", "trouble"), ("O", "no end"), ("O", "out\tput")]
    assert all(abs(int(stamp) / 1000 - shim.answer["started_at"]) < PATIENCE for stamp in stamps)


def test_output_that_would_act_on_a_terminal_is_defused(start: Start) -> None:
    raw = b"\x1b[31mred\x00\x07\r\n\xc2\x9bC1 \xe2\x80\xa8line \xff bad\n"
    shim = start(*python(f"import os; os.write(1, {raw!r})"))
    assert shim.ended()["tail"] == ["[31mred", "C1 line � bad"]


def test_a_long_line_is_cut(start: Start) -> None:
    shim = start(*python("print('a' * 8191 + 'bc'); print('x' * 3_000_000); print('after')"))
    shim.ended()
    assert [line.split(" ", 2)[2] for line in shim.log()] == ["a" * 8191 + "b", "x" * 8192, "after"]


def test_a_chatty_gateway_is_never_blocked_and_its_log_rotates(start: Start, tmp_path: Path) -> None:
    script = "import sys\nfor n in range(100_000): sys.stdout.write(f'{n:099}\\n')"
    shim = start(*python(script), log_max_bytes=1 << 20)
    recorded = shim.ended()
    assert (recorded["code"], len(recorded["tail"]), int(recorded["tail"][-1])) == (0, 20, 99_999)
    names = ["bot.log.3", "bot.log.2", "bot.log.1", "bot.log"]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == set(names)
    assert all((tmp_path / "logs" / name).stat().st_size <= 1 << 20 for name in names)
    kept = [int(line.split()[2]) for name in names for line in (tmp_path / "logs" / name).read_text().splitlines()]
    assert kept == list(range(kept[0], 100_000))
    assert len(kept) > 20_000


def test_a_full_disk_loses_lines_and_nothing_else(start: Start) -> None:
    shim = start(
        *python("for n in range(50_000): print(n)"),
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    recorded = shim.ended()
    assert (recorded["code"], recorded["tail"][-1]) == (0, "49999")
    assert (shim.home / "logs" / "bot.log").stat().st_size <= 1 << 16


def test_lost_lines_are_counted_and_owned_up_to(shim_module: ModuleType, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    log = shim_module.Log(folder, 1 << 20, 3)
    (tmp_path / "bot.log").mkdir()
    log.write([b"1 O one\n", b"2 O two\n"])
    log.write([b"3 O three\n"])
    (tmp_path / "bot.log").rmdir()
    log.write([b"4 O four\n"])
    log.write([b"5 O five\n"])
    os.close(folder)
    owned_up, *others = (tmp_path / "bot.log").read_text().splitlines()
    assert owned_up.endswith(" E [clawnet] 3 lines could not be written and are lost")
    assert others == ["4 O four", "5 O five"]


def test_a_torn_line_of_an_earlier_shim_is_ended_first(start: Start, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "bot.log").write_text("1 O torn")
    shim = start(*sh("echo whole"))
    shim.ended()
    assert shim.log()[0] == "1 O torn"
    assert shim.log()[1].endswith(" O whole")


def test_descendants_in_sessions_of_their_own_end_with_the_gateway(start: Start, fifo: Path) -> None:
    inner = f"setsid sh -c 'sleep 600 & sleep 601 & echo \\$! >{fifo}; wait'"
    shim = start(*sh(f'(setsid sh -c "{inner}" &) ; sleep 600'))
    grandchild = pidfd(int(hear(fifo)))
    send(shim.fds["pid"], signal.SIGKILL)
    recorded = shim.ended()
    assert (recorded["signal"], is_over(grandchild, 0)) == ("SIGKILL", True)
    assert recorded["reaped"] >= 3


def test_a_grandchild_that_holds_the_pipe_does_not_hold_the_exit(start: Start) -> None:
    shim = start(*sh("(trap '' TERM HUP; while :; do echo still here; done) & echo bye; exit 7"))
    recorded = shim.ended()
    assert (recorded["code"], recorded["reaped"]) == (7, 1)


def test_orphans_are_buried_while_the_gateway_runs(start: Start, fifo: Path) -> None:
    shim = start(*sh(f"(true & true & true &) ; sh -c ': ' ; echo done >{fifo}; exec sleep 600"))
    assert hear(fifo) == "done"
    send(shim.fds["pid"], signal.SIGTERM)
    assert shim.ended()["reaped"] == 0


def test_the_gateway_ends_with_its_shim(start: Start) -> None:
    shim = start("/bin/sleep", "600")
    send(shim.fds["shim_pid"], signal.SIGKILL)
    assert is_over(shim.fds["pid"])
    assert start("/bin/true", nonce="n2").answer["ok"] is True


def test_the_shim_leaves_signals_to_the_gateway(start: Start) -> None:
    shim = start("/bin/sleep", "600")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        send(shim.fds["shim_pid"], number)
    assert not is_over(shim.fds["shim_pid"], 0)
    send(shim.fds["pid"], signal.SIGTERM)
    assert shim.ended()["signal"] == "SIGTERM"


def test_an_exit_record_replaces_whatever_lies_in_its_place(start: Start, tmp_path: Path) -> None:
    shim = start(*sh("mkfifo run/exit.json.tmp; ln -s /etc/passwd run/exit.json; exit 5"))
    assert shim.ended()["code"] == 5
    assert not (tmp_path / "run" / "exit.json").is_symlink()


SECRET = "123456789:AAq-canary_7Zx9mN4bV2cX8lK1jH5gF3d"
#: Prints a part of the configuration that nobody should see; `secret` is it, in the programs below.
KNOWING = f"import os, sys\nsecret = {SECRET!r}\n"


def configure(home: Path, secret: str = SECRET) -> None:
    (home / "config.json5").write_text(json.dumps({"channels": {"telegram": {"botToken": secret}}}))


def everything_kept(shim: Started) -> str:
    kept = [path for name in ("run", "logs") for path in (shim.home / name).iterdir()]
    return "\n".join(path.read_text() for path in kept)


def test_a_secret_is_kept_neither_in_the_log_nor_in_the_exit_record(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    shim = start(*python(f"{KNOWING}print('out', secret); print('err', secret, file=sys.stderr); sys.exit(secret)"))
    assert sorted(shim.ended()["tail"]) == ["***", "err ***", "out ***"]
    assert SECRET not in everything_kept(shim)


def test_a_secret_is_found_wherever_a_read_ends(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    slowly = "for letter in secret + '\\n': os.write(1, letter.encode())\n"
    quickly = "for n in range(4000): sys.stdout.write('x' * (n % 97) + secret + '\\n')\n"
    shim = start(*python(KNOWING + slowly + quickly))
    shim.ended()
    assert {line.split(" ", 2)[2].lstrip("x") for line in shim.log()} == {"***"}
    assert len(shim.log()) == 4001


def test_a_secret_at_the_end_of_a_line_that_is_cut_is_not_cut_in_half(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    at_the_cut = "for n in range(8192 - 60, 8192 + 10): print('.' * n + secret)\n"
    endless = "for n in range(3): print(secret * (5_000 + n))\nsys.stdout.flush()\nos.write(1, secret.encode() * 9_000)"
    shim = start(*python(f"{KNOWING}{at_the_cut}sys.stdout.flush()\n{endless}"))
    shim.ended()
    assert len(shim.log()) == 74
    assert [line for line in shim.log() if SECRET[:8] in line] == []
    assert max(map(len, shim.log())) <= 8192 + 20


def test_a_secret_torn_by_colours_is_found(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    shim = start(*python(f"{KNOWING}print(secret[:9] + '\\x00\\x07' + secret[9:])"))
    assert shim.ended()["tail"] == ["***"]


def test_a_secret_that_came_with_a_reload_is_found_and_the_earlier_one_as_well(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    (tmp_path / "draft").write_text(json.dumps({"channels": {"discord": {"token": "fresh-" + SECRET[::-1]}}}))
    shim = start(*python(f"{KNOWING}os.rename('draft', 'config.json5')\nprint('fresh-' + secret[::-1], secret)"))
    assert shim.ended()["tail"] == ["*** ***"]


def test_nothing_a_bot_makes_of_its_configuration_stops_its_shim(start: Start, tmp_path: Path) -> None:
    configure(tmp_path)
    damage = "os.unlink('config.json5')\nos.mkdir('config.json5')\nprint(secret, flush=True)\n"
    deep = "os.rmdir('config.json5')\nopen('config.json5', 'w').write('[' * 10**6)\nprint('deep', secret, flush=True)\n"
    shim = start(*python(KNOWING + damage + deep))
    recorded = shim.ended()
    assert (recorded["code"], recorded["tail"]) == (0, ["***", "deep ***"])


def test_a_flood_of_secrets_takes_no_memory(start: Start, tmp_path: Path, fifo: Path) -> None:
    configure(tmp_path)
    flood = "for n in range(3_000): os.write(1, ((secret + '\\n') * 200).encode())\n"
    ends = f"open({str(fifo)!r}, 'w').write('done')\nimport time; time.sleep(600)"
    shim = start(*python(KNOWING + flood + ends), log_max_bytes=1 << 20)
    assert hear(fifo) == "done"
    status = Path(f"/proc/{shim.answer['shim_pid']}/status").read_text().splitlines()
    (most,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert most < 24 * 1024
    send(shim.fds["pid"], signal.SIGKILL)
    shim.ended()
    assert SECRET not in everything_kept(shim)


@pytest.mark.parametrize(
    "made",
    ["{'token': '%+' * 4_000_000}", "{'headers': [f'{n:08}' for n in range(42_000)]}", "{'token': '%+\"' * 100_000}"],
)
def test_no_configuration_of_a_bot_s_making_holds_its_shim_up(start: Start, tmp_path: Path, made: str) -> None:
    configure(tmp_path)
    write = f"import json\nopen('draft', 'w').write(json.dumps({made}))\nos.rename('draft', 'config.json5')\n"
    shim = start(*python(f"{KNOWING}{write}for n in range(300): print('word', n, secret, flush=True)\nos._exit(3)"))
    recorded = shim.ended()
    assert (recorded["code"], recorded["tail"][-1]) == (3, "word 299 ***")


def test_a_configuration_of_a_bot_s_making_takes_no_memory(start: Start, tmp_path: Path, fifo: Path) -> None:
    configure(tmp_path)
    write = (
        "import json\nfor made in ({'token': '%+' * 4_000_000}, {'headers': [f'{n:08}' for n in range(42_000)]}):\n"
        "    open('draft', 'w').write(json.dumps(made))\n    os.rename('draft', 'config.json5')\n"
        "    print('x' * 70_000, flush=True)\n    print('x' * 70_000, flush=True)\n"
    )
    ends = f"open({str(fifo)!r}, 'w').write('done')\nimport time; time.sleep(600)"
    shim = start(*python(KNOWING + write + ends))
    assert hear(fifo) == "done"
    status = Path(f"/proc/{shim.answer['shim_pid']}/status").read_text().splitlines()
    (most,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert most < 40 * 1024
