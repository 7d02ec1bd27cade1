"""The WebSocket's methods, from the handshake on."""

from __future__ import annotations

import socket
import time
from threading import Timer
from typing import TYPE_CHECKING, Any

from . import config, ids
from .clients import Client
from .errors import Planned
from .login import PARAMS
from .model import Model
from .pairing import NobodyWaits
from .runs import Run
from .sessions import text_of
from .websocket import Closed

if TYPE_CHECKING:
    from .gateway import Gateway
    from .websocket import WebSocket

#: A socket that has not said `connect` by then is closed.
HANDSHAKE_S = 10
EVENTS = {
    "old": ["connect.challenge", "agent", "chat", "presence", "tick", "shutdown", "health", "heartbeat", "cron"],
    "new": ["connect.challenge", "agent", "chat", "session.message", "sessions.changed", "presence", "tick",
            "shutdown", "health", "heartbeat", "cron", "config.changed"],
}  # fmt: skip
POLICY = {"old": {"maxPayload": 524288, "maxBufferedBytes": 1572864, "tickIntervalMs": 30000},
          "new": {"maxPayload": 26214400, "maxBufferedBytes": 52428800, "tickIntervalMs": 30000}}  # fmt: skip


class BadRequest(Planned):
    """The client asked for what there is not; code and message go back to it."""

    def __init__(self, message: str, code: str = "INVALID_REQUEST") -> None:
        super().__init__(message)
        self.code = code


