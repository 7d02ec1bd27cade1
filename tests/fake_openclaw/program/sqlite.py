"""New's transcripts: one SQLite database for each agent, in WAL mode, with the tables a reader needs."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from threading import Lock
from typing import TYPE_CHECKING

from . import ids
from .sessions import Session

if TYPE_CHECKING:
    from pathlib import Path

#: PRAGMA user_version of 2026.9.6.
SCHEMA = 23
#: The most one zstd block holds.
BLOCK = 128 * 1024

TABLES = """
CREATE TABLE IF NOT EXISTS schema_meta (meta_key TEXT PRIMARY KEY NOT NULL, role TEXT NOT NULL,
  schema_version INTEGER NOT NULL, agent_id TEXT, app_version TEXT, created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS session_nodes (session_key TEXT PRIMARY KEY NOT NULL, current_session_id TEXT NOT NULL,
  entry_json TEXT NOT NULL, entry_valid INTEGER NOT NULL DEFAULT 1, updated_at INTEGER NOT NULL,
  status TEXT CHECK (status IN ('running', 'done', 'failed', 'killed', 'timeout')), created_at INTEGER,
  created_via TEXT, created_actor_type TEXT, created_actor_id TEXT, parent_session_key TEXT, spawned_by TEXT,
  label TEXT, display_name TEXT, pinned_at INTEGER, archived_at INTEGER, last_read_at INTEGER,
  last_interaction_at INTEGER, last_activity_at INTEGER) STRICT;
CREATE TABLE IF NOT EXISTS conversations (conversation_id TEXT PRIMARY KEY NOT NULL, channel TEXT NOT NULL,
  account_id TEXT NOT NULL, kind TEXT NOT NULL, peer_id TEXT NOT NULL, delivery_target TEXT NOT NULL,
  parent_conversation_id TEXT, thread_id TEXT, native_channel_id TEXT, native_direct_user_id TEXT, label TEXT,
  metadata_json TEXT, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS session_windows (session_id TEXT PRIMARY KEY NOT NULL,
  session_key TEXT NOT NULL REFERENCES session_nodes ON DELETE CASCADE, previous_session_id TEXT, reason TEXT,
  session_scope TEXT NOT NULL DEFAULT 'conversation', created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  transcript_updated_at INTEGER, transcript_observed_at INTEGER, started_at INTEGER, ended_at INTEGER, status TEXT,
  chat_type TEXT, channel TEXT, account_id TEXT,
  primary_conversation_id TEXT REFERENCES conversations ON DELETE SET NULL, model_provider TEXT, model TEXT,
  agent_harness_id TEXT, parent_session_key TEXT, spawned_by TEXT, display_name TEXT) STRICT;
CREATE TABLE IF NOT EXISTS transcript_events (
  session_id TEXT NOT NULL REFERENCES session_windows ON DELETE CASCADE, seq INTEGER NOT NULL, event_json TEXT,
  created_at INTEGER NOT NULL, event_zstd BLOB, event_utf8_bytes INTEGER, navigation_json TEXT,
  PRIMARY KEY (session_id, seq), CHECK ((event_json IS NULL) <> (event_zstd IS NULL))) STRICT;
CREATE TABLE IF NOT EXISTS transcript_rewrite_watermarks (
  session_id TEXT PRIMARY KEY NOT NULL REFERENCES session_windows ON DELETE CASCADE, generation TEXT NOT NULL,
  updated_at INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS transcript_event_identities (session_id TEXT NOT NULL, event_id TEXT NOT NULL,
  seq INTEGER NOT NULL, event_type TEXT, parent_id TEXT, message_idempotency_key TEXT, created_at INTEGER NOT NULL,
  PRIMARY KEY (session_id, event_id),
  FOREIGN KEY (session_id, seq) REFERENCES transcript_events ON DELETE CASCADE) STRICT;
CREATE TABLE IF NOT EXISTS session_transcript_active_events (session_id TEXT NOT NULL,
  active_position INTEGER NOT NULL, event_seq INTEGER NOT NULL, message_position INTEGER, context_eligible INTEGER,
  PRIMARY KEY (session_id, active_position),
  FOREIGN KEY (session_id, event_seq) REFERENCES transcript_events ON DELETE CASCADE) STRICT;
CREATE TABLE IF NOT EXISTS session_transcript_archives (session_id TEXT NOT NULL, generation TEXT NOT NULL,
  session_key TEXT NOT NULL, reason TEXT NOT NULL, encoding TEXT NOT NULL, archive_blob BLOB NOT NULL,
  archive_sha256 TEXT NOT NULL, archive_name TEXT NOT NULL UNIQUE, created_at INTEGER NOT NULL,
  published_at INTEGER, publish_attempts INTEGER NOT NULL DEFAULT 0, last_publish_attempt_at INTEGER,
  last_publish_error TEXT, PRIMARY KEY (session_id, generation)) STRICT;
CREATE TABLE IF NOT EXISTS session_transcript_cold_archives (session_id TEXT PRIMARY KEY NOT NULL,
  generation TEXT NOT NULL, archive_name TEXT NOT NULL UNIQUE, archive_sha256 TEXT NOT NULL,
  event_count INTEGER NOT NULL, raw_bytes INTEGER NOT NULL, archive_bytes INTEGER NOT NULL,
  last_seq INTEGER NOT NULL, archived_at INTEGER NOT NULL, storage TEXT NOT NULL, archive_blob BLOB) STRICT;
"""


class Store:
    """The database of one agent."""

    new_id = staticmethod(ids.uuid4)

    def __init__(self, home: Path, agent_id: str, version: str, zstd_from_bytes: int) -> None:
        folder = home / "agents" / agent_id / "agent"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / "openclaw-agent.sqlite"
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        path.chmod(0o600)
        self._zstd_from, self._lock = zstd_from_bytes, Lock()
        for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=5000", f"user_version={SCHEMA}"):
            self._db.execute(f"PRAGMA {pragma}")
        self._db.executescript(TABLES)
        now = ids.now_ms()
        self._db.execute(
            "INSERT INTO schema_meta VALUES ('primary', 'agent', ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (SCHEMA, agent_id, version, now, now),
        )

    def load(self) -> list[Session]:
        rows = self._db.execute(
            "SELECT session_key, current_session_id, entry_json, updated_at, status FROM session_nodes"
        ).fetchall()
        return [self._restore(*row) for row in rows]

    def begin(self, session: Session, cwd: str) -> None:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._save_node(session)
            self._save_window(session)
            watermark = "INSERT INTO transcript_rewrite_watermarks VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
            self._db.execute(watermark, (session.id, ids.uuid4().replace("-", ""), ids.now_ms()))
            head = {"type": "session", "version": 4, "id": session.id, "timestamp": ids.iso(), "cwd": cwd}
            self._insert(session, head)

    def append(self, session: Session, event: dict) -> None:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._insert(session, event)

    def index(self, session: Session) -> None:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._save_node(session)
            self._save_window(session)

    def reset(self, session: Session, sessions) -> None:
        """The id stays; the transcript goes on behind an event that says so."""
        if session.begun:
            sessions.record(session, "reset", reason="reset")

    def delete(self, session: Session) -> None:
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            rows = self._db.execute(
                "SELECT event_json, event_zstd FROM transcript_events WHERE session_id = ? ORDER BY seq", (session.id,)
            )
            lines = "".join((text or unpacked(frame)) + "\n" for text, frame in rows).encode()
            name = f"{session.id}.jsonl.deleted.{ids.iso().replace(':', '-')}.{ids.uuid4().replace('-', '')}"
            digest, generation, now = hashlib.sha256(lines).hexdigest(), ids.uuid4(), ids.now_ms()
            self._db.execute(
                "INSERT INTO session_transcript_archives (session_id, generation, session_key, reason, encoding,"
                " archive_blob, archive_sha256, archive_name, created_at) VALUES (?,?,?,'deleted','identity',?,?,?,?)",
                (session.id, generation, session.key, lines, digest, name, now),
            )
            self._db.execute("DELETE FROM session_nodes WHERE session_key = ?", (session.key,))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _insert(self, session: Session, event: dict) -> None:
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        data, seq, now = text.encode(), session.next_seq, ids.now_ms()
        plain, frame, navigation = text, None, None
        if self._zstd_from and len(data) >= self._zstd_from:
            report = {"kind": "canonical", "eventId": event["id"], "parentId": event.get("parentId")}
            navigation = json.dumps({"version": 1, "report": report, "navigation": {"type": event["type"]}})
            plain, frame = None, packed(data)
        self._db.execute(
            "INSERT INTO transcript_events VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session.id, seq, plain, now, frame, len(data), navigation),
        )
        key = event.get("message", {}).get("idempotencyKey")
        self._db.execute(
            "INSERT INTO transcript_event_identities VALUES (?, ?, ?, ?, ?, ?, ?)",
            (session.id, event["id"], seq, event["type"], event.get("parentId"), key, now),
        )
        if event["type"] != "session":
            self._activate(session, seq, event)
        session.next_seq += 1

    def _activate(self, session: Session, seq: int, event: dict) -> None:
        """The branch that counts: here always the whole transcript but its head."""
        place = None
        if event["type"] == "message":
            (place,) = self._db.execute(
                "SELECT coalesce(max(message_position) + 1, 0) FROM session_transcript_active_events"
                " WHERE session_id = ?", (session.id,),
            ).fetchone()  # fmt: skip
        row = (session.id, seq - 1, seq, place, 1)
        self._db.execute("INSERT INTO session_transcript_active_events VALUES (?, ?, ?, ?, ?)", row)

    def _save_node(self, session: Session) -> None:
        entry = {
            "sessionId": session.id, "updatedAt": session.updated_at, "sessionStartedAt": session.created_at,
            "status": session.status, "abortedLastRun": session.status == "killed", "chatType": session.chat_type,
            "model": session.model, "modelProvider": session.provider, "contextTokens": 128000,
            "inputTokens": session.tokens["input"], "outputTokens": session.tokens["output"],
            "totalTokens": session.tokens["input"], "skillsSnapshot": {"prompt": "<available_skills/>"},
            "origin": session.origin,
        }  # fmt: skip
        now, via = ids.now_ms(), "channel" if "channel" in session.origin else "operator"
        self._db.execute(
            "INSERT INTO session_nodes (session_key, current_session_id, entry_json, updated_at, status, created_at,"
            " created_via, display_name, last_interaction_at, last_activity_at) VALUES (?,?,?,?,?,?,?,?,?,?)"
            " ON CONFLICT DO UPDATE SET current_session_id = excluded.current_session_id,"
            " entry_json = excluded.entry_json, updated_at = excluded.updated_at, status = excluded.status,"
            " last_interaction_at = excluded.last_interaction_at, last_activity_at = excluded.last_activity_at",
            (session.key, session.id, json.dumps(entry, ensure_ascii=False), now, session.status, session.created_at,
             via, session.origin.get("displayName"), now, now),
        )  # fmt: skip

    def _save_window(self, session: Session) -> None:
        now, origin = ids.now_ms(), session.origin
        conversation = self._save_conversation(session) if "channel" in origin else None
        self._db.execute(
            "INSERT INTO session_windows (session_id, session_key, created_at, updated_at, transcript_updated_at,"
            " transcript_observed_at, started_at, ended_at, status, chat_type, channel, account_id,"
            " primary_conversation_id, model_provider, model, agent_harness_id, display_name)"
            " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,'openclaw',?)"
            " ON CONFLICT DO UPDATE SET updated_at = excluded.updated_at, status = excluded.status,"
            " transcript_updated_at = excluded.transcript_updated_at, ended_at = excluded.ended_at",
            (session.id, session.key, session.created_at, now, now, now, now,
             None if session.status == "running" else now, session.status, session.chat_type, origin.get("channel"),
             origin.get("accountId"), conversation, session.provider, session.model, origin.get("displayName")),
        )  # fmt: skip

    def _save_conversation(self, session: Session) -> str:
        origin, now = session.origin, ids.now_ms()
        peer, thread = origin.get("groupId") or origin["from"].rpartition(":")[2], origin.get("threadId")
        named = f"{origin['channel']}/{origin['accountId']}/{session.chat_type}/{peer}/{thread}"
        conversation = f"conv_{hashlib.md5(named.encode()).hexdigest()}"
        self._db.execute(
            "INSERT INTO conversations (conversation_id, channel, account_id, kind, peer_id, delivery_target,"
            " thread_id, label, created_at, updated_at) VALUES (?,?,?,?,?,?,?,?,?,?)"
            " ON CONFLICT DO UPDATE SET updated_at = excluded.updated_at",
            (conversation, origin["channel"], origin["accountId"], session.chat_type, peer, origin["to"], thread,
             origin.get("displayName"), now, now),
        )  # fmt: skip
        return conversation

    def _restore(self, key: str, session_id: str, entry: str, updated_at: int, status: str) -> Session:
        kept = json.loads(entry)
        session = Session(key, session_id, kept.get("origin"))
        session.updated_at, session.status = updated_at, status
        session.model, session.provider = kept.get("model", ""), kept.get("modelProvider", "")
        rows = self._db.execute(
            "SELECT seq, event_json, event_zstd FROM transcript_events WHERE session_id = ? ORDER BY seq", (session_id,)
        )
        for seq, text, frame in rows:
            session.next_seq = seq + 1
            session.adopt(json.loads(text or unpacked(frame)))
        return session


def packed(data: bytes) -> bytes:
    """A valid zstd frame of raw blocks: the library is not in the standard library, the format is simple."""
    frame = b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little")
    for at in range(0, len(data), BLOCK):
        block = data[at : at + BLOCK]
        last = at + BLOCK >= len(data)
        frame += (len(block) << 3 | last).to_bytes(3, "little") + block
    return frame


def unpacked(frame: bytes) -> str:
    """The text of a frame that `packed` made."""
    at, data = 9, b""
    while at < len(frame):
        size = int.from_bytes(frame[at : at + 3], "little") >> 3
        data += frame[at + 3 : at + 3 + size]
        at += 3 + size
    return data.decode()
