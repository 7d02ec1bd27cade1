"""Saying something to a running gateway, through its OpenAI-compatible endpoint, and hearing what it answers."""

import json
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread
import httpx

from app.domain.errors import GatewayFailed
from app.domain.ports import Answer
from app.gateway import config, lastturn

#: Longest reason of the gateway's that is passed on, in characters.
MAX_REASON = 500
#: Characters of a reason that are looked at, so that no secret in the part that is passed on is cut.
MAX_READ = 16 * 1024
#: Largest answer that is read, in bytes.
MAX_BODY = 4 * 1024 * 1024


class Chat:
    """Speaks to any number of gateways on this machine.

    Args:
        homes: The folder with the bots' homes, by agentId.
    """

    def __init__(self, homes: Path) -> None:
        self._homes = homes
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def __call__(self, port: int, token: str, agent_id: str, text: str, user: str, timeout: float) -> Answer:
        """The bot's answer. Raises `GatewayFailed` with a sentence for people, the token never in it."""
        try:
            # One deadline for the whole answer: httpx's own is for each read, and a bot could feed it for ever.
            with anyio.fail_after(timeout):
                status, body = await self._post(port, token, agent_id, text, user)
        except TimeoutError as error:
            raise GatewayFailed(f"the bot did not answer within {timeout:g} s") from error
        except httpx.HTTPError as error:
            raise GatewayFailed(f"the bot's gateway does not answer ({type(error).__name__})") from error
        home = self._homes / agent_id
        answer = await anyio.to_thread.run_sync(_answer, status, _object(body), home)
        key = f"agent:{agent_id}:openai-user:{user}"
        failed = await anyio.to_thread.run_sync(lastturn.failure, home, agent_id, key, answer.text)
        if failed is not None:
            said = await anyio.to_thread.run_sync(_said, home, failed)
            raise GatewayFailed(f"the bot's model failed{said}")
        return answer

    async def _post(self, port: int, token: str, agent_id: str, text: str, user: str) -> tuple[int, bytes]:
        request = self._client.stream(
            "POST",
            f"http://127.0.0.1:{port}/v1/chat/completions",
            json={"model": "openclaw", "user": user, "messages": [{"role": "user", "content": text}]},
            headers={
                "authorization": f"Bearer {token}",
                # Without the agent's name the old version speaks as `main`, whichever is the default.
                "x-openclaw-agent-id": agent_id,
                # What is read is what counts against the limit.
                "accept-encoding": "identity",
            },
            timeout=httpx.Timeout(None, connect=5.0),
        )
        body = bytearray()
        async with request as response:
            async for part in response.aiter_raw():
                body += part
                if len(body) > MAX_BODY:
                    raise GatewayFailed(f"the bot's answer is longer than {MAX_BODY // 1024 // 1024} MiB")
        return response.status_code, bytes(body)


def _answer(status: int, body: dict[str, Any], home: Path) -> Answer:
    if status != 200:
        error = body.get("error")
        reason = cast("dict[str, Any]", error).get("message") if isinstance(error, dict) else error
        said = _said(home, reason) if isinstance(reason, str) else ""
        raise GatewayFailed(f"the bot's gateway answered with status {status}{said}")
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as error:
        raise GatewayFailed("the bot's gateway answered in a form that is not understood") from error
    if not isinstance(text, str) or not text.strip():
        raise GatewayFailed("the bot answered nothing; its model failed, or refused")
    model = body.get("model")
    return Answer(text, model if isinstance(model, str) else None)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value: object = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _said(home: Path, reason: str) -> str:
    """A reason as the end of a sentence of ours, without the bot's secrets: it may quote the key that was refused."""
    line = _line(" ".join(config.without_secrets(home, (reason[:MAX_READ],))))
    return f": {line}" if line else ""


def _line(text: str) -> str:
    return "".join(filter(str.isprintable, " ".join(text.split())))[:MAX_REASON]
