"""Everything that is wired, in start order."""

import asyncio
import contextvars
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio
import anyio.abc
import structlog
from litestar import Litestar
from litestar.config.cors import CORSConfig
from litestar.datastructures import ResponseHeader, State
from litestar.types import ASGIApp, Receive, Scope, Send

from app import vault
from app.domain.errors import BinaryMissing, ClawNetError
from app.foundations import Say, database, encryption_key, make_folder, protect
from app.gateway import install, openclaw, overrides, plugins, reserved
from app.gateway.candidate import Candidates
from app.gateway.channel_rules import InstalledRules
from app.gateway.chat import Chat
from app.gateway.check import Checker
from app.gateway.config import Dialect
from app.gateway.login import Logins as GatewayLogins
from app.gateway.pairing import Pairings as GatewayPairings
from app.gateway.probe import Prober
from app.graphql import schema
from app.graphql.context import Services
from app.graphql.transport.connections import Connections
from app.graphql.transport.controller import controller
from app.http import health, playground
from app.http.doors import Doors
from app.pubsub.hub import Hub
from app.services import accounts, keys, rooms, tokens
from app.services.bindings import Bindings
from app.services.bots import Bots
from app.services.channels import Channels
from app.services.fleet import Fleet
from app.services.limits import Limits
from app.services.logins import Logins
from app.services.messages import Messages
from app.services.pairings import Pairings
from app.services.people import People
from app.services.recorder import Recorder
from app.services.revisions import Revisions
from app.services.rotation import Rotations
from app.settings import Settings
from app.supervisor.supervisor import Supervisor
from app.supervisor.tools import Finder, Tools

log = structlog.get_logger()

#: Largest HTTP body that is read, in bytes.
MAX_BODY = 1024 * 1024
#: Seconds the database has to answer before the server calls itself not ready.
DATABASE_PATIENCE = 2.0
#: Seconds from the first socket's close to the hub's: clients must see 1012 before their streams end.
HUB_DELAY = 0.3


class Readiness:
    """Whether the server can do its work, and why not."""

    def __init__(self, supervisor: Supervisor, opened: vault.Vault) -> None:
        self._supervisor = supervisor
        self._vault = opened
        self.is_draining = False

    async def failing(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.is_draining:
            found["server"] = "the server is shutting down"
        found |= await _database_failing(self._vault)
        if self._supervisor.failing:
            found["supervisor"] = self._supervisor.failing
        return found

    @property
    def standby(self) -> str | None:
        """Why another server supervises while this one serves the API, which it is ready for."""
        return self._supervisor.standby


async def _database_failing(opened: vault.Vault) -> dict[str, str]:
    try:
        with anyio.fail_after(DATABASE_PATIENCE):
            trouble = await keys.trouble(opened)
    except TimeoutError:
        return {"database": f"the database did not answer within {DATABASE_PATIENCE:g} s"}
    except ClawNetError as error:
        return {"database": str(error)}
    return {"keys": trouble} if trouble else {}


@dataclass(slots=True)
class Running:
    """A server that is up: its application, and what ends it."""

    app: ASGIApp
    hub: Hub
    supervisor: Supervisor
    readiness: Readiness
    connections: Connections
    doors: Doors
    #: The first administrator's token, once; None where somebody is there already.
    first_token: str | None

    def drain(self) -> None:
        """No longer ready; streams end a moment after their sockets were closed."""
        self.readiness.is_draining = True
        asyncio.get_running_loop().call_later(HUB_DELAY, self.hub.close)


@asynccontextmanager
async def running(
    settings: Settings, say: Say, *, with_openclaw: bool = True, stop_budget: float | None = None
) -> AsyncGenerator[Running, None]:
    """A whole server but for its socket: database, keys, OpenClaw, supervisor, application.

    Args:
        say: Is told each step in one line.
        with_openclaw: Install the pinned version where none is found.
        stop_budget: Seconds bots have to end when the server does; the setting where None.

    Raises:
        SettingsError: Something it stands on is missing or wrong; the sentence says what to do.
    """
    protect()
    schema.check()
    async with AsyncExitStack() as stack:
        make_folder(settings.openclaw_base_path, "OPENCLAW_BASE_PATH")
        await stack.enter_async_context(database(settings, say))
        opened = await keys.open_vault(await encryption_key(settings, say))
        finder = await _find_openclaw(settings, say, may_install=with_openclaw)
        token = await accounts.first_administrator()
        hub = Hub()
        prober = await stack.enter_async_context(Prober())
        recorder = Recorder(hub.wake)
        supervisor = Supervisor(_tools(settings, recorder, opened, finder, prober))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(tasks.cancel_scope.cancel)
        services = _services(settings, stack, recorder, hub, supervisor, opened, finder, tasks)
        tasks.start_soon(services.connections.watch)
        tasks.start_soon(tokens.forget)
        tasks.start_soon(rooms.watch, hub)
        tasks.start_soon(rooms.forget)
        tasks.start_soon(keys.watch, opened)
        tasks.start_soon(services.rotations.run)
        tasks.start_soon(supervisor.run)
        tasks.start_soon(_warm, finder)
        readiness = Readiness(supervisor, opened)
        doors = Doors(create_app(services, readiness, settings.clawnet_allowed_origins), services.limits)
        yield Running(doors, hub, supervisor, readiness, services.connections, doors, token)
        if settings.clawnet_shutdown == "stop":
            await supervisor.stop(settings.clawnet_stop_grace if stop_budget is None else stop_budget)


def create_app(services: Services, readiness: Readiness, origins: tuple[str, ...] = ()) -> Litestar:
    """The application: GraphQL, health and the playground. Pages of the origins may use it from elsewhere."""
    return Litestar(
        route_handlers=[controller("/graphql", origins), health.healthz, health.readyz, playground.router()],
        state=State({"services": services, "readiness": readiness}),
        request_max_body_size=MAX_BODY,
        response_headers=_HEADERS,
        middleware=[_request_ids],
        cors_config=_cors(origins) if origins else None,
        openapi_config=None,
        logging_config=None,
    )


#: What browsers are told of every answer; the playground adds a policy of its own.
_HEADERS = [
    ResponseHeader(name="x-content-type-options", value="nosniff"),
    ResponseHeader(name="x-frame-options", value="DENY"),
    ResponseHeader(name="referrer-policy", value="no-referrer"),
]


def _cors(origins: tuple[str, ...]) -> CORSConfig:
    return CORSConfig(
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "OPTIONS"],
        allow_headers=["authorization", "content-type"],
        expose_headers=["retry-after"],
    )


