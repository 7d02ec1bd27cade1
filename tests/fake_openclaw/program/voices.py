"""The events a run is told with, in the order each era was recorded to send them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import ids

if TYPE_CHECKING:
    from .clients import Clients
    from .runs import Run


def words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def said(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}], "timestamp": ids.now_ms()}


class OldVoice:
    """agent and chat events to every operator."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def began(self, run: Run) -> None:
        self._agent(run, "lifecycle", {"phase": "start", "startedAt": ids.now_ms()})

    def heard(self, run: Run, event: dict) -> None:
        """Old does not tell of stored messages."""

    def called(self, run: Run, call: dict, result: str) -> None:
        run.seq += 2  # told only to clients that follow tools more closely than ours

    def spoke(self, run: Run, text: str, event: dict) -> None:
        so_far = ""
        for word in words(text):
            so_far += word
            self._agent(run, "assistant", {"text": so_far, "delta": word})
            if so_far == word:
                self._chat(run, "delta", message=said(so_far))

    def failed(self, run: Run, why: str, attempt: int) -> None:
        """Each attempt ends in `end`; the first one also in an empty `final`, long before the run is over."""
        self._agent(run, "lifecycle", {"phase": "end", "endedAt": ids.now_ms()})
        if attempt == 1:
            self._chat(run, "final")

    def gave_up(self, run: Run, why: str) -> None:
        """Nothing more is said."""

    def ended(self, run: Run, text: str) -> None:
        self._agent(run, "lifecycle", {"phase": "end", "endedAt": ids.now_ms()})
        self._chat(run, "final", message=said(text))

    def aborted(self, run: Run) -> None:
        self._agent(run, "lifecycle", {"phase": "end", "endedAt": ids.now_ms()})
        self._chat(run, "aborted")

    def queued(self, run: Run) -> None:
        run.seq += 1
        self._chat(run, "final")

    def _agent(self, run: Run, stream: str, data: dict) -> None:
        run.seq += 1
        payload = {"runId": run.id, "stream": stream, "data": data}
        if run.attempt <= 1:
            payload["sessionKey"] = run.session.key
        self._clients.tell("agent", payload | {"seq": run.seq, "ts": ids.now_ms()})

    def _chat(self, run: Run, state: str, **more) -> None:
        payload = {"runId": run.id, "sessionKey": run.session.key, "seq": run.seq, "state": state}
        self._clients.tell("chat", payload | more)


