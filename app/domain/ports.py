"""What services need from rooms above or beside them; `main` hands the implementations in."""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from app.domain.states import ChannelLoginState

#: Where, among a socket's ASGI extensions, the server puts what ends the connection at once, unsent words and all.
ABORT = "clawnet.abort"


class Wake(Protocol):
    """The supervisor's bell: somebody wrote a wish for this bot."""

    def __call__(self, bot_id: UUID) -> None: ...


class RefusedOverrides(Protocol):
    """Which of an owner's `configOverrides` are refused: pairs of a path and the reason."""

    def __call__(self, overrides: dict[str, Any]) -> list[tuple[str, str]]: ...


class OverridesTried(Protocol):
    """What the installed OpenClaw itself would refuse of `configOverrides` that `RefusedOverrides` lets pass."""

    async def __call__(self, who: UUID, overrides: dict[str, Any], agent_id: str | None) -> list[tuple[list[str], str]]:
        """Pairs of a path into the overrides and the reason; none where it cannot be asked, or gives no answer.

        Args:
            who: Asks; one person's questions wait for each other.
            agent_id: Of the bot whose plugins count; None for one that is yet to be made.

        Raises:
            RateLimited: Too many wait to be asked.
        """
        ...


class ModelsTried(Protocol):
    """What the installed OpenClaw would refuse of a model provider's `models`."""

    async def __call__(self, who: UUID, models: list[Any]) -> list[tuple[list[str], str]]:
        """Pairs of a path into the models and the reason; otherwise as `OverridesTried` answers."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a bot said, and the model that said it."""

    text: str
    model: str | None


class GatewayChat(Protocol):
    """Speaks to a running gateway. Raises `GatewayFailed` with a sentence for people."""

    async def __call__(self, port: int, token: str, agent_id: str, text: str, user: str, timeout: float) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Running:
    """A gateway that runs on this machine, and what it is spoken to with."""

    agent_id: str
    nonce: str
    port: int
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Asking:
    """Somebody who wrote to a bot and waits to be let in. What is known of them is what they say of themselves."""

    code: str
    peer: Mapping[str, Any]
    requested_at: datetime


class GatewayPairings(Protocol):
    """Who waits at a running gateway's channels. Raises `GatewayFailed` with a sentence for people."""

    async def waiting(self, gateway: Running, provider: str, account_id: str) -> Sequence[Asking] | None:
        """The longest waiting first; None where this version does not say."""
        ...

    async def resolve(self, gateway: Running, provider: str, account_id: str, code: str, *, is_let_in: bool) -> None:
        """Raises `NotFound` for a code nobody waits with."""
        ...


@dataclass(frozen=True, slots=True)
class LoginStep:
    """How far the linking of a channel has come. Whoever scans the code links an account, so it is a secret."""

    state: ChannelLoginState
    #: A picture, as a `data:image/png;base64,` URL.
    code: str | None = field(default=None, repr=False)
    #: None where nobody knows.
    code_ends_at: datetime | None = None


class GatewayLogins(Protocol):
    """Links a channel of a running gateway to an account by a code that a person scans."""

    def follow(self, gateway: Running, provider: str, account_id: str) -> AsyncGenerator[LoginStep]:
        """Up to LINKED, which comes alone where it was so before. Raises `GatewayFailed` with a sentence for people."""
        ...


class IsHere(Protocol):
    """Whether the bot's process, if it has one, runs on this machine and can be spoken to."""

    async def __call__(self, bot_id: UUID) -> bool: ...


class WakeRooms(Protocol):
    """Tells this process's listeners that these rooms have news."""

    def __call__(self, names: Iterable[str]) -> None: ...


class ChannelProvider(Protocol):
    """A kind of channel that the installed OpenClaw can open."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str:
        """Name shown to people."""
        ...

    @property
    def credential_schema(self) -> dict[str, Any]:
        """JSON Schema of its secrets."""
        ...

    @property
    def settings_schema(self) -> dict[str, Any]:
        """JSON Schema of its other settings."""
        ...

    @property
    def pairs_by_qr(self) -> bool:
        """It is linked to an account by a code that a person scans."""
        ...

    @property
    def login_unavailable(self) -> str | None:
        """Why such a code cannot be had from here; None where it can, or where none is needed."""
        ...

    @property
    def exclusive(self) -> str | None:
        """Name of the secret that one process alone may use at a time."""
        ...


class ChannelRules(Protocol):
    """What the installed OpenClaw knows of channels."""

    def catalogue(self) -> Mapping[str, ChannelProvider]:
        """What it can open, by name."""
        ...

    def refused(
        self, provider: ChannelProvider, settings: Mapping[str, Any], credentials: Mapping[str, str]
    ) -> list[tuple[list[str], str]]:
        """What is refused by its shape: pairs of a path and the reason, which holds no secret."""
        ...

    def missing(
        self, provider: ChannelProvider, settings: Mapping[str, Any], credentials: Iterable[str]
    ) -> list[tuple[list[str], str]]:
        """What a channel lacks to be opened, by the names of its secrets: as `refused` says it."""
        ...

    def led_elsewhere(self, old: Mapping[str, Any], new: Mapping[str, Any], secrets: Iterable[str]) -> str | None:
        """The setting by which a change sends one of these secrets, by name, to another place; None where none does."""
        ...

    def account_refused(self, provider: ChannelProvider, account_id: str) -> str | None:
        """Why the provider cannot have an account of this name; None where it can."""
        ...
