"""Who asks to be let in: old keeps files that its own commands lock, new a store that only RPC writes."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sqlite3
import time
from pathlib import Path

from .errors import Planned

ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
TABLES = """
CREATE TABLE IF NOT EXISTS channel_pairing_requests (channel_key TEXT NOT NULL, account_id TEXT NOT NULL,
  request_id TEXT NOT NULL, code TEXT NOT NULL, created_at TEXT NOT NULL, last_seen_at TEXT NOT NULL, meta_json TEXT,
  PRIMARY KEY (channel_key, account_id, request_id)) STRICT;
CREATE TABLE IF NOT EXISTS channel_pairing_allow_entries (channel_key TEXT NOT NULL, account_id TEXT NOT NULL,
  entry TEXT NOT NULL, sort_order INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  PRIMARY KEY (channel_key, account_id, entry)) STRICT;
"""


class NobodyWaits(Planned):
    """The request is not there, or not any more."""


class Files:
    """Old: `credentials/<channel>-pairing.json`, whichever the account."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "credentials"

    def ask(self, channel: str, account: str, peer: str, meta: dict) -> str:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        file = self._folder / f"{channel}-pairing.json"
        kept = json.loads(file.read_text())["requests"] if file.exists() else []
        new = {"id": peer, "code": _code(), "createdAt": _now(), "lastSeenAt": _now(), "meta": meta}
        draft = file.with_suffix(".tmp")
        draft.write_text(json.dumps({"version": 1, "requests": [*kept, new]}, indent=2))
        draft.replace(file)
        return new["code"]


class Store:
    """New: `state/openclaw.sqlite`; operators see requests by a name of their own, without the code."""

    def __init__(self, home: Path) -> None:
        self._path = home / "state" / "openclaw.sqlite"

    def ask(self, channel: str, account: str, peer: str, meta: dict) -> str:
        code = _code()
        with self._open() as store:
            store.execute(
                "INSERT INTO channel_pairing_requests VALUES (?, ?, ?, ?, ?, ?, ?)",
                (channel, account, peer, code, _now(), _now(), json.dumps(meta | {"accountId": account})),
            )
        return code

    def list(self, channel: str | None, account: str | None) -> list[dict]:
        with self._open() as store:
            rows = store.execute("SELECT * FROM channel_pairing_requests ORDER BY created_at").fetchall()
        return [_public(row) for row in rows if channel in {None, row[0]} and account in {None, row[1]}]

    def resolve(self, channel: str, account: str, request_id: str, let_in: bool) -> dict:
        asked = [one for one in self.list(channel, account) if one["requestId"] == request_id]
        if not asked:
            raise NobodyWaits("pending DM access request no longer exists")
        sender, where = asked[0]["senderId"], (channel, account, asked[0]["senderId"])
        with self._open() as store:
            store.execute(
                "DELETE FROM channel_pairing_requests WHERE (channel_key, account_id, request_id) = (?, ?, ?)", where
            )
            if let_in:
                store.execute("INSERT INTO channel_pairing_allow_entries VALUES (?, ?, ?, 0, 0)", where)
        return {"requestId": request_id, "senderId": sender}

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        store = sqlite3.connect(self._path)
        store.execute("PRAGMA journal_mode = WAL")
        store.executescript(TABLES)
        return store


def _public(row: tuple) -> dict:
    channel, account, peer, _, created_at, seen_at, meta = row
    digest = hashlib.sha256(f"{channel}\0{account}\0{peer}\0{created_at}".encode()).digest()
    metadata = {name: value for name, value in json.loads(meta).items() if name != "accountId"}
    return {
        "requestId": base64.urlsafe_b64encode(digest).decode()[:32], "channel": channel, "channelLabel": channel,
        "accountId": account, "senderId": peer, "senderLabel": "userId", "metadata": metadata,
        "createdAt": created_at, "lastSeenAt": seen_at, "notifySupported": True,
    }  # fmt: skip


def _code() -> str:
    return "".join(random.choices(ALPHABET, k=8))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1_000_000 % 1000:03d}Z"
