"""Makes `.venv` from a lock file, brings it up to date, and continues the calling script inside it.

Runs before anything is installed, so it stands on the standard library alone, and it can be read by Pythons too old
to run ClawNet, so that they can say so. Nothing is done when nothing changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".stamp"

#: Each holds the pins of the one before.
LOCKS = ("requirements.lock", "requirements-test.lock", "requirements-check.lock")

#: Fetched where no uv is on PATH: it installs in 3 s what takes pip a minute.
UV = "0.13.9"
UV_REQUIREMENT = f"""\
uv=={UV} \\
  --hash=sha256:d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19 \\
  --hash=sha256:5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe \\
  --hash=sha256:2c45530751517d6c3bbc69a19473f6effe47cce047bede01ffd8af7ea7b36b25
"""

LAUNCHER = """\
#!/bin/sh
exec "$(dirname "$(readlink -f "$0")")/python" -m app "$@"
"""


def enter(lock: str) -> None:
    """Returns when the script runs in a `.venv` that holds `lock`; until then starts it anew there."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever is called python3 runs this
        _fail(f"ClawNet needs Python 3.11 or newer; this is {sys.version.split()[0]} ({sys.executable}).")
    if _is_inside() and _is_installed(lock):
        return
    if not _is_installed(lock):
        with _alone():
            if not _is_installed(lock):
                _install(lock)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def _is_inside() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def _is_installed(lock: str) -> bool:
    """Whether the stamp speaks of this lock and this folder, and `.venv` was made for the Python that it runs."""
    stamp = _stamp()
    is_same = not _is_inside() or _path_file(f"{sys.version_info.major}.{sys.version_info.minor}").exists()
    return is_same and PYTHON.exists() and stamp.get("root") == str(ROOT) and _digest(lock) in stamp["locks"]


def _stamp() -> dict[str, Any]:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


@contextmanager
def _alone() -> Iterator[None]:
    """Keeps a second script out while this one installs."""
    with (ROOT / ".stamp.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another script that is installing")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _install(lock: str) -> None:
    if VENV.is_symlink():
        VENV.unlink()  # Another checkout's, which must not be emptied for this one's pins.
    if not _is_usable():
        _say(f"making .venv with Python {sys.version.split()[0]}")
        # The system's own Python: made from inside another environment, .venv would vanish with it.
        python = getattr(sys, "_base_executable", sys.executable)
        if not _succeeds(python, "-m", "venv", "--without-pip", "--clear", str(VENV)):
            _fail("no virtual environment could be made; the reason is above.")
    before = _stamp()
    _mark(locks=[], unfinished=True)
    _say(f"installing {lock} ({len(_pins(lock))} packages)")
    if not _install_packages(lock):
        # What was complete still is: who has no network now can work on with what is there.
        _mark(**before)
        _fail(f"{lock} could not be installed; the reason is above.")
    _make_ours_importable()
    _mark(locks=[_digest(other) for other in LOCKS if _pins(other) <= _pins(lock)])


def _mark(**facts: Any) -> None:
    _write(STAMP, json.dumps({"root": str(ROOT), "locks": [], **facts}))


def _is_usable() -> bool:
    """Whether `.venv` can be built on: its Python runs as its own, and it was neither moved nor left half-way."""
    stamp = _stamp()
    if stamp.get("unfinished") or stamp.get("root", str(ROOT)) != str(ROOT) or not PYTHON.exists():
        return False
    question = (
        "import os, sys, sysconfig; print(sys.prefix); sys.exit(not os.path.isdir(sysconfig.get_path('purelib')))"
    )
    said = subprocess.run([PYTHON, "-c", question], capture_output=True, text=True)
    return said.returncode == 0 and Path(said.stdout.strip()).resolve() == VENV.resolve()


def _install_packages(lock: str) -> bool:
    arguments = ["--require-hashes", "-r", str(ROOT / lock)]
    uv = _uv()
    if uv and _succeeds(uv, "pip", "install", "--quiet", "--python", str(PYTHON), *arguments, env=_uv_environment()):
        return True
    _say("installing with pip instead, which takes a minute")
    return _succeeds(*_pip(), "install", "-qq", *arguments, env=_pip_environment())


def _uv() -> str | None:
    """The path of a uv, fetched if need be; in any case `.venv/bin/uv` leads to it."""
    ours = VENV / "bin" / "uv"
    if ours.exists():
        return str(ours)
    ours.unlink(missing_ok=True)  # It may be a link that leads nowhere.
    found = shutil.which("uv")
    if found and _succeeds(found, "--version", stdout=subprocess.DEVNULL):
        ours.symlink_to(found)
        return str(ours)
    _say(f"fetching uv {UV}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(UV_REQUIREMENT)
        file.flush()
        arguments = ["install", "-qq", "--only-binary", ":all:", "--require-hashes", "-r", file.name]
        return str(ours) if _succeeds(*_pip(), *arguments, env=_pip_environment()) else None


def _pip() -> list[str]:
    """A pip that installs into `.venv`; it need not live there, nor in the Python that runs this."""
    for pip in ([sys.executable, "-m", "pip"], ["pip3"], ["pip"]):
        if _knows_python_option(pip):
            return [*pip, "--python", str(PYTHON)]
    if _succeeds(str(PYTHON), "-m", "ensurepip", "--default-pip", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        return [str(PYTHON), "-m", "pip"]
    return _fail("pip is missing (22.3 or newer): on Debian, `apt install python3-pip`; uv on PATH would do as well.")


def _knows_python_option(pip: list[str]) -> bool:
    try:
        said = subprocess.run([*pip, "--version"], capture_output=True, text=True)
    except OSError:
        return False
    version = re.match(r"pip (\d+)\.(\d+)", said.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= (22, 3)


def _pip_environment() -> dict[str, str]:
    # A person's own pip settings may ask for things that a virtual environment refuses.
    ours = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**os.environ, **ours, "PIP_ROOT_USER_ACTION": "ignore"}


def _uv_environment() -> dict[str, str]:
    """uv does not read pip's settings; who has an index of their own has told it to pip."""
    index = os.environ.get("PIP_INDEX_URL")
    return {**({"UV_DEFAULT_INDEX": index} if index else {}), **os.environ}


def _make_ours_importable() -> None:
    """`python -m app` works from any folder, and `.venv/bin/clawnet` is the command."""
    for folder in VENV.glob("lib/python3*/site-packages"):
        _write(_path_file(folder.parent.name[len("python") :]), f"{ROOT}\n")
    _write(VENV / "bin" / "clawnet", LAUNCHER)
    (VENV / "bin" / "clawnet").chmod(0o755)


def _path_file(version: str) -> Path:
    return VENV / "lib" / f"python{version}" / "site-packages" / "clawnet.pth"


def _pins(lock: str) -> set[str]:
    return set(re.findall(r"^[A-Za-z0-9][^\s;\\]*==[^\s;\\]+", (ROOT / lock).read_text(), re.MULTILINE))


def _digest(lock: str) -> str:
    return hashlib.sha256((ROOT / lock).read_bytes()).hexdigest()


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    draft.replace(path)


def _succeeds(*command: str, **options: Any) -> bool:
    return subprocess.run(command, stdin=subprocess.DEVNULL, **options).returncode == 0


def _say(text: str) -> None:
    print(f"clawnet: {text}", file=sys.stderr, flush=True)


def _fail(text: str) -> NoReturn:
    _say(text)
    sys.exit(1)
