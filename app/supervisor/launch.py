"""One start of a gateway, step by step: home, config, check, port, process, readiness."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import ConfigInvalid, StartFailure, StartTimeout
from app.domain.states import Phase, Reason
from app.gateway import channels, config, home, lastgood, process, reserved
from app.gateway.config import BotSettings, ModelProvider
from app.gateway.plugins import Plugin
from app.gateway.process import Launch, Process
from app.services import keys, models, processes
from app.services.nodes import LeaseLost
from app.services.processes import Wanted
from app.supervisor import accounts, ports
from app.supervisor.tools import OpenClaw, Tools

log = structlog.get_logger()

#: Seconds between two looks whether a gateway is ready: soon at first, then seldom.
FIRST_LOOK, LAST_LOOK = 0.05, 0.5
#: The configuration's file in a home.
CONFIG_FILE = "config.json5"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A configuration ready to be written."""

    tree: dict[str, object]
    sha256: str

    @classmethod
    def of(cls, tree: dict[str, object]) -> "Rendered":
        return cls(tree, config.digest(tree))


async def render(tools: Tools, openclaw: OpenClaw, w: Wanted, port: int, also: Iterable[str] = ()) -> Rendered:
    """The bot's configuration with its secrets in it.

    Args:
        also: Names of model providers that are written besides the one of the bot's model, where its owner has them.

    Raises:
        CredentialsUnreadable: A secret cannot be read.
        ConfigInvalid: A text cannot be put into a configuration.
    """
    provider_name, _ = config.split_model(w.model)
    found = [await models.for_owner(w.owner, name) for name in dict.fromkeys((provider_name, *also))]
    providers = [await _provider(tools, row) for row in found if row is not None]
    token = await keys.gateway_token(tools.vault, w.bot_id)
    opened = await _channels(tools, openclaw, w)
    settings = BotSettings(
        agent_id=w.agent_id,
        name=w.name,
        model=w.model,
        system_prompt=w.system_prompt or "",
        home=tools.home(w.agent_id),
        port=port,
        gateway_token=token.reveal(),
        providers=providers,
        overrides=w.overrides,
        reserved=partial(reserved.why, openclaw.installation),
        channels=opened.channels,
        bindings=channels.render_bindings(await accounts.rules(w.bot_id), w.agent_id, openclaw.dialect),
        plugins=opened.plugins,
    )
    return Rendered.of(config.render(settings, openclaw.dialect))


async def _channels(tools: Tools, openclaw: OpenClaw, w: Wanted) -> channels.Rendered:
    """The bot's channels. One that lacks something is left out, as its owner sees at the channel itself."""
    opened = await accounts.read(tools.vault, w.bot_id)
    rendered = channels.render(opened, openclaw.dialect, openclaw.installation.version)
    for name, account_id, why in rendered.left_out:
        log.info("channel_left_out", provider=name, account_id=account_id, why=why)
    return rendered


async def _provider(tools: Tools, row: models.ModelProvider) -> ModelProvider:
    place = keys.provider_place(row.id)
    what = f"the API key of the model provider {row.name!r}"
    key = (await keys.unseal(tools.vault, row.api_key, place, what)).reveal() if row.api_key else None
    return ModelProvider(name=row.name, api=row.api.value, base_url=row.base_url, api_key=key, models=row.models)


class Unprepared(Exception):
    """Plugins are to be installed before the bot is started, where they can be had, without holding others up."""

    def __init__(self, plugins: list[Plugin]) -> None:
        super().__init__(", ".join(plugin.spec for plugin in plugins))
        self.plugins = plugins


#: Is told all plugins that the home lacks, and says which of them are to be tried before the start.
Note = Callable[[Sequence[Plugin]], Awaitable[list[Plugin]]]


async def configure(tools: Tools, openclaw: OpenClaw, w: Wanted, port: int, note: Note) -> None:
    """Puts the configuration and the persona where the process to be started reads them.

    Raises:
        ConfigInvalid: OpenClaw refuses it, and there is no last good one to go back to.
        Unprepared: Nothing was written.
    """
    folder = tools.home(w.agent_id)
    good = await last_good(tools, w) if w.is_rolled_back else None
    if good is None:
        tree = await _accepted(tools, openclaw, w, port, note)
    else:
        tree = await _prepared(openclaw, folder, good, note)
    await anyio.to_thread.run_sync(config.write, folder / CONFIG_FILE, config.to_text(tree))
    await anyio.to_thread.run_sync(home.write_persona, folder, w.system_prompt or "")
    await processes.note_rendered(w.lease, w.bot_id, w.owner, _shown(tree))


