"""Installs the plugins of channels in a bot's home: new OpenClaw brings a few channels, the others are npm packages.

Each home has copies of its own, because OpenClaw trusts a plugin only where it has installed it itself. An installation
is prepared once for a version of OpenClaw: a note of ours tells for which, and counts while OpenClaw's own record and
the files bear it out. Left to itself OpenClaw would look for what is missing at every start, for a minute and more.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import Any, cast
from uuid import UUID

import anyio
import structlog
from anyio import lowlevel, to_thread

from app.domain.errors import ClawNetError, PluginMissing, SpawnFailed
from app.domain.states import PluginStep
from app.gateway import channels, npm, plugin_records, process
from app.gateway import home as homes
from app.gateway.config import write_in
from app.gateway.install import megabytes, repeating
from app.gateway.openclaw import Installation, plain_environment

log = structlog.get_logger()

#: Seconds for the registry to say that it has a package, and for one plugin to be downloaded or installed.
ASK_BUDGET, INSTALL_BUDGET = 30.0, 600.0
#: Installations at a time: each keeps a core busy, and most of them the network.
AT_ONCE = 2
#: Our note in a home's `run/`.
NOTE = "plugins.json"
#: Characters of a command's last words that are looked at.
LAST_WORDS = 20_000

#: As OpenClaw has its own plugins installed.
_DOWNLOAD = (
    "install", "--omit=dev", "--omit=peer", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund",
    "--loglevel=error",
)  # fmt: skip
#: PR_SET_PDEATHSIG: if we are killed, nobody else would end it.
_DIES_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
#: Enough of a configuration for a command that installs a plugin. It is told of no channel: OpenClaw would begin with
#: an installation of its own, and quote the bot's settings.
_PLAIN = {"gateway": {"mode": "local"}}

#: Is told each step when it begins, and then every few seconds how many megabytes are there by now.
Tell = Callable[[PluginStep, int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Plugin:
    """An npm package that has to be installed for a channel."""

    provider: str
    label: str
    package: str
    version: str

    @property
    def spec(self) -> str:
        return f"{self.package}@{self.version}"

    @property
    def is_official(self) -> bool:
        """OpenClaw's rules know its channel's settings before it is installed."""
        return self.package.startswith("@openclaw/")


class Plugins:
    """The plugins of one installation of OpenClaw's."""

    def __init__(self, installation: Installation, cache_dir: Path) -> None:
        self._installation = installation
        self._folder = cache_dir / "npm"

    async def missing(self, home: Path, config: Mapping[str, Any]) -> list[Plugin]:
        """What has to be installed before a gateway can run with this configuration; asks nobody outside."""
        wanted = self.wanted(config)
        return await to_thread.run_sync(self._missing, home, wanted) if wanted else []

    def wanted(self, config: Mapping[str, Any]) -> list[Plugin]:
        """What this configuration's channels need, installed or not."""
        known = channels.catalogue(self._installation.version)
        blocks = cast("dict[str, Any]", config.get("channels") or {})
        found: list[Plugin] = []
        for name, block in sorted(blocks.items()):
            is_off = isinstance(block, dict) and cast("dict[str, Any]", block).get("enabled") is False
            package = known[name].package if name in known and not is_off else None
            if package is not None:
                package, _, version = package.rpartition("@")
                found.append(Plugin(name, known[name].label, package, version))
        return found

    async def download(self, plugin: Plugin, tell: Tell) -> None:
        """Brings what `install` will need into the cache: for a bot that runs, whose gateway holds the home.

        Raises:
            PluginMissing: It cannot be had; the message says why.
        """
        async with self._scratch(plugin) as scratch:
            await self._ask(plugin, scratch, tell)
            project = scratch / "project"
            project.mkdir()
            (project / "package.json").write_text(
                json.dumps({"private": True, "dependencies": {plugin.package: plugin.version}})
            )
            environment = npm.environment(os.environ, self._folder / "cache") | self._plain(scratch)
            await tell(PluginStep.DOWNLOADING, 0)
            telling = _telling(tell, PluginStep.DOWNLOADING, project)
            await self._run(plugin, [*self._npm(plugin), *_DOWNLOAD], environment, project, telling=telling)

    async def install(self, plugin: Plugin, home: Path, bot_id: UUID, tell: Tell) -> None:
        """Installs it in a home without a process.

        Cancelled half-way it leaves nothing behind that counts as installed, and no process.

        Raises:
            PluginMissing: It cannot be had; the message says why.
        """
        nonce = _nonce(home)
        # What a server that was killed left may be at it still.
        await _clear(home, nonce)
        async with self._scratch(plugin) as scratch:
            await self._ask(plugin, scratch, tell)
            (scratch / "config.json5").write_text(json.dumps(_PLAIN))
            marks = {process.BOT_ID: str(bot_id), process.NONCE: nonce}
            environment = npm.environment(os.environ, self._folder / "cache") | self._own(home, scratch) | marks
            # Nobody is there to be asked whether a package that is not OpenClaw's own may come in, or a new one.
            argv = [*self._installation.argv_prefix, "plugins", "install", f"npm:{plugin.spec}", "--force"]
            try:
                await tell(PluginStep.INSTALLING, 0)
                telling = _telling(tell, PluginStep.INSTALLING, home / "npm")
                await self._run(plugin, argv, environment, scratch, telling=telling)
            finally:
                with anyio.CancelScope(shield=True):
                    await _clear(home, nonce)
        await to_thread.run_sync(self._note, home, plugin)
        if await to_thread.run_sync(self._missing, home, [plugin]):
            raise _cannot(plugin, "OpenClaw says that it is installed, and it is not there")
        log.info("plugin_installed", plugin=plugin.spec)

    async def _ask(self, plugin: Plugin, scratch: Path, tell: Tell) -> None:
        """Fails soon where the registry is away, or does not have it."""
        await tell(PluginStep.ASKING, 0)
        environment = npm.environment(os.environ, self._folder / "cache") | self._plain(scratch)
        argv = [*self._npm(plugin), "view", plugin.spec, "version", "--json"]
        await self._run(plugin, argv, environment, scratch, budget=ASK_BUDGET, late=npm.UNREACHED)

    async def _run(
        self,
        plugin: Plugin,
        argv: list[str],
        environment: dict[str, str],
        folder: Path,
        *,
        budget: float = INSTALL_BUDGET,
        late: str = "it took too long",
        telling: Callable[[], Awaitable[None]] = lowlevel.checkpoint,
    ) -> None:
        """Runs a command to its end, in a session of its own that ends with it.

        Raises:
            PluginMissing: It failed, or had no time left, which is then said as `late`.
        """
        output = folder / "last-words"
        code = None
        with anyio.move_on_after(budget):
            code = await _code(argv, environment, folder, output, telling)
        if code == 0:
            return
        why = late if code is None else npm.why(await to_thread.run_sync(_last_words, output))
        log.warning("plugin_not_installed", plugin=plugin.spec, command=argv[-3:], code=code, why=why)
        raise _cannot(plugin, why)

    def _npm(self, plugin: Plugin) -> list[str]:
        command = self._npm_beside() or npm.command_of(self._installation.node)
        if not command:
            raise _cannot(plugin, "there is no npm on this server")
        return command

    def _npm_beside(self) -> list[str]:
        """A wrapper may bring an npm of its own, which the OpenClaw behind it fits."""
        beside = self._installation.entry.with_name("npm")
        is_wrapper = len(self._installation.argv_prefix) == 1
        return [str(beside)] if is_wrapper and os.access(beside, os.X_OK) else []

    def _plain(self, scratch: Path) -> dict[str, str]:
        return plain_environment(self._installation.node, str(scratch))

    def _own(self, home: Path, scratch: Path) -> dict[str, str]:
        """The bot's own environment, but for its configuration, which the command would write into."""
        plain = self._plain(scratch)
        return plain | {
            "PATH": f"{scratch / 'bin'}:{plain['PATH']}",
            # Else OpenClaw puts the folder of its Node first, whose npm may be broken.
            "OPENCLAW_PATH_BOOTSTRAPPED": "1",
            "HOME": str(home / "home"),
            "TMPDIR": str(home / "tmp"),
            "OPENCLAW_STATE_DIR": str(home),
        }

    @asynccontextmanager
    async def _scratch(self, plugin: Plugin) -> AsyncGenerator[Path]:
        """A folder for one run, with an npm that is found by its name."""
        made = await to_thread.run_sync(self._made, plugin)
        try:
            yield Path(made.name)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(made.cleanup)

    def _made(self, plugin: Plugin) -> tempfile.TemporaryDirectory[str]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _sweep(self._folder)
        made = tempfile.TemporaryDirectory(prefix=f"run-{os.getpid()}-", dir=self._folder, ignore_cleanup_errors=True)
        try:
            (Path(made.name) / "bin").mkdir()
            npm.put_on_path(Path(made.name) / "bin", self._npm(plugin))
        except BaseException:
            made.cleanup()
            raise
        return made

    # What is installed in a home.

    def _missing(self, home: Path, wanted: list[Plugin]) -> list[Plugin]:
        try:
            with homes.opened(home) as base:
                note, records = _read_note(base), plugin_records.read(base)
        except (SpawnFailed, OSError):
            return wanted
        return [each for each in wanted if not self._is_installed(home, each, note, records)]

    def _is_installed(
        self, home: Path, plugin: Plugin, note: dict[str, Any], records: list[dict[str, Any]] | None
    ) -> bool:
        if note.get(plugin.package) != [plugin.version, self._mark]:
            return False
        if records is None:
            # A version that keeps its record elsewhere: the files tell.
            places = list(home.glob(f"npm/projects/*/node_modules/{plugin.package}"))
        else:
            places = [
                Path(str(each.get("installPath"))) for each in records if each.get("resolvedName") == plugin.package
            ]
        return any(plugin_records.version_in(place) == plugin.version for place in places if place.is_relative_to(home))

    def _note(self, home: Path, plugin: Plugin) -> None:
        with homes.opened(home) as base, homes.opened(Path("run"), base) as run:
            note = _read_note(base) | {plugin.package: [plugin.version, self._mark]}
            write_in(run, NOTE, json.dumps(note))

    @property
    def _mark(self) -> str:
        """A plugin is bound to the OpenClaw that installed it, also by where that lies."""
        return f"{self._installation.version} {self._installation.entry}"


