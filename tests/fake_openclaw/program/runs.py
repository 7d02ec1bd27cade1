"""One turn of a conversation: the text goes to the model, tools are used, everything is written and told."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from threading import Lock, Thread
from typing import TYPE_CHECKING

from . import ids, process
from .errors import Planned
from .model import Failed, Model, Unreachable

if TYPE_CHECKING:
    from .gateway import Gateway
    from .sessions import Session

#: Rounds of tools in one turn.
MAX_TOOL_ROUNDS = 8
NO_USAGE = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0, "totalTokens": 0,
            "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0, "total": 0}}  # fmt: skip
BLOCKED = "Agent run blocked before producing a usable result."


class Aborted(Planned):
    """Somebody called chat.abort."""


class Run:
    """What somebody said in a session, and what became of it."""

    def __init__(self, session: Session, text: str, transport: str, run_id: str | None = None, told: str = "") -> None:
        self.session, self.text, self.transport = session, text, transport
        self.told = told or text  # as stored and shown to the model
        self.id = run_id or ids.uuid4()
        self.seq = 0
        self.attempt = 0
        self.aborted = False
        self.model: Model | None = None
        self.reply: str | None = None
        self.error: str | None = None

    def abort(self) -> None:
        self.aborted = True
        if self.model is not None:
            self.model.cancel()


class Runs:
    """The runs in progress; one at a time in each session."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._active: dict[str, Run] = {}
        self._lock = Lock()

    @property
    def busy(self) -> bool:
        return bool(self._active)

    def begin(self, run: Run) -> None:
        """Start a run of its own, or queue it behind the one its session is busy with."""
        with self._lock:
            if run.session.turning.locked():
                run.session.waiting.append(run)
                self._gateway.voice.queued(run)
                return
            run.session.turning.acquire()
        Thread(target=self._perform_all, args=(run,), daemon=True).start()

    def perform(self, run: Run) -> Run:
        """Do a run here and now, after the session's others: what HTTP does."""
        run.session.turning.acquire()
        self._perform_all(run)
        return run

    def abort(self, key: str, run_id: str | None) -> list[str]:
        ended = [run for run in self._active.values() if run.session.key == key and run_id in {None, run.id}]
        for run in ended:
            run.abort()
        return [run.id for run in ended]

    def abort_all(self) -> None:
        for run in list(self._active.values()):
            run.abort()

    def _perform_all(self, run: Run | None) -> None:
        session = run.session
        while run is not None:
            self._active[run.id] = run
            try:
                self._perform(run)
            finally:
                del self._active[run.id]
                with self._lock:
                    run = session.waiting.pop(0) if session.waiting else None
                    if run is not None:
                        run = Run(session, run.text, run.transport, told=run.told)  # its own run has had its `final`
                    else:
                        session.turning.release()

    def _perform(self, run: Run) -> None:
        gateway, session, voice = self._gateway, run.session, self._gateway.voice
        run.model = model = Model(gateway.config, session.agent_id)
        run.attempt = 1
        voice.began(run)
        gateway.pause_before_first_turn()
        gateway.sessions.begin(session, model, gateway.workspace(session.agent_id))
        session.provider, session.model = model.provider, model.id
        gateway.sessions.finish(session, "running")
        event = gateway.sessions.record(session, "message", message=self._user_message(run))
        voice.heard(run, event)
        messages = [*gateway.persona(session.agent_id), *session.messages, {"role": "user", "content": run.told}]
        session.messages.append(messages[-1])
        try:
            self._answer(run, messages)
            gateway.sessions.finish(session, "done")
            voice.ended(run, run.reply)
        except Aborted:
            self._record_failure(run, "aborted", "Request was aborted.")
            gateway.sessions.finish(session, "killed")
            voice.aborted(run)
        except (Failed, OSError) as error:
            run.error = str(error)
            if gateway.era.store == "sqlite":
                self._record_blocked(run)
            gateway.sessions.finish(session, "failed")
            voice.gave_up(run, BLOCKED)
        if run.reply is not None and run.transport == "http":
            gateway.output.say(run.reply)

    def _answer(self, run: Run, messages: list[dict]) -> None:
        for _ in range(MAX_TOOL_ROUNDS):
            answer = self._ask(run, messages)
            message = answer["choices"][0]["message"]
            calls = [understood(call) for call in message.get("tool_calls") or []]
            text = message.get("content") or ""
            parts = [{"type": "text", "text": text}] if text else []
            parts += [{"type": "toolCall"} | call for call in calls]
            event = self._record(run, parts, usage_of(answer), "toolUse" if calls else "stop", answer.get("id"))
            if not calls:
                run.reply = text
                run.session.messages.append({"role": "assistant", "content": text})
                self._gateway.voice.spoke(run, text, event)
                return
            messages.append(message)
            self._gateway.voice.heard(run, event)
            messages += [self._use(run, call) for call in calls]
        raise Failed("500 too many rounds of tools")

    def _ask(self, run: Run, messages: list[dict]) -> dict:
        faults = self._gateway.faults
        while True:
            try:
                return run.model.ask(messages)
            except Unreachable as error:
                if faults.offline_echo:
                    return echo(run.text)
                why = f"Connection error. {error}".strip()
            except Failed as error:
                why = str(error)
            except OSError as error:
                if run.aborted:
                    raise Aborted from None
                why = f"Connection error. {error}"
            if run.aborted:
                raise Aborted
            if self._gateway.era.store == "jsonl":
                self._record_failure(run, "error", why)
            self._gateway.voice.failed(run, why, run.attempt)
            if run.attempt >= faults.model_attempts:
                raise Failed(why)
            time.sleep(faults.model_retry_s)
            run.attempt += 1
            self._gateway.voice.began(run)

    def _use(self, run: Run, call: dict) -> dict:
        """Use one tool and write down what it said."""
        try:
            result, failed = use(call["name"], call["arguments"], Path(self._gateway.workspace(run.session.agent_id)))
        except (OSError, KeyError) as error:
            result, failed = str(error), True
        message = {"role": "toolResult", "toolCallId": call["id"], "toolName": call["name"]}
        message |= {"content": [{"type": "text", "text": result}], "isError": failed, "timestamp": ids.now_ms()}
        event = self._gateway.sessions.record(run.session, "message", message=message)
        self._gateway.voice.called(run, call, result)
        self._gateway.voice.heard(run, event)
        return {"role": "tool", "tool_call_id": call["id"], "content": result}

    def _user_message(self, run: Run) -> dict:
        if self._gateway.era.store == "jsonl":
            return {"role": "user", "content": [{"type": "text", "text": run.told}], "timestamp": ids.now_ms()}
        message = {"role": "user", "content": run.text, "timestamp": ids.now_ms()}
        return message | {"__openclaw": {"senderIsOwner": True}, "idempotencyKey": f"{run.id}:user"}

    def _record(self, run: Run, parts: list, usage: dict, stop: str, response: str | None = None, **more) -> dict:
        message = {"role": "assistant", "content": parts, "api": run.model.api, "provider": run.model.provider}
        message |= {"model": run.model.id, "usage": usage, "stopReason": stop, "timestamp": ids.now_ms()} | more
        if self._gateway.era.store == "sqlite":
            message |= {"responseId": response, "__openclaw": {"runId": run.id}}
        run.session.count(usage)
        return self._gateway.sessions.record(run.session, "message", message=message)

    def _record_failure(self, run: Run, stop: str, why: str) -> None:
        self._record(run, [], NO_USAGE, stop, errorMessage=why)

    def _record_blocked(self, run: Run) -> None:
        text = f"This turn ended before a reply: {BLOCKED}"
        fields = {"customType": "run-failed-before-reply", "content": text, "display": True}
        self._gateway.sessions.record(
            run.session, "custom_message", **fields, details={"runId": run.id, "error": BLOCKED}
        )


