"""Old's transcripts: a JSONL file for each session and sessions.json, rewritten as a whole."""

from __future__ import annotations

import json
import os
from threading import Lock
from typing import TYPE_CHECKING

from . import ids
from .sessions import Session

if TYPE_CHECKING:
    from pathlib import Path


class Store:
    """The sessions folder of one agent."""

    new_id = staticmethod(ids.short)

    def __init__(self, home: Path, agent_id: str, version: str, zstd_from_bytes: int) -> None:
        self._folder = home / "agents" / agent_id / "sessions"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries: dict[str, dict] = {}
        self._lock = Lock()

    def load(self) -> list[Session]:
        try:
            self._entries = json.loads((self._folder / "sessions.json").read_text())
        except (OSError, ValueError):
            return []
        return [self._restore(key, entry) for key, entry in self._entries.items()]

    def begin(self, session: Session, cwd: str) -> None:
        head = {"type": "session", "version": 3, "id": session.id, "timestamp": ids.iso(), "cwd": cwd}
        self.append(session, head)

    def append(self, session: Session, event: dict) -> None:
        line = json.dumps(event, ensure_ascii=False, separators=(",", ":")) + "\n"
        fd = os.open(self._path(session), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(fd, line.encode())
        os.close(fd)

    def index(self, session: Session) -> None:
        entry = {
            "sessionId": session.id, "updatedAt": session.updated_at, "systemSent": True,
            "abortedLastRun": session.status == "killed", "chatType": session.chat_type, "model": session.model,
            "modelProvider": session.provider, "contextTokens": 128000,
            "skillsSnapshot": {"prompt": "<available_skills/>", "skills": []},
            "sessionFile": str(self._path(session)),
            "inputTokens": session.tokens["input"], "outputTokens": session.tokens["output"],
            "totalTokens": session.tokens["input"],
        }  # fmt: skip
        if origin := session.origin:
            entry |= {"origin": origin, "lastChannel": origin.get("provider"), "lastTo": origin.get("to")}
            entry |= {name: origin[name] for name in ("channel", "groupId", "subject", "displayName") if name in origin}
        with self._lock:
            self._entries[session.key] = entry
            self._write_index()

    def reset(self, session: Session, sessions) -> None:
        """A new id under the old key; the old file stays behind, no longer in the index."""
        session.id, session.begun, session.leaf = ids.uuid4(), False, None

    def delete(self, session: Session) -> None:
        with self._lock:
            self._entries.pop(session.key, None)
            self._write_index()
        path = self._path(session)
        if path.exists():
            path.rename(path.with_name(f"{path.name}.deleted.{ids.iso().replace(':', '-')}"))

    def close(self) -> None:
        pass

    def _path(self, session: Session) -> Path:
        topic = f"-topic-{session.thread}" if session.thread else ""
        return self._folder / f"{session.id}{topic}.jsonl"

    def _write_index(self) -> None:
        draft = self._folder / f"sessions.json.{os.getpid()}.tmp"
        draft.write_text(json.dumps(self._entries, indent=2, ensure_ascii=False))
        draft.chmod(0o600)
        draft.replace(self._folder / "sessions.json")

    def _restore(self, key: str, entry: dict) -> Session:
        session = Session(key, entry["sessionId"], entry.get("origin"))
        session.updated_at = entry.get("updatedAt", session.updated_at)
        session.model, session.provider = entry.get("model", ""), entry.get("modelProvider", "")
        if self._path(session).exists():
            for line in self._path(session).read_text(errors="replace").splitlines():
                try:
                    session.adopt(json.loads(line))
                except ValueError:
                    continue  # a line that kill -9 cut short
        return session
