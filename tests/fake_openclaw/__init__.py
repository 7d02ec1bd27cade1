"""A program that behaves as OpenClaw was seen to, for tests: install a version, run it, make it go wrong.

    binary = install(tmp_path / "openclaw", "2026.9.6", start_delay_s=0.1)   # OPENCLAW_BINARY_PATH
    set_faults(binary, bot="hana", crash_after_s=0.5)                        # from hana's next start on
    assert not violations(binary)

Every fault and its default is in `program/faults.py`.
"""

from __future__ import annotations

import compileall
import json
import shutil
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .program import faults as known_faults
from .program.eras import Era
from .program.ledger import living_owner

__all__ = [
    "Start", "Violation", "clear_faults", "install", "installed", "npm_runs", "running", "set_faults", "starts",
    "violations",
]  # fmt: skip

PROGRAM = Path(__file__).parent / "program"
ENGINES = {False: ">=22.12.0", True: ">=24.16.0 <25 || >=26.1.0"}
WRAPPER = """\
#!{python} -IS
import sys

sys.path.insert(0, {install!r})
sys.dont_write_bytecode = True

from pathlib import Path

from program.{module} import run

run(Path({install!r}))
"""


class Start(NamedTuple):
    """One line of starts.log: a `gateway run` that began, refused or not."""

    at: float
    pid: int
    agent_id: str
    nonce: str


class Violation(NamedTuple):
    """Two gateways of one bot at once: the one that came, and the living one it met."""

    at: float
    pid: int
    agent_id: str
    nonce: str
    other: int


def install(folder: Path, version: str = "2026.9.6", bots: dict[str, dict] | None = None, **faults: Any) -> Path:
    """Make an install folder, complete in itself, and answer its wrapper: the OPENCLAW_BINARY_PATH.

    Versions before 2026.3 behave as the old era, others as the new one.
    Raises: TypeError for a fault there is none of.
    """
    known_faults.check(faults)
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # Compiled once in the checkout; the copies keep the times that make the bytecode valid.
    _compile()
    shutil.copytree(PROGRAM, folder / "program", dirs_exist_ok=True)
    package = {"name": "openclaw", "version": version, "engines": {"node": ENGINES[Era(version).is_new]}}
    (folder / "package.json").write_text(json.dumps(package, indent=2))
    _list_plugins(folder, is_new=Era(version).is_new)
    _write_faults(folder / "openclaw", {**faults, "bots": {}})
    for bot, overlay in (bots or {}).items():
        set_faults(folder / "openclaw", bot, **overlay)
    wrapper = folder / "openclaw"
    # The interpreter behind a venv's link: it starts faster, and a sandbox need not know the venv.
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    for program, module in ((wrapper, "main"), (folder / "npm", "npm")):
        program.write_text(WRAPPER.format(python=python, install=str(folder), module=module))
        program.chmod(0o755)
    return wrapper


def _list_plugins(folder: Path, *, is_new: bool) -> None:
    """A few of the plugins that the package brings, and of those that the new one would go and install."""
    bundled = ("telegram", "github", "memory-core") if is_new else ("telegram", "discord", "voice-call", "lobster")
    for plugin in bundled:
        place = folder / ("dist/extensions" if is_new else "extensions") / plugin
        place.mkdir(parents=True, exist_ok=True)
        (place / "openclaw.plugin.json").write_text(json.dumps({"id": plugin}))
    if is_new:
        entries = [{"kind": "plugin", "openclaw": {"plugin": {"id": plugin}}} for plugin in ("voice-call", "diffs")]
        catalogue = f"const ENTRIES = {json.dumps(entries)};\n"
        (folder / "dist" / "official-external-plugin-bundled-catalogs-COfUtw4c.mjs").write_text(catalogue)


def set_faults(binary: Path, bot: str | None = None, **faults: Any) -> None:
    """Add faults for every bot, or for one; they are read at its next start."""
    known_faults.check(faults)
    kept = json.loads((binary.parent / "faults.json").read_text())
    target = kept if bot is None else kept["bots"].setdefault(bot, {})
    target.update(faults)
    _write_faults(binary, kept)


def clear_faults(binary: Path, bot: str | None = None) -> None:
    """Behave from the next start on: everybody, or one bot without its own overlay."""
    kept = json.loads((binary.parent / "faults.json").read_text()) if bot else {"bots": {}}
    kept["bots"].pop(bot, None)
    _write_faults(binary, kept)


def starts(binary: Path, bot: str | None = None) -> list[Start]:
    """Every start so far, oldest first."""
    lines = _lines(binary.parent / "starts.log")
    found = [Start(line["at"], line["pid"], line["agentId"], line["nonce"]) for line in lines]
    return [start for start in found if bot in {None, start.agent_id}]


def installed(binary: Path, bot: str) -> list[str]:
    """Every `plugins install` in the bot's home so far: the packages, oldest first."""
    lines = _lines(binary.parent / "plugins.log")
    return [line["words"][0].removeprefix("npm:") for line in lines if Path(line["home"]).name == bot]


def npm_runs(binary: Path) -> list[dict]:
    """Every run of the npm beside it, also by itself: `words`, `pid`, `environ`."""
    return _lines(binary.parent / "npm.log")


def violations(binary: Path) -> list[Violation]:
    """Every time two gateways of one bot were alive at once: a test wants none."""
    lines = _lines(binary.parent / "violations.log")
    return [Violation(line["at"], line["pid"], line["agentId"], line["nonce"], line["other"]) for line in lines]


def running(binary: Path) -> dict[str, int]:
    """The bots whose gateway is alive, with its pid."""
    witnesses = binary.parent / "witness"
    found = {witness.name: living_owner(witness) for witness in witnesses.iterdir()} if witnesses.is_dir() else {}
    return {bot: pid for bot, pid in found.items() if pid is not None}


@cache
def _compile() -> None:
    compileall.compile_dir(PROGRAM, quiet=2)


def _write_faults(binary: Path, faults: dict) -> None:
    draft = binary.with_name("faults.json.tmp")
    draft.write_text(json.dumps(faults, indent=2))
    draft.replace(binary.with_name("faults.json"))


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
