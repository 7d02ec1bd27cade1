"""The HTTP server around a running ClawNet: signals, drain, deadlines."""

import contextlib
import signal
import socket
from collections.abc import Generator
from types import FrameType

import uvicorn

from app.http.front import Front
from app.main import Running
from app.settings import Settings
from app.sockets import SocketProtocol

#: Seconds open requests have to finish when the server stops.
DRAIN = 5
#: Largest frame of a socket, in bytes; messages waiting to be read; seconds between pings and for the answer.
WS_MAX_SIZE, WS_MAX_QUEUE, WS_PING_INTERVAL, WS_PING_TIMEOUT = 64 * 1024, 8, 15.0, 10.0


class Server(uvicorn.Server):
    """Uvicorn with our signals: the first stops in order, the second ends the bots at once.

    It listens from the first moment, so that health can be asked while everything behind it still starts.
    """

    def __init__(self, front: Front, settings: Settings) -> None:
        super().__init__(_config(front, settings))
        self._front = front
        self._running: Running | None = None

    def opens(self, running: Running) -> None:
        """Everything is up: from now on the application answers."""
        self._running, self._front.app = running, running.app

    @property
    def is_open(self) -> bool:
        return self._running is not None

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Uvicorn would raise the signal again at the end, and exit as if it had been killed by it."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        # They stay ours: a second signal comes while the bots stop, when this has long returned.
        yield

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.should_exit:
            self.force_exit = True
            if self._running is not None:
                self._running.supervisor.kill()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes sockets with 1012 first and the rooms a moment later, so that clients resume by cursor."""
        if self._running is not None:
            self._running.drain()
        await super().shutdown(sockets)


def _config(front: Front, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        front,
        host=settings.clawnet_host,
        port=settings.clawnet_port,
        loop="asyncio",
        lifespan="off",
        ws=SocketProtocol,
        ws_max_size=WS_MAX_SIZE,
        ws_max_queue=WS_MAX_QUEUE,
        ws_ping_interval=WS_PING_INTERVAL,
        ws_ping_timeout=WS_PING_TIMEOUT,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=DRAIN,
        # With no proxy named, what the peer says of itself is not even read.
        proxy_headers=bool(settings.clawnet_trusted_proxies),
        forwarded_allow_ips=list(settings.clawnet_trusted_proxies),
        server_header=False,
        access_log=False,
        log_config=None,
    )


def bind(settings: Settings) -> socket.socket:
    """The listening socket. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in settings.clawnet_host else socket.AF_INET
    listener = socket.create_server((settings.clawnet_host, settings.clawnet_port), family=family, backlog=2048)
    listener.setblocking(False)
    # asyncio sets this only for sockets that name their protocol; without it every response waits for an ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