class NewVoice:
    """agent and chat to who follows the session; session.message and sessions.changed to who subscribed."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def began(self, run: Run) -> None:
        if run.attempt == 1:
            self._status(run, "preparing_workspace")
        self._status(run, "preparing_context")
        if run.attempt > 1:
            self._lifecycle(run, "start", startedAt=ids.now_ms())
            self._status(run, "starting_model")

    def heard(self, run: Run, event: dict) -> None:
        self._message(run, event)
        if event["message"]["role"] != "user":
            return
        self._changed(run, reason="participants")
        self._lifecycle(run, "start", startedAt=ids.now_ms())
        self._status(run, "starting_model")
        self._changed(run, reason="agent.run.started")
        self._changed(run, phase="start", runId=run.id)
        self._lifecycle(run, "model", provider=run.session.provider, model=run.session.model)
        self._changed(run, phase="model", runId=run.id)

    def called(self, run: Run, call: dict, result: str) -> None:
        item = {"itemId": f"tool:{call['id']}", "toolCallId": call["id"], "name": call["name"], "kind": "tool"}
        tool = {"name": call["name"], "toolCallId": call["id"]}
        self._agent(run, "item", item | {"phase": "start", "status": "running"})
        self._agent(run, "tool", tool | {"phase": "start", "args": call["arguments"]})
        content = {"content": [{"type": "text", "text": result}]}
        self._agent(run, "tool", tool | {"phase": "result", "isError": False, "result": content})
        self._agent(run, "item", item | {"phase": "end", "status": "completed"})

    def spoke(self, run: Run, text: str, event: dict) -> None:
        first, *rest = words(text) or [""]
        item = {"itemId": f"{run.id}:1"}
        self._agent(run, "assistant", {"text": first, "delta": first} | item)
        self._chat(run, "delta", deltaText=first, message=said(first))
        if rest:
            self._agent(run, "assistant", {"text": text, "delta": "".join(rest)} | item)
        self._agent(run, "usage", {"outputTokens": event["message"]["usage"]["output"]})
        self._message(run, event)
        if rest:
            self._chat(run, "delta", deltaText="".join(rest), message=said(text))

    def failed(self, run: Run, why: str, attempt: int) -> None:
        self._lifecycle(run, "finishing", stopReason="error", aborted=False, endedAt=ids.now_ms())
        self._chat(run, "status", phase="starting_model")
        self._agent(run, "run_status", {"phase": "retrying"})

    def gave_up(self, run: Run, why: str) -> None:
        self._lifecycle(run, "end", stopReason="error", aborted=False, endedAt=ids.now_ms())
        detail = {"provider": run.session.provider, "model": run.session.model, "failoverReason": "server_error"}
        self._chat(run, "error", errorMessage=why, errorDetail=detail, stopReason="error")
        self._settled(run)

    def ended(self, run: Run, text: str) -> None:
        at = ids.now_ms()
        self._lifecycle(run, "finishing", stopReason="stop", aborted=False, livenessState="working", endedAt=at)
        self._lifecycle(run, "end", stopReason="stop", aborted=False, endedAt=at, executionSettled=True)
        self._chat(run, "final", stopReason="stop", message=said(text))
        self._settled(run)

    def aborted(self, run: Run) -> None:
        self._lifecycle(run, "end", stopReason="aborted", aborted=True, endedAt=ids.now_ms())
        self._chat(run, "aborted", stopReason="aborted")
        self._settled(run)

    def queued(self, run: Run) -> None:
        self._changed(run, reason="send")
        run.seq += 1
        self._chat(run, "final")

    def _settled(self, run: Run) -> None:
        self._changed(run, reason="agent.input.settled")
        self._changed(run, phase="end", runId=run.id)

    def _status(self, run: Run, phase: str) -> None:
        run.seq += 1
        self._chat(run, "status", phase=phase)
        run.seq -= 1
        self._agent(run, "run_status", {"phase": phase})

    def _lifecycle(self, run: Run, phase: str, **data) -> None:
        self._agent(run, "lifecycle", {"phase": phase} | data)

    def _agent(self, run: Run, stream: str, data: dict) -> None:
        run.seq += 1
        payload = {"runId": run.id, "stream": stream, "data": data, "sessionKey": run.session.key}
        payload |= {"sessionId": run.session.id, "agentId": run.session.agent_id, "seq": run.seq, "ts": ids.now_ms()}
        self._clients.tell("agent", payload | {"isHeartbeat": False}, follows=self._audience(run))

    def _chat(self, run: Run, state: str, **more) -> None:
        payload = {"runId": run.id, "sessionKey": run.session.key, "agentId": run.session.agent_id, "seq": run.seq}
        self._clients.tell("chat", payload | {"state": state} | more, follows=self._audience(run))

    def _audience(self, run: Run) -> str | None:
        """None is everybody: only runs that a client of ours asked for are told unasked."""
        return None if run.transport == "rpc" else run.session.key

    def _message(self, run: Run, event: dict) -> None:
        message = event["message"] | {"__openclaw": {"id": event["id"], "seq": run.session.next_seq - 1}}
        payload = {"sessionKey": run.session.key, "agentId": run.session.agent_id, "message": message}
        payload |= {"messageId": event["id"], "messageSeq": run.session.next_seq - 1}
        self._clients.tell("session.message", payload, subscribed=True)

    def _changed(self, run: Run, **what) -> None:
        session = {"key": run.session.key, "sessionId": run.session.id, "agentId": run.session.agent_id}
        session |= {"updatedAt": run.session.updated_at, "status": run.session.status}
        payload = {"sessionKey": run.session.key, "agentId": run.session.agent_id, "ts": ids.now_ms()}
        self._clients.tell("sessions.changed", payload | what | {"session": session}, subscribed=True)
