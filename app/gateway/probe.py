"""Asks a gateway whether it is ready, without telling it anything: no token, no cookie, no proxy in between."""

import json
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, cast

import anyio
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

#: Of an answer's body, which the bot writes, no more is read; in bytes.
BODY_MAX = 4096
#: Of a reason, no more is shown; in characters.
REASON_MAX = 200
#: Of a WebSocket frame, in bytes; the challenge is about 200.
FRAME_MAX = 64 * 1024


class Kind(StrEnum):
    """How an installed version shows that it is ready; learned from its first clear answer."""

    UNKNOWN = "UNKNOWN"
    HTTP = "HTTP"
    WEBSOCKET = "WEBSOCKET"


@dataclass(frozen=True)
class Readiness:
    """What a probe found. Hand `kind` to the next probe of the same version and it asks only once."""

    is_ready: bool
    reason: str
    kind: Kind


class Prober:
    """Probes any number of gateways; serves for readiness and for health alike."""

    def __init__(self) -> None:
        # Each probe opens a connection of its own: one kept alive would say that the old process is fine.
        self._client = httpx.AsyncClient(
            trust_env=False, follow_redirects=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def is_ready(self, port: int, timeout: float = 3.0, kind: Kind = Kind.UNKNOWN) -> Readiness:
        """Whether the gateway on this port of 127.0.0.1 serves. Never raises for what the other side does.

        It does not say whose the port is: see `process.owns_port`.
        """
        with anyio.move_on_after(timeout):
            if kind is not Kind.WEBSOCKET:
                found = await self._ask_http(port)
                if found.kind is not Kind.WEBSOCKET:
                    return found
            return await _shake_hands(port)
        return Readiness(False, f"no answer within {timeout:g} s", kind)

    async def _ask_http(self, port: int) -> Readiness:
        try:
            # The one deadline is the caller's: httpx's are per read, and a byte a second would renew them for ever.
            async with self._client.stream("GET", f"http://127.0.0.1:{port}/readyz", timeout=None) as response:
                body = await _head(response)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Readiness(False, _one_line(str(error) or type(error).__name__), Kind.UNKNOWN)
        match response.status_code:
            case 200:
                return Readiness(True, "ready", Kind.HTTP)
            case 404:
                return Readiness(False, "no health endpoint", Kind.WEBSOCKET)
            case 503:
                return await self._tell_apart(port, body)
            case status:
                return Readiness(False, f"/readyz answered {status}", Kind.UNKNOWN)

    async def _tell_apart(self, port: int, body: bytes) -> Readiness:
        """New OpenClaw says that it is not ready also while a channel is down, for as long as that lasts.

        A refused token must end no bot. Whether the gateway itself has started is another endpoint's to say.
        """
        failing = _object(body).get("failing")
        named: list[Any] = cast("list[Any]", failing) if isinstance(failing, list) else []
        if named and not any(map(_is_own_trouble, named)) and await self._has_started(port):
            return Readiness(True, _one_line("ready but for " + json.dumps(named)), Kind.HTTP)
        return Readiness(False, _failing(body), Kind.HTTP)

    async def _has_started(self, port: int) -> bool:
        try:
            return (await self._client.head(f"http://127.0.0.1:{port}/startupz", timeout=None)).status_code == 200
        except (httpx.HTTPError, httpx.InvalidURL):
            return False


def _is_own_trouble(name: object) -> bool:
    """It is no channel's: without its databases no gateway can serve."""
    return name == "state-database" or str(name).startswith("agent-database:")


async def _shake_hands(port: int) -> Readiness:
    """Ready is who sends the challenge; we never answer it."""
    url = f"ws://127.0.0.1:{port}/"
    try:
        async with connect(
            url,
            proxy=None,
            open_timeout=None,
            ping_interval=None,
            close_timeout=0.5,
            max_size=FRAME_MAX,
            compression=None,
        ) as socket:
            async for frame in socket:
                if _is_challenge(frame):
                    return Readiness(True, "connect.challenge", Kind.WEBSOCKET)
    except (OSError, WebSocketException) as error:
        return Readiness(False, _one_line(str(error) or type(error).__name__), Kind.WEBSOCKET)
    return Readiness(False, "closed before connect.challenge", Kind.WEBSOCKET)


async def _head(response: httpx.Response) -> bytes:
    body = b""
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) >= BODY_MAX:
            break
    return body[:BODY_MAX]


def _failing(body: bytes) -> str:
    answer = _object(body)
    if "failing" in answer:
        return _one_line("not ready: " + json.dumps(answer["failing"]))
    return _one_line(body.decode("utf-8", "replace")) or "not ready"


def _is_challenge(frame: str | bytes) -> bool:
    return _object(frame).get("event") == "connect.challenge"


def _object(text: str | bytes) -> dict[str, Any]:
    """The JSON object in the text, or an empty one for anything else: it comes from a bot."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _one_line(text: str) -> str:
    return "".join(filter(str.isprintable, " ".join(text.split())))[:REASON_MAX]