async def _accepted(tools: Tools, openclaw: OpenClaw, w: Wanted, port: int, note: Note) -> dict[str, object]:
    """The wanted configuration, or the last good one where OpenClaw's rules refuse that. The row says which it is."""
    try:
        rendered = await render(tools, openclaw, w, port)
        # First, because OpenClaw's rules are those of its plugins, too.
        tree = await _prepared(openclaw, tools.home(w.agent_id), rendered.tree, note)
        await tools.recorder.phase(w.lease, w.bot_id, Phase.CHECKING)
        await openclaw.checker.check(tree, tools.home(w.agent_id))
    except ConfigInvalid as error:
        good = await last_good(tools, w)
        if good is None:
            raise
        await tools.recorder.config_refused(w.lease, w.bot_id, w.owner, w.revision, str(error))
        return await _prepared(openclaw, tools.home(w.agent_id), good, note)
    await processes.note(w.lease, w.bot_id, config_revision=w.revision, config_error=None)
    return tree


async def _prepared(openclaw: OpenClaw, folder: Path, tree: dict[str, object], note: Note) -> dict[str, object]:
    """The configuration without the channels whose plugin cannot be had.

    Raises:
        Unprepared: Some are to be tried first.
    """
    missing = await openclaw.plugins.missing(folder, tree)
    if to_try := await note(missing):
        raise Unprepared(to_try)
    return without(tree, missing)


def without(tree: dict[str, object], plugins: Iterable[Plugin]) -> dict[str, object]:
    """The configuration as it is without the channels that need these plugins, which are not there."""
    names = {plugin.provider for plugin in plugins}
    if not names:
        return tree
    log.info("channels_left_out", providers=sorted(names), why="their plugins are not there")
    opened = {name: block for name, block in _mapping(tree.get("channels")).items() if name not in names}
    entries = _mapping(_mapping(tree.get("plugins")).get("entries"))
    kept = {name: entry for name, entry in entries.items() if name not in names}
    rest = {name: part for name, part in _mapping(tree.get("plugins")).items() if name != "entries"}
    parts = {"channels": opened, "plugins": rest | ({"entries": kept} if kept else {})}
    # As a configuration is rendered: what is empty is not said.
    return {name: part for name, part in (tree | parts).items() if part or name not in parts}


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, Mapping) else {}


async def wanted(tools: Tools, w: Wanted) -> list[Plugin]:
    """The plugins that the bot's channels need, there or not."""
    openclaw = await tools.openclaw.get()
    rendered = await render(tools, openclaw, w, w.port or tools.base_port)
    return openclaw.plugins.wanted(rendered.tree)


async def lacking(tools: Tools, w: Wanted, tree: dict[str, object] | None = None) -> list[Plugin]:
    """Plugins that a running bot lacks. What its process runs with is there, even where the next start needs it anew.

    Args:
        tree: Its wanted configuration, where that was rendered already.
    """
    openclaw = await tools.openclaw.get()
    if tree is None:
        tree = (await render(tools, openclaw, w, w.port or tools.base_port)).tree
    missing = await openclaw.plugins.missing(tools.home(w.agent_id), tree)
    if not missing:
        return []
    kept = await last_taken(tools, w)
    has = _mapping(kept.tree.get("channels") if kept is not None else None)
    return [plugin for plugin in missing if plugin.provider not in has]


async def last_taken(tools: Tools, w: Wanted) -> lastgood.Kept | None:
    """What a process of this bot's has taken last, with its secrets; None where nobody knows any more."""
    return await anyio.to_thread.run_sync(lastgood.read, tools.home(w.agent_id), w.config_sha256)


async def last_good(tools: Tools, w: Wanted) -> dict[str, object] | None:
    """What a refused change can be taken back to.

    Never to the keys of somebody who gave the bot away, and never to what was taken away from the bot since.
    """
    kept = await last_taken(tools, w)
    if kept is None:
        return None
    try:
        return None if await _holds_more(tools, w, kept) else kept.tree
    except StartFailure as error:
        log.warning("config_not_gone_back_to", why=str(error))
        return None


async def runs_with_more(tools: Tools, w: Wanted) -> bool:
    """The process has the keys of the bot's former owner, or what was taken away from the bot since."""
    kept = await last_taken(tools, w)
    try:
        return kept is not None and await _holds_more(tools, w, kept)
    except StartFailure:
        return False  # Nobody can tell for now.


async def _holds_more(tools: Tools, w: Wanted, kept: lastgood.Kept) -> bool:
    if kept.owner != w.owner:
        return True
    # What overrides say is no matter of rights, and they may be what is refused.
    plain = replace(w, overrides={})
    openclaw = await tools.openclaw.get()
    wanted = await render(tools, openclaw, plain, w.port or tools.base_port, lastgood.providers_in(kept.tree))
    return lastgood.holds_more(kept.tree, wanted.tree)


async def tidy(tools: Tools, w: Wanted) -> bool:
    """Takes secrets out of the home of a bot without a process, all but those that a start may go back to.

    Returns:
        Whether that is done; else what was kept cannot be judged for now.
    """
    folder = tools.home(w.agent_id)
    if not folder.exists():
        return True
    try:
        await anyio.to_thread.run_sync(lastgood.drop_in_use, folder)
        kept = await last_taken(tools, w)
        if kept is None or await _holds_more(tools, w, kept):
            await anyio.to_thread.run_sync(lastgood.drop, folder)
        await anyio.to_thread.run_sync(home.sweep, folder)
    except (StartFailure, OSError) as error:
        log.info("home_not_tidied", why=str(error))
        return False
    return True