def echo(text: str) -> dict:
    """The answer while no model is there."""
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return {"id": "offline", "usage": usage, "choices": [{"message": {"content": f"You said: {text}"}}]}


def understood(call: dict) -> dict:
    try:
        arguments = json.loads(call["function"].get("arguments") or "{}")
    except ValueError:
        arguments = {}
    return {"id": call["id"], "name": call["function"]["name"], "arguments": arguments}


def usage_of(answer: dict) -> dict:
    usage = answer.get("usage") or {}
    read, wrote = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
    return NO_USAGE | {"input": read, "output": wrote, "totalTokens": usage.get("total_tokens", read + wrote)}


def use(name: str, arguments: dict, workspace: Path) -> tuple[str, bool]:
    """What a tool answers, and whether it failed."""
    if name == "read":
        return (workspace / arguments["path"]).read_text(errors="replace"), False
    if name == "write":
        (workspace / arguments["path"]).write_text(arguments["content"])
        return f"Wrote {len(arguments['content'])} bytes to {arguments['path']}", False
    if name == "exec":
        return run_command(arguments["command"], workspace)
    return f"Tool {name} not found", True


def run_command(command: str, workspace: Path) -> tuple[str, bool]:
    """Into a file, not a pipe: what the command leaves running must not hold the turn up."""
    printed = Path(os.environ.get("TMPDIR") or "/tmp") / f"exec-{ids.short()}.log"
    actions = [(os.POSIX_SPAWN_OPEN, 1, str(printed), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)]
    actions.append((os.POSIX_SPAWN_DUP2, 1, 2))
    argv = ["/bin/sh", "-c", 'cd "$1" && eval "$2"', "exec", str(workspace), command]
    _, status = os.waitpid(process.spawn(argv, file_actions=actions), 0)
    text = printed.read_text(errors="replace")
    printed.unlink()
    return text, status != 0
