"""What answers on the socket: while the server starts, health alone with what it is doing; then the application."""

import json
import re

from litestar.types import ASGIApp, Receive, Scope, Send

_PATH = re.compile(r"(?<![\w/])/\S+")

#: "Try again later" for a socket that comes too early; its client comes back.
TRY_AGAIN = 1013


class Front:
    """An ASGI application that hands on to the real one, once there is one."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        #: The step the start has come to, in a line for people.
        self.step = "settings"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": TRY_AGAIN, "reason": "the server is starting"})
        elif scope["path"] == "/healthz":
            await _answer(send, 200, {"status": "live"})
        else:
            # Anybody may ask, and where this machine keeps things is nobody's business.
            step = _PATH.sub("…", self.step)
            failing = {"server": f"the server is starting: {step}"}
            await _answer(send, 503, {"ready": False, "failing": failing})


async def _answer(send: Send, status: int, body: dict[str, object]) -> None:
    text = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text, "more_body": False})
