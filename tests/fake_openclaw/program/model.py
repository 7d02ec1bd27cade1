"""The model provider of the bot's config, asked as an OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from .errors import Planned

if TYPE_CHECKING:
    from .config import Config

#: Seconds a model may think.
TIMEOUT_S = 120


def tool(name: str, *arguments: str) -> dict:
    parameters = {"type": "object", "properties": {argument: {"type": "string"} for argument in arguments}}
    return {"type": "function", "function": {"name": name, "parameters": parameters | {"required": list(arguments)}}}


TOOLS = [tool("read", "path"), tool("write", "path", "content"), tool("exec", "command")]


class Unreachable(Planned):
    """Nobody listens at the provider's address, or there is none."""


class Failed(Planned):
    """The provider answered with an error."""


class Model:
    """What an agent talks with: `provider/id`."""

    def __init__(self, config: Config, agent_id: str) -> None:
        named = config.agent(agent_id).get("model") or config.get("agents.defaults.model", "")
        named = named.get("primary", "") if isinstance(named, dict) else named
        self.provider, _, self.id = named.partition("/")
        settings = config.get("models.providers", {}).get(self.provider, {})
        self.url, self.key = settings.get("baseUrl", ""), settings.get("apiKey", "")
        self.api = settings.get("api", "openai-completions")
        self._sock: socket.socket | None = None
        self._cancelled = False

    def ask(self, messages: list[dict]) -> dict:
        """One completion. Raises: Unreachable, Failed; OSError when `cancel` was called meanwhile."""
        import http.client
        from urllib.parse import urlsplit

        url = urlsplit(self.url)
        if not url.hostname:
            raise Unreachable
        kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
        connection = kind(url.hostname, url.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            try:
                connection.connect()
            except OSError as error:
                raise Unreachable from error
            self._sock = connection.sock
            if self._cancelled:
                raise ConnectionAbortedError
            body = {"model": self.id, "messages": messages, "tools": TOOLS, "stream": False}
            headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
            try:
                path = f"{url.path.rstrip('/')}/chat/completions"
                connection.request("POST", path, json.dumps(body).encode(), headers)
                response = connection.getresponse()
                data = response.read()
            except http.client.HTTPException as error:
                raise Failed(f"502 {error!r}") from error
            return understood(response.status, data)

    def cancel(self) -> None:
        """End an `ask` in progress, and every later one."""
        self._cancelled = True
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)


def understood(status: int, data: bytes) -> dict:
    try:
        answer: Any = json.loads(data)
    except ValueError:
        answer = {}
    if status >= 300:
        error = answer.get("error")
        raise Failed(f"{status} {error.get('message', '') if isinstance(error, dict) else error}".strip())
    if not answer.get("choices"):
        raise Failed(f"{status} no choices in the model's answer")
    return answer
