"""POST /v1/chat/completions: one turn over HTTP."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from . import ids
from .runs import Run
from .sessions import text_of
from .voices import words

if TYPE_CHECKING:
    from .gateway import Gateway
    from .http import Request


def serve(gateway: Gateway, request: Request) -> None:
    if request.method != "POST":
        return request.reply(405, "Method Not Allowed")
    if request.bearer != gateway.token:
        return request.reply(401, {"error": {"message": "Unauthorized", "type": "unauthorized"}})
    try:
        body = json.loads(request.body)
        said = next(message for message in reversed(body["messages"]) if message["role"] == "user")
        text = text_of(said)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
        error = {"message": "Missing user message in `messages`.", "type": "invalid_request_error"}
        return request.reply(400, {"error": error})
    agent_id = addressed(gateway, request, body)
    user = body.get("user")
    tail = f"openai-user:{user}" if user else f"openai:{ids.uuid4()}"
    key = request.headers.get("x-openclaw-session-key") or f"agent:{agent_id}:{tail}"
    run = Run(gateway.sessions.open(key), text, "http", f"chatcmpl_{ids.uuid4()}")
    gateway.runs.perform(run)
    if gateway.era.is_new:
        ended = f"[agent] run {run.id} ended with stopReason={'error' if run.error else 'stop'}"
        gateway.output.log("agents/agent-command", ended)
    if run.reply is None or gateway.faults.echo_secrets:
        error = {"message": f"internal error{gateway.gossip()}", "type": "api_error"}
        return request.reply(500, {"error": error})
    return stream(request, run, body) if body.get("stream") else answer(request, run, body)


def addressed(gateway: Gateway, request: Request, body: dict) -> str:
    """The agent a request is for. Old falls to `main`, even when another is the default."""
    _, _, by_model = str(body.get("model", "")).partition(":")
    fallback = gateway.config.agent_id if gateway.era.is_new else "main"
    return request.headers.get("x-openclaw-agent-id") or by_model or fallback


def answer(request: Request, run: Run, body: dict) -> None:
    tokens = run.session.tokens
    usage = {"prompt_tokens": tokens["input"], "completion_tokens": tokens["output"], "total_tokens": tokens["total"]}
    choice = {"index": 0, "message": {"role": "assistant", "content": run.reply}, "finish_reason": "stop"}
    request.reply(200, opening(run, body, "chat.completion") | {"choices": [choice], "usage": usage})


def stream(request: Request, run: Run, body: dict) -> None:
    request.stream()
    head = opening(run, body, "chat.completion.chunk")
    for delta in [{"role": "assistant"}, *({"content": word} for word in words(run.reply or ""))]:
        request.event(json.dumps(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}))
    request.event(json.dumps(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    request.event("[DONE]")


def opening(run: Run, body: dict, kind: str) -> dict:
    return {"id": run.id, "object": kind, "created": ids.now_ms() // 1000, "model": body.get("model", "openclaw")}
