"""The conversations of a gateway: one Session for each key, written through the era's store."""

from __future__ import annotations

from threading import Lock, RLock
from typing import TYPE_CHECKING, Any

from . import ids

if TYPE_CHECKING:
    from pathlib import Path


class Session:
    """One conversation as the gateway remembers it; `leaf` is the event the next one hangs on."""

    def __init__(self, key: str, session_id: str, origin: dict | None = None) -> None:
        self.key, self.id = key, session_id
        self.agent_id = key.split(":")[1]
        self.origin: dict[str, Any] = origin or {}
        self.begun = False
        self.leaf: str | None = None
        self.next_seq = 0  # the next row of a SQLite transcript
        self.messages: list[dict] = []  # what the model is told again
        self.tokens = {"input": 0, "output": 0, "total": 0}
        self.created_at = self.updated_at = ids.now_ms()
        self.status = "done"
        self.model = ""
        self.provider = ""
        self.turning = Lock()  # held by the run that talks
        self.waiting: list = []  # runs that came meanwhile

    @property
    def thread(self) -> str | None:
        return self.origin.get("threadId")

    @property
    def chat_type(self) -> str:
        return self.origin.get("chatType", "direct")

    def adopt(self, event: dict) -> None:
        """Take an event from disk back into memory."""
        self.begun = True
        self.leaf = event.get("id") if event.get("type") != "session" else self.leaf
        message = event.get("message") or {}
        if event.get("type") == "reset":
            self.messages.clear()
        if message.get("role") in {"user", "assistant"} and text_of(message):
            self.messages.append({"role": message["role"], "content": text_of(message)})

    def count(self, usage: dict) -> None:
        self.tokens = {"input": usage["input"], "output": usage["output"], "total": usage["totalTokens"]}


class Sessions:
    """All sessions of one gateway, loaded agent by agent."""

    def __init__(self, era, home: Path, zstd_from_bytes: int) -> None:
        self._era, self._home, self._zstd = era, home, zstd_from_bytes
        self._stores: dict[str, Any] = {}
        self._by_key: dict[str, Session] = {}
        self._lock = RLock()

    def all(self) -> list[Session]:
        with self._lock:
            folder = self._home / "agents"
            for found in folder.iterdir() if folder.is_dir() else ():
                self.store(found.name)
            return sorted(self._by_key.values(), key=lambda session: -session.updated_at)

    def find(self, key: str) -> Session | None:
        with self._lock:
            if key.count(":") >= 2:
                self.store(key.split(":")[1])
            return self._by_key.get(key)

    def open(self, key: str, origin: dict | None = None) -> Session:
        with self._lock:
            session = self.find(key)
            if session is None:
                session = self._by_key[key] = Session(key, ids.uuid4(), origin)
            session.origin = session.origin | (origin or {})
            return session

    def store(self, agent_id: str) -> Any:
        with self._lock:
            if agent_id not in self._stores:
                # sqlite3 is imported only by those who keep conversations in it.
                if self._era.store == "sqlite":
                    from .sqlite import Store
                else:
                    from .jsonl import Store
                self._stores[agent_id] = Store(self._home, agent_id, self._era.version, self._zstd)
                self._by_key.update({session.key: session for session in self._stores[agent_id].load()})
            return self._stores[agent_id]

    def begin(self, session: Session, model, cwd: str) -> None:
        """The lines a transcript opens with."""
        if session.begun:
            return
        session.begun = True
        session.provider, session.model = model.provider, model.id
        store = self.store(session.agent_id)
        store.begin(session, cwd)
        self.record(session, "model_change", provider=model.provider, modelId=model.id)
        self.record(session, "thinking_level_change", thinkingLevel="off")
        data = {"timestamp": ids.now_ms(), "provider": model.provider, "modelApi": model.api, "modelId": model.id}
        self.record(session, "custom", customType="model-snapshot", data=data)

    def record(self, session: Session, kind: str, **fields) -> dict:
        """Append one event to the transcript."""
        store = self.store(session.agent_id)
        event = {"type": kind, "id": store.new_id(), "parentId": session.leaf, "timestamp": ids.iso()} | fields
        store.append(session, event)
        session.leaf = event["id"]
        return event

    def finish(self, session: Session, status: str) -> None:
        session.status, session.updated_at = status, ids.now_ms()
        self.store(session.agent_id).index(session)

    def reset(self, session: Session) -> None:
        self.store(session.agent_id).reset(session, self)
        session.messages.clear()
        session.tokens = {"input": 0, "output": 0, "total": 0}
        self.finish(session, "done")

    def delete(self, session: Session) -> None:
        with self._lock:
            self.store(session.agent_id).delete(session)
            del self._by_key[session.key]

    def close(self) -> None:
        for store in self._stores.values():
            store.close()


def text_of(message: dict) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content or [] if part.get("type") == "text")