async def note_ready(tools: Tools, w: Wanted, owner: UUID | None) -> dict[str, Any]:
    """What a process that is ready proves of the configuration it was started with: columns to be written with that.

    Args:
        owner: Whose settings it was started with; nothing is gone back to where nobody knows.
    """
    folder = tools.home(w.agent_id)
    sha256 = None if owner is None else await anyio.to_thread.run_sync(lastgood.keep_in_use, folder, owner)
    return {"config_sha256": sha256, "good_revision": w.good_revision if w.config_error else w.applied_revision}


async def note_taken(tools: Tools, w: Wanted, rendered: Rendered) -> None:
    """The running process has taken the configuration; the persona goes with it, for conversations to come."""
    folder = tools.home(w.agent_id)
    await anyio.to_thread.run_sync(home.write_persona, folder, w.system_prompt or "")
    with suppress(OSError):  # Without the copy, a later change cannot be taken back; this one is in force all the same.
        await anyio.to_thread.run_sync(lastgood.keep, folder, rendered.tree, w.owner)
    await processes.note_rendered(
        w.lease,
        w.bot_id,
        w.owner,
        _shown(rendered.tree),
        config_revision=w.revision,
        good_revision=w.revision,
        config_sha256=rendered.sha256,
        config_error=None,
    )


def _shown(tree: dict[str, object]) -> str:
    return config.to_text(config.redact(tree))


async def spawn(tools: Tools, w: Wanted, take: Callable[[Process], None], note: Note) -> None:
    """Everything up to a living process, under the nonce that the row says.

    Args:
        take: Is handed the process before anything else can happen to this task.
        note: Decides what is done about plugins that are not there.

    Raises:
        Unprepared: Plugins are to be installed first; nothing was started.
    """
    assert w.nonce is not None  # The caller has written STARTING with it.
    openclaw = await tools.openclaw.get()
    folder = tools.home(w.agent_id)
    is_new = not folder.exists()
    await anyio.to_thread.run_sync(home.make, folder)
    if is_new and openclaw.start_cache:
        await tools.recorder.phase(w.lease, w.bot_id, Phase.PREPARING)
        await openclaw.start_cache.copy_into(folder)
    port = await ports.claim(w.lease, w.bot_id, tools.base_port, w.port)
    await configure(tools, openclaw, w, port, note)
    await anyio.to_thread.run_sync(lastgood.drop_foreign, folder, w.owner)
    await tools.recorder.phase(w.lease, w.bot_id, Phase.LAUNCHING)
    # The database said a moment ago that the bot is ours, unless this process was paused in that very moment.
    if w.lease.may_be_taken:
        raise LeaseLost(f"bot {w.bot_id} may be another server's by now")
    gateway = await process.spawn(_launch(openclaw, w, folder, port, w.nonce))
    take(gateway)
    await processes.note(
        w.lease,
        w.bot_id,
        pid=gateway.pid,
        openclaw_version=openclaw.installation.version,
        last_seen_at=datetime.now(UTC),
    )


def _launch(openclaw: OpenClaw, w: Wanted, folder: Path, port: int, nonce: UUID) -> Launch:
    return Launch(
        home=folder,
        argv=home.argv(openclaw.installation, port),
        env=home.environment(folder, openclaw.installation, w.bot_id, str(nonce)),
        cwd=folder / "workspace",
        nonce=str(nonce),
    )


async def ready(tools: Tools, gateway: Process, port: int, budget: float) -> None:
    """Returns once the gateway answers on the port and the port is its own.

    Raises:
        StartTimeout: It did not within the budget; says what was seen last.
    """
    pause, seen = FIRST_LOOK, "it never answered"
    with anyio.move_on_after(budget):
        while True:
            found = await tools.prober.is_ready(port, kind=tools.kind)
            tools.kind = found.kind
            if found.is_ready:
                if await process.owns_port(gateway, port):
                    return
                seen = f"port {port} belongs to another program"
            else:
                seen = found.reason
            await anyio.sleep(pause)
            pause = min(LAST_LOOK, pause * 1.5)
    raise StartTimeout(f"the gateway was not ready within {budget:g} s ({seen}); see its log")


def without_secrets(folder: Path, lines: tuple[str, ...]) -> tuple[str, ...]:
    """What a gateway said last, fit for rows and clients; nothing where nobody knows its secrets. Blocks for a look."""
    return config.without_secrets(folder, lines)


def new_nonce() -> UUID:
    return uuid4()


def why_started(w: Wanted, *, is_first: bool, has_more: bool) -> Reason:
    """Why a start begins: a person wished it, the server came back, or an earlier try failed.

    Args:
        has_more: A running bot was taken down for a plugin that it lacked.
    """
    if w.generation > w.seen_generation:
        return Reason.USER
    if w.revision > w.applied_revision or has_more:
        return Reason.RECONFIGURE
    return Reason.AUTOSTART if is_first else Reason.RETRY
