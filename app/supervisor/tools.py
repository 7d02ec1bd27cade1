"""What every runner shares: where homes are, which OpenClaw runs in them, and who is told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import anyio
from anyio import to_thread

from app.domain.errors import BinaryMissing
from app.gateway import check, reserved
from app.gateway.check import Checker
from app.gateway.config import Dialect
from app.gateway.openclaw import Installation
from app.gateway.plugins import Plugins
from app.gateway.probe import Kind, Prober
from app.gateway.start_cache import StartCache
from app.services.recorder import Recorder
from app.vault import Vault

MISSING = (
    "OpenClaw is not installed here: run `scripts/openclaw` (or start the server without --no-openclaw), "
    "or set OPENCLAW_BINARY_PATH to an `openclaw` of your own; then start the bot again"
)


@dataclass(frozen=True, slots=True)
class OpenClaw:
    """The installed OpenClaw with what was found out about it."""

    installation: Installation
    checker: Checker
    #: None: homes start cold, as the setting has it.
    start_cache: StartCache | None
    dialect: Dialect
    plugins: Plugins


class Finder:
    """Finds OpenClaw when it is first needed, and looks again after it was missing."""

    def __init__(
        self, find: Callable[[], Awaitable[Installation | None]], cache_dir: Path, *, with_start_cache: bool
    ) -> None:
        self._find = find
        self._cache_dir = cache_dir
        self._with_start_cache = with_start_cache
        self._found: OpenClaw | None = None
        self._lock = anyio.Lock()

    async def get(self) -> OpenClaw:
        """Raises `BinaryMissing` with what to do about it."""
        async with self._lock:
            if self._found is not None and not self._found.installation.entry.exists():
                self._found = None
            if self._found is None:
                installation = await self._find()
                if installation is None:
                    raise BinaryMissing(MISSING)
                await to_thread.run_sync(reserved.learn, installation)
                self._found = OpenClaw(
                    installation,
                    Checker(installation),
                    StartCache(installation, self._cache_dir) if self._with_start_cache else None,
                    await check.dialect(installation, self._cache_dir),
                    Plugins(installation, self._cache_dir),
                )
            return self._found

    @property
    def installation(self) -> Installation | None:
        """What was found, once it was."""
        return self._found.installation if self._found else None

    @property
    def version(self) -> str | None:
        """Its version, once it was found."""
        return self._found.installation.version if self._found else None


@dataclass(slots=True, kw_only=True)
class Tools:
    """Handed to each runner by the supervisor; the times are seconds."""

    recorder: Recorder
    vault: Vault
    openclaw: Finder
    prober: Prober
    base_path: Path
    base_port: int
    node: str
    #: Bots this machine can hold.
    capacity: int
    #: How long this machine's lease holds from one renewal to the next.
    lease: float
    stop_grace: float
    health_interval: float
    start_budget: float
    backoff_scale: float
    #: A start takes whole cores for seconds, so no more run at once than there are cores.
    slots: anyio.CapacityLimiter
    #: Plugins are installed outside of those, so that bots which wait for the network keep nobody from starting.
    plugin_slots: anyio.CapacityLimiter
    #: How readiness shows here; learned from the first gateway that answers.
    kind: Kind = field(default=Kind.UNKNOWN)
    #: Is called where the lease turns out to be another server's.
    doubt: Callable[[], None] = field(default=lambda: None)
    #: Is called once something lies in the trash.
    empty_trash: Callable[[], None] = field(default=lambda: None)
    #: The server goes down and takes its bots along.
    is_stopping: bool = False
    #: Grace that replaces every other while the server goes down.
    last_grace: float | None = None

    @property
    def homes(self) -> Path:
        return self.base_path / "bots"

    def home(self, agent_id: str) -> Path:
        return self.homes / agent_id

    def bound(self, bot_id: UUID) -> dict[str, str]:
        return {"bot_id": str(bot_id)}