def _cannot(plugin: Plugin, why: str) -> PluginMissing:
    return PluginMissing(f"{plugin.label}'s plugin ({plugin.spec}) cannot be installed: {why}.", plugin.provider)


def _nonce(home: Path) -> str:
    """By which processes that install into this home are known, also to the next server."""
    return f"plugins-{hashlib.sha256(str(home).encode()).hexdigest()[:32]}"


async def _clear(home: Path, nonce: str) -> None:
    """Leaves nothing of an installation that is over or was cut short."""
    await process.sweep(nonce)
    await to_thread.run_sync(plugin_records.remove_stages, home)
    await to_thread.run_sync(plugin_records.end_lease, home)


def _telling(tell: Tell, step: PluginStep, folder: Path) -> Callable[[], Awaitable[None]]:
    """Says once more what is being done, with what lies in the folder by now."""

    async def once_more() -> None:
        with suppress(ClawNetError):  # It is done, whoever hears of it.
            await tell(step, await to_thread.run_sync(megabytes, folder))

    return once_more


async def _code(
    argv: list[str], environment: dict[str, str], folder: Path, output: Path, telling: Callable[[], Awaitable[None]]
) -> int | None:
    with output.open("wb") as words:
        command = await anyio.open_process(
            [sys.executable, "-I", "-c", _DIES_WITH_US, *argv],
            cwd=folder, env=environment, stdin=DEVNULL, stdout=words, stderr=STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        await repeating(command.wait, telling)
        return command.returncode
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        with anyio.CancelScope(shield=True):
            await command.aclose()


def _last_words(output: Path) -> str:
    with suppress(OSError):
        return output.read_text(errors="replace")[-LAST_WORDS:]
    return ""


def _sweep(folder: Path) -> None:
    """Removes what servers that are gone left of their runs."""
    for left in folder.glob("run-*-*"):
        if not Path("/proc", left.name.split("-")[1]).exists():
            shutil.rmtree(left, ignore_errors=True)


def _read_note(base: int) -> dict[str, Any]:
    return plugin_records.as_object(plugin_records.text(Path("run", NOTE), base))
