"""Installs the plugins of channels in a bot's home: new OpenClaw brings a few channels, the others are npm packages.

Each home has copies of its own, because OpenClaw trusts a plugin only where it has installed it itself. An installation
is prepared once for a version of OpenClaw: a note of ours tells for which, and counts while OpenClaw's own record and
the files bear it out. Left to itself OpenClaw would look for what is missing at every start, for a minute and more.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT
from typing import Any, cast
from uuid import UUID

import anyio
import structlog
from anyio import lowlevel, to_thread

from app.domain.errors import ClawNetError, PluginMissing, SpawnFailed
from app.domain.states import PluginStep
from app.gateway import channels, fenced, npm, plugin_records, process
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
        #: What this server brought into the cache; nobody is asked for it again.
        self._fetched: set[Plugin] = set()

    async def missing(self, home: Path, config: Mapping[str, Any]) -> list[Plugin]:
        """What has to be installed before a gateway can run with this configuration; asks nobody outside."""
        wanted = self.wanted(config)
        return await self._absent(home, wanted) if wanted else []

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
            await self._fetch(plugin, scratch, tell)

    async def install(self, plugin: Plugin, home: Path, bot_id: UUID, tell: Tell) -> None:
        """Installs it in a home without a process.

        Cancelled half-way it leaves nothing behind that counts as installed, and no process.

        Raises:
            PluginMissing: It cannot be had; the message says why.
        """
        async with self._scratch(plugin) as scratch:
            await to_thread.run_sync(plugin_records.check_folders, home)
            await to_thread.run_sync(fenced.check_environment, home)
            nonce = _nonce(home)
            # What a server that was killed left may be at it still.
            await _clear(home, nonce)
            await self._fetch(plugin, scratch, tell)
            environment = await self._offline(plugin, scratch)
            environment |= self._own(home, scratch) | {process.BOT_ID: str(bot_id), process.NONCE: nonce}
            (scratch / "config.json5").write_text(json.dumps(_PLAIN))
            # Nobody is there to be asked whether a package that is not OpenClaw's own may come in, or a new one.
            argv = [*self._installation.argv_prefix, "plugins", "install", f"npm:{plugin.spec}", "--force"]
            try:
                await tell(PluginStep.INSTALLING, 0)
                telling = await _telling(tell, PluginStep.INSTALLING, home / "npm")
                await self._run(plugin, argv, environment, scratch, telling=telling)
            except PluginMissing:
                self._fetched.discard(plugin)  # Somebody may have emptied the cache.
                raise
            finally:
                with anyio.CancelScope(shield=True):
                    await _clear(home, nonce)
            await to_thread.run_sync(self._note, home, plugin)
            if await self._absent(home, [plugin]):
                raise _cannot(plugin, "OpenClaw says that it is installed, and it is not there")
        log.info("plugin_installed", plugin=plugin.spec)

    async def _fetch(self, plugin: Plugin, scratch: Path, tell: Tell) -> None:
        """Brings the package, and what it needs, into the cache. Nothing that a bot wrote is read meanwhile."""
        if plugin in self._fetched:
            return
        await self._ask(plugin, scratch, tell)
        project = scratch / "project"
        project.mkdir()
        needs = {"private": True, "dependencies": {plugin.package: plugin.version}}
        (project / "package.json").write_text(json.dumps(needs))
        environment = npm.environment(os.environ, self._folder / "cache") | self._plain(scratch)
        await tell(PluginStep.DOWNLOADING, 0)
        telling = await _telling(tell, PluginStep.DOWNLOADING, project)
        await self._run(plugin, [*self._npm(plugin), *_DOWNLOAD], environment, project, telling=telling)
        self._fetched.add(plugin)

    async def _offline(self, plugin: Plugin, scratch: Path) -> dict[str, str]:
        """What npm is to be told where a bot's own code may run: what is in the cache, and no secret."""
        environment = npm.environment(os.environ, self._folder / "cache") | self._plain(scratch)
        argv = [*self._npm(plugin), "config", "list", "--json"]
        said = await self._run(plugin, argv, environment, scratch, budget=ASK_BUDGET)
        settings = scratch / "npmrc"
        settings.write_text(npm.registries(said))
        return npm.offline(npm.cache_of(environment), settings)

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
    ) -> str:
        """Runs a command to its end, behind the fence that bots have, and answers its last words.

        Raises:
            PluginMissing: It failed, or had no time left, which is then said as `late`.
        """
        output = folder / "last-words"
        code = None
        with anyio.move_on_after(budget):
            code = await _code(argv, environment, folder, output, telling)
        words = await to_thread.run_sync(_last_words, output)
        if code == 0:
            return words
        why = late if code is None else npm.why(words)
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
        """A folder for one run, with an npm that is found by its name.

        Raises:
            PluginMissing: Also for whatever else fails meanwhile in our folders or the bot's.
        """
        try:
            made = await to_thread.run_sync(self._made, plugin)
            try:
                yield Path(made.name)
            finally:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(made.cleanup)
        except SpawnFailed as error:
            raise _cannot(plugin, str(error).removesuffix(".")) from error
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full else f"the server's system refuses it ({error.strerror})"
            raise _cannot(plugin, why) from error

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

    async def _absent(self, home: Path, wanted: list[Plugin]) -> list[Plugin]:
        noted = await to_thread.run_sync(self._noted, home, wanted)
        records = await plugin_records.read(home) if noted else []
        there = await to_thread.run_sync(_there, home, noted, records)
        return [each for each in wanted if each not in there]

    def _noted(self, home: Path, wanted: list[Plugin]) -> list[Plugin]:
        try:
            with homes.opened(home) as base:
                note = _read_note(base)
        except (SpawnFailed, OSError):
            return []
        return [each for each in wanted if note.get(each.package) == [each.version, self._mark]]

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
    await plugin_records.end_lease(home)


def _there(home: Path, noted: list[Plugin], records: list[tuple[str, str]] | None) -> list[Plugin]:
    """Those of which OpenClaw's record and the files say so, too; of a version without a record the files tell."""

    def is_there(plugin: Plugin) -> bool:
        if records is None:
            found = plugin_records.places(home, plugin.package)
        else:
            found = [Path(place) for name, place in records if name == plugin.package]
        return any(plugin_records.version_at(home, place) == plugin.version for place in found)

    return [each for each in noted if is_there(each)]


async def _telling(tell: Tell, step: PluginStep, folder: Path) -> Callable[[], Awaitable[None]]:
    """Says once more what is being done, with what came into the folder since."""
    before = await to_thread.run_sync(megabytes, folder)

    async def once_more() -> None:
        with suppress(ClawNetError):  # It is done, whoever hears of it.
            await tell(step, max(0, await to_thread.run_sync(megabytes, folder) - before))

    return once_more


async def _code(
    argv: list[str], environment: dict[str, str], folder: Path, output: Path, telling: Callable[[], Awaitable[None]]
) -> int | None:
    with output.open("wb") as words:
        async with fenced.started(argv, environment, folder=folder, stdout=words, stderr=STDOUT) as command:
            await repeating(command.wait, telling)
            return command.returncode


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