class Rpc:
    """Serves one gateway's sockets; a method `chat.send` is the function `chat_send`."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._era = "new" if gateway.era.is_new else "old"
        self._methods = {
            "health": self.health, "status": self.status, "channels.status": self.channels_status,
            "channels.logout": self.channels_logout, "config.get": self.config_get, "models.list": self.models_list,
            "agents.list": self.agents_list, "sessions.list": self.sessions_list, "chat.send": self.chat_send,
            "sessions.preview": self.sessions_preview, "sessions.reset": self.sessions_reset,
            "sessions.delete": self.sessions_delete, "chat.history": self.chat_history, "chat.abort": self.chat_abort,
            "web.login.start": self.login_start, "web.login.wait": self.login_wait,
        }  # fmt: skip
        if gateway.era.subscribes:
            self._methods |= {
                "sessions.subscribe": self.sessions_subscribe, "channels.start": self.channels_start,
                "sessions.messages.subscribe": self.messages_subscribe, "channels.stop": self.channels_stop,
                "sessions.messages.unsubscribe": self.messages_unsubscribe,
                "channels.pairing.list": self.pairing_list, "channels.pairing.approve": self.pairing_approve,
                "channels.pairing.dismiss": self.pairing_dismiss,
            }  # fmt: skip

    def serve(self, sock: WebSocket) -> None:
        client = Client(sock)
        challenge = {"nonce": ids.uuid4(), "ts": ids.now_ms()}
        overdue = Timer(HANDSHAKE_S, sock.close, (1008, "handshake timeout"))
        overdue.daemon = True
        overdue.start()
        try:
            sock.send({"type": "event", "event": "connect.challenge", "payload": challenge})
            if self._connect(client, sock.receive()):
                overdue.cancel()
                while True:
                    self._answer(client, sock.receive())
        except Closed:
            pass
        except (ValueError, AttributeError, TypeError):
            sock.close(1008, "invalid request frame")
        finally:
            overdue.cancel()
            self._gateway.clients.remove(client)

    def _connect(self, client: Client, request: dict) -> bool:
        params = request.get("params") or {}
        if request.get("type") != "req" or request.get("method") != "connect":
            client.socket.close(1008, "invalid handshake: first request must be connect")
            return False
        protocol = self._gateway.era.protocol
        if not params.get("minProtocol", 0) <= protocol <= params.get("maxProtocol", 0):
            self._refuse(client, request, "protocol mismatch", 1002)
            return False
        if (params.get("auth") or {}).get("token") != self._gateway.token:
            self._refuse(client, request, "unauthorized: gateway token mismatch (provide gateway auth token)", 1008)
            return False
        client.socket.send({"type": "res", "id": request["id"], "ok": True, "payload": self._hello(params)})
        self._gateway.clients.add(client)
        return True

    def _refuse(self, client: Client, request: dict, why: str, code: int) -> None:
        error = {"code": "INVALID_REQUEST", "message": why}
        client.socket.send({"type": "res", "id": request.get("id"), "ok": False, "error": error})
        client.socket.close(code, why)

    def _hello(self, params: dict) -> dict:
        gateway, new = self._gateway, self._era == "new"
        server = {"version": gateway.era.version if new else "dev", "connId": ids.uuid4()}
        server |= {"bootId": gateway.boot_id} if new else {"host": socket.gethostname()}
        hello = {
            "type": "hello-ok", "protocol": gateway.era.protocol, "server": server,
            "features": {"methods": self._named(), "events": EVENTS[self._era]},
            "snapshot": {"presence": [], "health": {"ok": True}, "uptimeMs": gateway.uptime_ms},
            "policy": POLICY[self._era],
        }  # fmt: skip
        if new:
            scopes = params.get("scopes", [])
            hello["auth"] = {"method": "token", "role": params.get("role", "operator"), "scopes": scopes}
        return hello

    def _named(self) -> list[str]:
        """What a channel brings is named where that is there."""
        has_whatsapp = "whatsapp" in self._gateway.channels.names()
        return [name for name in self._methods if has_whatsapp or not name.startswith("web.")]

    def _answer(self, client: Client, request: dict) -> None:
        began, method, answer_id = time.monotonic(), request.get("method"), request.get("id")
        self._gateway.wait_while_hung()
        try:
            if method not in self._methods:
                raise BadRequest(f"unknown method: {method}")
            payload = self._methods[method](client, request.get("params") or {})
            run = payload.pop("run", None)
            client.socket.send({"type": "res", "id": answer_id, "ok": True, "payload": payload})
            if run is not None:  # its first event comes after the answer
                self._gateway.runs.begin(run)
        except KeyError as error:
            self._fail(client, answer_id, BadRequest(f"invalid {method} params: must have required property {error}"))
        except BadRequest as error:
            self._fail(client, answer_id, error)
        if self._era == "new" and method != "health":
            took = round((time.monotonic() - began) * 1000)
            self._gateway.output.log("ws", f"⇄ res ✓ {method} {took}ms id={str(answer_id)[:8]}")

    def _fail(self, client: Client, answer_id: str | None, error: BadRequest) -> None:
        told = {"code": error.code, "message": f"{error}{self._gateway.gossip()}"}
        client.socket.send({"type": "res", "id": answer_id, "ok": False, "error": told})

    def health(self, client: Client, params: dict) -> dict:
        status = self._gateway.channels.status()
        sessions = [{"key": session.key, "updatedAt": session.updated_at} for session in self._gateway.sessions.all()]
        return {
            "ok": True, "ts": ids.now_ms(), "durationMs": 1, "channels": status["channels"],
            "channelOrder": status["channelOrder"], "defaultAgentId": self._gateway.config.agent_id,
            "sessions": {"count": len(sessions), "recent": sessions[:5]},
        }  # fmt: skip

    def status(self, client: Client, params: dict) -> dict:
        sessions = self.health(client, params)["sessions"]
        return {"heartbeat": {"defaultAgentId": self._gateway.config.agent_id}, "sessions": sessions}

    def channels_status(self, client: Client, params: dict) -> dict:
        return self._gateway.channels.status(params.get("probe") is True)

    def channels_start(self, client: Client, params: dict) -> dict:
        self._gateway.channels.asked += 1
        if self._gateway.channels.asked <= self._gateway.faults.channel_starts_fail:
            if self._gateway.channels.asked % 2:
                raise BadRequest("the account is busy", "UNAVAILABLE")
            outcome = {"status": "retry", "reason": "the account is busy"}
            return {"channel": params["channel"], "started": False, "outcome": outcome}
        self._gateway.channels.started.add(params["channel"])
        self._gateway.channels.stopped.discard(params["channel"])
        return {"channel": params["channel"], "started": True}

    def channels_stop(self, client: Client, params: dict) -> dict:
        self._gateway.channels.stopped.add(params["channel"])
        return {"channel": params["channel"], "stopped": True}

    def channels_logout(self, client: Client, params: dict) -> dict:
        if params["channel"] == "whatsapp":
            self._gateway.logins.forget()
        return self.channels_stop(client, params)

    def login_start(self, client: Client, params: dict) -> dict:
        self._check_login("start", params)
        if self._era == "old":  # It does so first of all, whoever is linked.
            self._gateway.channels.stopped.add("whatsapp")
        return self._gateway.logins.start()

    def login_wait(self, client: Client, params: dict) -> dict:
        self._check_login("wait", params)
        answer = self._gateway.logins.wait(params.get("timeoutMs", 120_000) / 1000, params.get("currentQrDataUrl"))
        if answer["connected"]:
            self._gateway.channels.stopped.discard("whatsapp")
        return answer

    def _check_login(self, method: str, params: dict) -> None:
        if unknown := params.keys() - PARAMS[self._era][method]:
            why = f"invalid web.login.{method} params: at root: unexpected property {min(unknown)!r}"
            raise BadRequest(why)
        name = params.get("channel", "whatsapp")
        if name != "whatsapp" or name not in self._gateway.channels.names():
            raise BadRequest("web login provider is not available")

    def pairing_list(self, client: Client, params: dict) -> dict:
        requests = self._gateway.pairings.list(params.get("channel"), params.get("accountId"))
        return {"accounts": [], "requests": requests, "limits": {"pendingPerAccount": 3, "ttlMs": 3600000}}

    def pairing_approve(self, client: Client, params: dict) -> dict:
        return self._resolve_pairing(params, let_in=True) | {"notification": "not-requested"}

    def pairing_dismiss(self, client: Client, params: dict) -> dict:
        return self._resolve_pairing(params, let_in=False)

    def _resolve_pairing(self, params: dict, let_in: bool) -> dict:
        try:
            return self._gateway.pairings.resolve(params["channel"], params["accountId"], params["requestId"], let_in)
        except NobodyWaits as error:
            raise BadRequest(str(error)) from error

    def config_get(self, client: Client, params: dict) -> dict:
        kept, new = self._gateway.config, self._gateway.era.dialect == "new"
        data = config.redact(kept.data) if new else kept.data
        return {
            "path": str(self._gateway.config_path), "exists": True, "valid": True, "parsed": data, "config": data,
            "hash": kept.hash, "issues": [], "warnings": [{"path": p, "message": m} for p, m in kept.warnings],
        }  # fmt: skip

    def models_list(self, client: Client, params: dict) -> dict:
        providers = self._gateway.config.get("models.providers", {})
        return {"models": [model | {"provider": name} for name, provider in providers.items()
                           for model in provider["models"]]}  # fmt: skip

    def agents_list(self, client: Client, params: dict) -> dict:
        named = self._gateway.config.agent_id
        name = self._gateway.config.agent(named).get("name", named)
        return {"defaultId": named, "mainKey": "main", "scope": "per-sender", "agents": [{"id": named, "name": name}]}

    def sessions_list(self, client: Client, params: dict) -> dict:
        listed = self._gateway.sessions.all()
        model = Model(self._gateway.config, self._gateway.config.agent_id)
        return {
            "ts": ids.now_ms(), "path": "(multiple)", "count": len(listed),
            "defaults": {"modelProvider": model.provider, "model": model.id, "contextTokens": 128000},
            "sessions": [described(session) for session in listed[: params.get("limit", 100)]],
        }  # fmt: skip

    def sessions_preview(self, client: Client, params: dict) -> dict:
        previews = []
        for key in params["keys"]:
            session = self._gateway.sessions.find(key)
            said = session.messages[-params.get("limit", 12) :] if session else []
            items = [{"role": message["role"], "text": text_of(message)} for message in said]
            previews.append({"key": key, "status": "ok" if session else "missing", "items": items})
        return {"ts": ids.now_ms(), "previews": previews}

    def sessions_reset(self, client: Client, params: dict) -> dict:
        session = self._gateway.sessions.open(params["key"])
        self._gateway.runs.abort(session.key, None)
        self._gateway.sessions.reset(session)
        entry = {"sessionId": session.id, "updatedAt": session.updated_at, "systemSent": False}
        return {"ok": True, "key": session.key, "entry": entry}

    def sessions_delete(self, client: Client, params: dict) -> dict:
        if session := self._gateway.sessions.find(params["key"]):
            self._gateway.sessions.delete(session)
        return {"ok": True, "key": params["key"], "deleted": session is not None}

    def sessions_subscribe(self, client: Client, params: dict) -> dict:
        client.subscribed = True
        return {"subscribed": True}

    def messages_subscribe(self, client: Client, params: dict) -> dict:
        client.follows.add(params["key"])
        return {"subscribed": True, "key": params["key"]}

    def messages_unsubscribe(self, client: Client, params: dict) -> dict:
        client.follows.discard(params["key"])
        return {"subscribed": False, "key": params["key"]}

    def chat_send(self, client: Client, params: dict) -> Any:
        key, text = params["sessionKey"], params["message"]
        run_id = params["idempotencyKey"]
        key = key if key.startswith("agent:") else f"agent:{self._gateway.config.agent_id}:{key}"
        origin = {"provider": "webchat", "label": "clawnet", "chatType": "direct"}
        session = self._gateway.sessions.open(key, origin)
        told = text
        if self._gateway.era.dialect == "old":
            stamp = time.strftime("%a %Y-%m-%d %H:%M UTC", time.gmtime())
            told = f"[{stamp}] {' '.join(text.splitlines())}\n[message_id: {run_id}]"
        run = Run(session, text, "rpc", run_id, told)
        return {"runId": run_id, "status": "started", "run": run}

    def chat_history(self, client: Client, params: dict) -> dict:
        session = self._gateway.sessions.find(params["sessionKey"])
        messages = session.messages[-params.get("limit", 200) :] if session else []
        session_id = session.id if session else None
        return {"sessionKey": params["sessionKey"], "sessionId": session_id, "messages": messages}

    def chat_abort(self, client: Client, params: dict) -> dict:
        ended = self._gateway.runs.abort(params["sessionKey"], params.get("runId"))
        return {"ok": True, "aborted": bool(ended), "runIds": ended}


def described(session) -> dict:
    origin = session.origin
    return {
        "key": session.key, "kind": session.chat_type, "chatType": session.chat_type, "sessionId": session.id,
        "displayName": origin.get("displayName"), "channel": origin.get("channel"), "subject": origin.get("subject"),
        "origin": origin, "updatedAt": session.updated_at, "systemSent": True, "status": session.status,
        "abortedLastRun": session.status == "killed", "model": session.model, "modelProvider": session.provider,
        "inputTokens": session.tokens["input"], "outputTokens": session.tokens["output"],
        "totalTokens": session.tokens["input"], "contextTokens": 128000,
    }  # fmt: skip
