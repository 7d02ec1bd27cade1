"""Asking a running gateway over its WebSocket: one connection, one question after the other, and what it tells unasked.

Everything that comes back was written by a bot, so frames and queues are bounded. Its reasons may quote any secret it
was configured with, so no sentence of ours repeats them: a code is all that is passed on. What a method answers may
hold secrets as well (old OpenClaw's `config.get` does): never log it.
"""

import json
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, WebSocketException

from app import __version__
from app.domain.errors import GatewayFailed

#: Seconds until the gateway has said hello, and until it has answered a question.
HELLO_TIMEOUT, CALL_TIMEOUT = 10.0, 15.0
#: Largest frame that is read, in bytes (new OpenClaw's `config.schema` is 2.4 MB); unread frames that wait.
MAX_FRAME, MAX_UNREAD = 4 * 1024 * 1024, 8
#: Events that are kept for who asks for them; the oldest go first.
MAX_EVENTS = 256
#: Codes of OpenClaw's errors; what looks otherwise is not passed on.
_CODE = re.compile(r"[A-Z]{2,20}(?:_[A-Z]{2,20}){0,3}", re.ASCII)
#: Protocols that are spoken: 3 is old OpenClaw's, 4 the new one's.
PROTOCOLS = (3, 4)

#: The library would write frames, and with them the token, where the log's level is DEBUG.
_SILENT = logging.Logger("app.gateway.rpc", logging.CRITICAL)
_SILENT.disabled = True


@dataclass(frozen=True, slots=True)
class Event:
    """Something the gateway told unasked."""

    name: str
    payload: dict[str, Any]


class Connection:
    """A gateway that has said hello. One task at a time uses it."""

    def __init__(self, socket: ClientConnection, token: str) -> None:
        self._socket = socket
        self._token = token
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self.protocol = 0
        self.version: str | None = None
        self.methods: frozenset[str] = frozenset()
        self.event_names: frozenset[str] = frozenset()
        #: Events that nobody took before newer ones needed their place.
        self.dropped = 0

    async def call(
        self, method: str, params: dict[str, Any] | None = None, timeout: float = CALL_TIMEOUT
    ) -> dict[str, Any]:
        """What the gateway answers. Raises `GatewayFailed`, also where this version does not know the method."""
        if method not in self.methods:
            raise GatewayFailed(f"this version of OpenClaw does not offer {method}")
        return await self._ask(method, params or {}, timeout)

    async def events(self) -> AsyncIterator[Event]:
        """What the gateway tells, beginning with what came in between two questions. Raises `GatewayFailed`."""
        while True:
            while self._events:
                yield self._events.popleft()
            with self._in_words("the bot's gateway", None):
                self._keep(await self._read())

    async def shake_hands(self, is_own: Callable[[], Awaitable[bool]], timeout: float) -> None:
        """Waits for the challenge, and shows the token to a gateway that is the bot's own."""
        with self._in_words("the bot's gateway", timeout), anyio.fail_after(timeout):
            while (await self._read()).get("event") != "connect.challenge":
                pass
            if not await is_own():
                raise GatewayFailed("the bot's port belongs to another program, so nothing was said to it")
        self._welcome(await self._ask("connect", _introduction(self._token), timeout))

    def _welcome(self, hello: dict[str, Any]) -> None:
        features = _object(hello.get("features"))
        protocol = hello.get("protocol")
        if hello.get("type") != "hello-ok" or protocol not in PROTOCOLS:
            raise GatewayFailed("the bot's gateway greets in a form that is not understood")
        version = _object(hello.get("server")).get("version")
        self.protocol = protocol
        self.version = version if isinstance(version, str) and version != "dev" else None
        self.methods = _names(features.get("methods"))
        self.event_names = _names(features.get("events"))

    async def _ask(self, method: str, params: dict[str, Any], timeout: float) -> dict[str, Any]:
        asked = str(uuid4())
        with self._in_words(method, timeout), anyio.fail_after(timeout):
            await self._socket.send(json.dumps({"type": "req", "id": asked, "method": method, "params": params}))
            while True:
                frame = await self._read()
                if frame.get("type") == "res" and frame.get("id") == asked:
                    return self._payload(method, frame)
                self._keep(frame)

    def _payload(self, method: str, frame: dict[str, Any]) -> dict[str, Any]:
        if frame.get("ok") is not True:
            code = _object(frame.get("error")).get("code")
            said = f" ({code})" if isinstance(code, str) and _CODE.fullmatch(code) else ""
            raise GatewayFailed(f"the bot's gateway refused {method}{said}")
        return _object(frame.get("payload"))

    def _keep(self, frame: dict[str, Any]) -> None:
        name = frame.get("event")
        if frame.get("type") != "event" or not isinstance(name, str):
            return
        self.dropped += len(self._events) == MAX_EVENTS
        self._events.append(Event(name, _object(frame.get("payload"))))

    async def _read(self) -> dict[str, Any]:
        text = await self._socket.recv()
        try:
            return _object(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise GatewayFailed("the bot's gateway speaks in a form that is not understood") from error

    @contextmanager
    def _in_words(self, what: str, timeout: float | None) -> Generator[None]:
        """Whatever goes wrong on the wire, as one sentence; the library's own texts stay here."""
        try:
            yield
        except TimeoutError as error:
            raise GatewayFailed(f"{what} did not answer within {timeout:g} s") from error
        except ConnectionClosed as error:
            code = f" ({error.rcvd.code})" if error.rcvd else ""
            raise GatewayFailed(f"the bot's gateway closed the connection{code}") from None
        except (OSError, WebSocketException) as error:
            raise GatewayFailed(f"the bot's gateway does not answer ({type(error).__name__})") from None


@asynccontextmanager
async def connect(
    port: int, token: str, is_own: Callable[[], Awaitable[bool]], timeout: float = HELLO_TIMEOUT
) -> AsyncGenerator[Connection]:
    """A connection to the gateway on this port of 127.0.0.1, as an operator.

    Args:
        is_own: Whether the port is the bot's own (`process.owns_port`): before that is true the token is not shown.

    Raises:
        GatewayFailed: It does not answer, is not the bot's, or does not know the token.
    """
    opening = open_socket(
        f"ws://127.0.0.1:{port}/",
        proxy=None,
        compression=None,
        open_timeout=timeout,
        ping_interval=None,
        close_timeout=1.0,
        max_size=MAX_FRAME,
        max_queue=MAX_UNREAD,
        logger=_SILENT,
    )
    try:
        socket = await opening
    except (OSError, TimeoutError, WebSocketException) as error:
        raise GatewayFailed(f"the bot's gateway does not answer ({type(error).__name__})") from None
    try:
        connection = Connection(socket, token)
        await connection.shake_hands(is_own, timeout)
        yield connection
    finally:
        with anyio.CancelScope(shield=True):
            await socket.close()


def _introduction(token: str) -> dict[str, Any]:
    return {
        "minProtocol": PROTOCOLS[0],
        "maxProtocol": PROTOCOLS[-1],
        "client": {
            "id": "gateway-client",
            "version": __version__,
            "platform": "linux",
            "mode": "backend",
            "displayName": "clawnet",
        },
        "role": "operator",
        "scopes": ["operator.read", "operator.write", "operator.admin"],
        "caps": ["tool-events"],
        "auth": {"token": token},
    }


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _names(value: object) -> frozenset[str]:
    listed = cast("list[object]", value) if isinstance(value, list) else []
    return frozenset(each for each in listed if isinstance(each, str))
