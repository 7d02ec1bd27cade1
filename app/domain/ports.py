"""What services need from rooms above or beside them; `main` hands the implementations in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

#: Where, among a socket's ASGI extensions, the server puts what ends the connection at once, unsent words and all.
ABORT = "clawnet.abort"


class Wake(Protocol):
    """The supervisor's bell: somebody wrote a wish for this bot."""

    def __call__(self, bot_id: UUID) -> None: ...


class RefusedOverrides(Protocol):
    """Which of an owner's `configOverrides` are refused: pairs of a path and the reason."""

    def __call__(self, overrides: dict[str, Any]) -> list[tuple[str, str]]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a bot said, and the model that said it."""

    text: str
    model: str | None


class GatewayChat(Protocol):
    """Speaks to a running gateway. Raises `GatewayFailed` with a sentence for people."""

    async def __call__(self, port: int, token: str, agent_id: str, text: str, user: str, timeout: float) -> Answer: ...


class IsHere(Protocol):
    """Whether the bot's process, if it has one, runs on this machine and can be spoken to."""

    async def __call__(self, bot_id: UUID) -> bool: ...


class WakeRooms(Protocol):
    """Tells this process's listeners that these rooms have news."""

    def __call__(self, names: Iterable[str]) -> None: ...
