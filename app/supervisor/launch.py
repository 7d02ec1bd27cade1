"""One start of a gateway, step by step: home, config, check, port, process, readiness."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import anyio.to_thread
import structlog

from app.domain.errors import StartTimeout
from app.domain.states import Phase, Reason
from app.gateway import config, home, process
from app.gateway.config import BotSettings, ModelProvider
from app.gateway.process import Launch, Process
from app.services import keys, models, processes
from app.services.nodes import LeaseLost
from app.services.processes import Wanted
from app.supervisor import ports
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


async def render(tools: Tools, openclaw: OpenClaw, w: Wanted, port: int) -> Rendered:
    """The bot's configuration with its secrets in it.

    Raises:
        CredentialsUnreadable: A secret cannot be read.
        ConfigInvalid: A text cannot be put into a configuration.
    """
    provider_name, _ = config.split_model(w.model)
    provider = await models.for_owner(w.owner, provider_name)
    providers = () if provider is None else (_provider(tools, provider),)
    token = await keys.gateway_token(tools.vault, w.bot_id)
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
    )
    tree = config.render(settings, openclaw.dialect)
    return Rendered(tree, config.digest(tree))


def _provider(tools: Tools, row: models.ModelProvider) -> ModelProvider:
    place = keys.provider_place(row.id)
    what = f"the API key of the model provider {row.name!r}"
    key = keys.read(tools.vault, row.api_key, place, what).reveal() if row.api_key else None
    return ModelProvider(name=row.name, api=row.api.value, base_url=row.base_url, api_key=key, models=row.models)


async def write(tools: Tools, w: Wanted, rendered: Rendered) -> None:
    """Puts the configuration and the persona in their places, and says so in the row."""
    folder = tools.home(w.agent_id)
    await anyio.to_thread.run_sync(config.write, folder / CONFIG_FILE, config.to_text(rendered.tree))
    await anyio.to_thread.run_sync(home.write_persona, folder, w.system_prompt or "")
    await processes.note(
        w.lease,
        w.bot_id,
        config_revision=w.revision,
        config_sha256=rendered.sha256,
        config_rendered=config.to_text(config.redact(rendered.tree)),
        config_synced_at=datetime.now(UTC),
        config_error=None,
    )


async def spawn(tools: Tools, w: Wanted, take: Callable[[Process], None]) -> None:
    """Everything up to a living process, under the nonce that the row says.

    Args:
        take: Is handed the process before anything else can happen to this task.
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
    rendered = await render(tools, openclaw, w, port)
    await tools.recorder.phase(w.lease, w.bot_id, Phase.CHECKING)
    await openclaw.checker.check(rendered.tree, folder)
    await write(tools, w, rendered)
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
    """What a gateway said last, fit for rows and clients: the secrets it was configured with are taken out.

    Nothing is handed on where the configuration cannot be read: then nobody knows what to take out.
    """
    try:
        tree = json.loads((folder / CONFIG_FILE).read_bytes())
        return tuple(config.hide(line, tree) for line in lines)
    except (OSError, ValueError, AttributeError, RecursionError):
        return ()


def new_nonce() -> UUID:
    return uuid4()


def why_started(w: Wanted, *, is_first: bool) -> Reason:
    """Why a start begins: a person wished it, the server came back, or an earlier try failed."""
    if w.generation > w.seen_generation:
        return Reason.USER
    if w.revision > w.applied_revision:
        return Reason.RECONFIGURE
    return Reason.AUTOSTART if is_first else Reason.RETRY