def _request_ids(app: ASGIApp) -> ASGIApp:
    """Each request and each socket has an id, in its log lines and in its errors."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await app(scope, receive, send)

    return middleware


async def _find_openclaw(settings: Settings, say: Say, *, may_install: bool) -> Finder:
    binary = settings.openclaw_binary_path
    version, cache = settings.clawnet_openclaw_version, settings.clawnet_cache_dir

    async def find() -> openclaw.Installation | None:
        return await openclaw.find(str(binary) if binary else None, version, cache)

    finder = Finder(find, cache, with_start_cache=settings.clawnet_start_cache == "on")
    try:
        found = await find()
        if found is None and may_install:
            found = await install.ensure(version, cache, say)
    except ClawNetError as error:
        # Bots that need it say so themselves; everything else works without.
        say(f"OpenClaw: {error}")
        return finder
    say(f"OpenClaw: {found.version} at {found.entry}" if found else "OpenClaw: none (bots cannot start)")
    return finder


async def _warm(finder: Finder) -> None:
    """Fills the start cache before the first bot asks for it."""
    try:
        found = await finder.get()
        if found.start_cache:
            await found.start_cache.fill()
    except BinaryMissing:
        return  # The start said so.
    except Exception:
        log.exception("start_cache_not_filled")


def _tools(settings: Settings, recorder: Recorder, opened: vault.Vault, finder: Finder, prober: Prober) -> Tools:
    return Tools(
        recorder=recorder,
        vault=opened,
        openclaw=finder,
        prober=prober,
        base_path=settings.openclaw_base_path,
        base_port=settings.openclaw_base_port,
        node=settings.clawnet_node,
        capacity=settings.openclaw_max_bots,
        lease=settings.clawnet_lease,
        stop_grace=settings.clawnet_stop_grace,
        health_interval=settings.clawnet_health_interval,
        start_budget=settings.clawnet_start_budget,
        backoff_scale=settings.clawnet_backoff_scale,
        slots=anyio.CapacityLimiter(os.cpu_count() or 1),
        plugin_slots=anyio.CapacityLimiter(plugins.AT_ONCE),
    )


def _services(
    settings: Settings,
    stack: AsyncExitStack,
    recorder: Recorder,
    hub: Hub,
    supervisor: Supervisor,
    opened: vault.Vault,
    finder: Finder,
    tasks: anyio.abc.TaskGroup,
) -> Services:
    homes = settings.openclaw_base_path / "bots"

    async def config_rules() -> tuple[Checker, Dialect, overrides.Reserved]:
        found = await finder.get()
        return found.checker, found.dialect, partial(reserved.why, found.installation)

    def why_reserved(name: str) -> str | None:
        return reserved.why(finder.installation, name)

    candidates = Candidates(config_rules, homes)
    bots = Bots(
        recorder,
        hub,
        supervisor.wake,
        partial(overrides.refused_overrides, reserved=why_reserved),
        candidates,
        settings.clawnet_node,
        settings.openclaw_max_bots,
    )
    chat = Chat(homes)
    stack.push_async_callback(chat.close)

    def background(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # It inherits nothing of who asked, least of all a transaction.
        contextvars.Context().run(tasks.start_soon, work)

    limits = _limits(settings)
    people, connections = People(hub.wake, limits), Connections(hub, limits.sockets_per_user)
    messages = Messages(opened, chat, supervisor.is_here)
    revisions = Revisions(recorder, supervisor.wake)
    rules = InstalledRules(lambda: finder.version or settings.clawnet_openclaw_version)
    channels = Channels(revisions, rules)
    return Services(
        bots,
        channels,
        Bindings(revisions),
        messages,
        people,
        connections,
        opened,
        hub,
        supervisor.wake,
        background,
        limits=limits,
        fleet=Fleet(settings.clawnet_lease),
        rotations=Rotations(opened, hub.wake, settings.clawnet_key_rotation_wait),
        pairings=Pairings(opened, channels, GatewayPairings(homes), supervisor.is_here),
        logins=Logins(opened, channels, recorder, GatewayLogins(homes), supervisor.is_here),
        models_tried=candidates.models,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        query=settings.clawnet_rate_query,
        mutation=settings.clawnet_rate_mutation,
        sign_in=settings.clawnet_rate_sign_in,
        connect=settings.clawnet_rate_connect,
        sockets_per_user=settings.clawnet_sockets_per_user,
        sockets_per_address=settings.clawnet_sockets_per_address,
    )
