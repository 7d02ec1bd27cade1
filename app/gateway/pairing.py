"""Who waits to be let in at a channel, and letting them in or sending them away, in each version's own way.

New OpenClaw does it over RPC, but keeps to itself the code that it showed people: that is read from its store. Old
OpenClaw has files only, one pair a channel whatever the account, locked the way its own `pairing` command locks them.
"""

import json
import os
import sqlite3
import stat
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import anyio
import anyio.to_thread

from app.domain.errors import GatewayFailed, NotFound, SpawnFailed
from app.domain.ports import Asking, Running
from app.gateway import files, running
from app.gateway import home as homes
from app.gateway.config import write_in
from app.gateway.rpc import Connection

#: Methods of the new way, and files of the old one.
LIST, APPROVE, DISMISS = "channels.pairing.list", "channels.pairing.approve", "channels.pairing.dismiss"
FOLDER = "credentials"
#: The protocol of versions that keep files.
OLD_PROTOCOL = 3
#: How long old OpenClaw lets somebody wait.
OLD_LIFE = timedelta(hours=1)
#: Largest file of a bot's that is read, in bytes, and most requests that are shown.
MAX_FILE, MAX_REQUESTS = 256 * 1024, 100
#: Seconds a lock of the gateway's may take; a lock older than `STALE` was left behind by a process that is gone.
LOCK_TIMEOUT, LOCK_PAUSE, STALE = 5.0, 0.05, 30.0


@dataclass(frozen=True, slots=True)
class Waiting(Asking):
    """Somebody who waits, as the gateway knows them."""

    #: The new version's name for the request.
    request_id: str | None = None


class Pairings:
    """Speaks to any number of gateways on this machine.

    Args:
        homes: The folder with the bots' homes, by agentId.
    """

    def __init__(self, homes: Path) -> None:
        self._homes = homes

    async def waiting(self, gateway: Running, provider: str, account_id: str) -> list[Waiting] | None:
        """Everybody who waits at a channel; None where this version does not say. Raises `GatewayFailed`."""
        async with running.connect(self._homes, gateway) as connection:
            return await waiting(connection, self._homes / gateway.agent_id, provider, account_id)

    async def resolve(self, gateway: Running, provider: str, account_id: str, code: str, *, is_let_in: bool) -> None:
        """Raises `NotFound` for a code nobody waits with, `GatewayFailed`."""
        async with running.connect(self._homes, gateway) as connection:
            decide = approve if is_let_in else dismiss
            await decide(connection, self._homes / gateway.agent_id, provider, account_id, code)


async def waiting(connection: Connection, home: Path, provider: str, account_id: str) -> list[Waiting] | None:
    """Everybody who waits, the longest first; None where this version does not say. Raises `GatewayFailed`."""
    if LIST in connection.methods:
        answer = await connection.call(LIST, {"channel": provider, "accountId": account_id})
        codes = await anyio.to_thread.run_sync(_codes, home, provider, account_id)
        return _from_answer(answer, codes)
    if _keeps_files(connection):
        return await anyio.to_thread.run_sync(_from_file, home, provider)
    return None


async def approve(connection: Connection, home: Path, provider: str, account_id: str, code: str) -> None:
    """Lets somebody in. Raises `NotFound` for a code nobody waits with, `GatewayFailed`."""
    await _resolve(connection, home, provider, account_id, code, APPROVE)


async def dismiss(connection: Connection, home: Path, provider: str, account_id: str, code: str) -> None:
    """Sends somebody away; they may ask again. Raises `NotFound` for a code nobody waits with, `GatewayFailed`."""
    await _resolve(connection, home, provider, account_id, code, DISMISS)


async def _resolve(connection: Connection, home: Path, provider: str, account_id: str, code: str, method: str) -> None:
    found = await waiting(connection, home, provider, account_id)
    if found is None:
        raise GatewayFailed("this version of OpenClaw does not let ClawNet decide who may write to a channel")
    wanted = code.strip().upper()
    one = next((each for each in found if each.code.upper() == wanted), None)
    if one is None:
        raise NotFound("nobody waits at the channel with this code; it may have run out", "code")
    if one.request_id is not None:
        await connection.call(method, {"channel": provider, "accountId": account_id, "requestId": one.request_id})
    else:
        await _resolve_in_files(home, provider, one, is_let_in=method == APPROVE)


def _keeps_files(connection: Connection) -> bool:
    """Versions between the two speak protocol 4, or keep other files: nothing is guessed about them."""
    return connection.protocol == OLD_PROTOCOL


# The new way.


def _from_answer(answer: dict[str, Any], codes: dict[tuple[str, str], str]) -> list[Waiting]:
    listed: object = answer.get("requests")
    found: list[Waiting] = []
    for each in map(_object, _list(listed)[:MAX_REQUESTS]):
        request_id, sender, at = each.get("requestId"), each.get("senderId"), each.get("createdAt")
        since = _time(at)
        if not isinstance(request_id, str) or not isinstance(sender, str) or since is None:
            continue
        # Without the store the request's own name is as good: nobody but an operator sees either.
        code = codes.get((sender, str(at)), request_id)
        found.append(Waiting(code, _peer(sender, each.get("metadata")), since, request_id))
    return sorted(found, key=lambda one: one.requested_at)


def _codes(home: Path, provider: str, account_id: str) -> dict[tuple[str, str], str]:
    """Codes by who asked and when, from the gateway's own store; nothing where it cannot be read."""
    try:
        with homes.opened(home) as base, homes.opened(Path("state"), base) as folder:
            if not _is_plain(folder, "openclaw.sqlite"):
                return {}
            # By the folder that is held open, so that nothing can be put in its place.
            name = f"file:/proc/self/fd/{folder}/openclaw.sqlite?mode=ro"
            with closing(sqlite3.connect(name, uri=True, timeout=0.25)) as store:
                return _read_codes(store, provider, account_id)
    except (sqlite3.Error, OSError, SpawnFailed):
        return {}


def _read_codes(store: sqlite3.Connection, provider: str, account_id: str) -> dict[tuple[str, str], str]:
    for pragma in ("query_only = ON", "trusted_schema = OFF", "cell_size_check = ON"):
        store.execute(f"PRAGMA {pragma}")
    rows = store.execute(
        "SELECT request_id, created_at, code, meta_json FROM channel_pairing_requests "
        "WHERE channel_key = ? AND account_id = ? LIMIT ?",
        (provider, account_id, MAX_REQUESTS),
    ).fetchall()
    codes: dict[tuple[str, str], str] = {}
    for request_id, created_at, code, meta in rows:
        # What asks is named by the sender's id where the channel has told it apart from the request's.
        for sender in (request_id, _json(meta).get("senderId")):
            if isinstance(sender, str):
                codes[sender, str(created_at)] = str(code)
    return codes


# The old way.


def _from_file(home: Path, provider: str) -> list[Waiting]:
    with _credentials(home) as folder:
        if folder is None:
            return []
        requests = _list(_read(folder, f"{provider}-pairing.json").get("requests"))
    found: list[Waiting] = []
    for each in map(_object, requests[:MAX_REQUESTS]):
        sender, code, since = each.get("id"), each.get("code"), _time(each.get("createdAt"))
        if not isinstance(sender, str) or not isinstance(code, str) or since is None:
            continue
        if datetime.now(UTC) - since <= OLD_LIFE:
            found.append(Waiting(code, _peer(sender, each.get("meta")), since))
    return sorted(found, key=lambda one: one.requested_at)


async def _resolve_in_files(home: Path, provider: str, one: Waiting, *, is_let_in: bool) -> None:
    try:
        with _credentials(home) as folder:
            if folder is None:
                raise GatewayFailed("the bot's folder of pairings is gone")
            if is_let_in:
                async with _Lock(folder, f"{provider}-allowFrom.json") as name:
                    await anyio.to_thread.run_sync(_let_in, folder, name, str(one.peer["id"]))
            # Last, so that a cut leaves somebody who waits, never somebody who is nowhere.
            async with _Lock(folder, f"{provider}-pairing.json") as name:
                await anyio.to_thread.run_sync(_forget, folder, name, one.code)
    except OSError as error:
        raise GatewayFailed(f"the bot's pairings cannot be written: {error.strerror or error}") from error


def _let_in(folder: int, name: str, sender: str) -> None:
    allowed = [each for each in _list(_read(folder, name).get("allowFrom")) if isinstance(each, str)]
    if sender not in allowed:
        write_in(folder, name, json.dumps({"version": 1, "allowFrom": [*allowed, sender]}, indent=2) + "\n")


def _forget(folder: int, name: str, code: str) -> None:
    kept = [each for each in _list(_read(folder, name).get("requests")) if _object(each).get("code") != code]
    write_in(folder, name, json.dumps({"version": 1, "requests": kept}, indent=2) + "\n")


class _Lock:
    """The lock that old OpenClaw's own commands take: a folder beside the file, renewed by its holder."""

    def __init__(self, folder: int, name: str) -> None:
        self._folder, self._name = folder, name

    async def __aenter__(self) -> str:
        try:
            with anyio.fail_after(LOCK_TIMEOUT):
                while True:
                    if self._take():
                        return self._name
                    await anyio.sleep(LOCK_PAUSE)
        except TimeoutError as error:
            raise GatewayFailed("the bot's gateway holds the lock of its pairings; try again") from error

    async def __aexit__(self, *_: object) -> None:
        with suppress(OSError):
            os.rmdir(f"{self._name}.lock", dir_fd=self._folder)

    def _take(self) -> bool:
        name = f"{self._name}.lock"
        try:
            os.mkdir(name, 0o700, dir_fd=self._folder)
        except FileExistsError:
            with suppress(OSError):
                age = datetime.now(UTC).timestamp() - os.stat(name, dir_fd=self._folder).st_mtime
                if age > STALE:
                    os.rmdir(name, dir_fd=self._folder)
            return False
        return True


@contextmanager
def _credentials(home: Path) -> Generator[int | None]:
    """The folder of pairings, held open; None where nobody ever asked."""
    try:
        with homes.opened(home) as base:
            try:
                os.stat(FOLDER, dir_fd=base, follow_symlinks=False)
            except FileNotFoundError:
                yield None
                return
            with homes.opened(Path(FOLDER), base) as folder:
                yield folder
    except SpawnFailed as error:
        raise GatewayFailed(str(error)) from error


def _read(folder: int, name: str) -> dict[str, Any]:
    """The file's object; an empty one where there is none, or a link, or a pipe, or more than there can be."""
    try:
        return _json(files.read(name, MAX_FILE, folder))
    except OSError:
        return {}


def _is_plain(folder: int, name: str) -> bool:
    with suppress(OSError):
        return stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    return False


def _peer(sender: str, metadata: object) -> dict[str, Any]:
    said = {name: value for name, value in _object(metadata).items() if isinstance(value, str)}
    return said | {"id": sender}


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    with suppress(ValueError):
        found = datetime.fromisoformat(text)
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _json(text: object) -> dict[str, Any]:
    if not isinstance(text, (str, bytes)):
        return {}
    try:
        return _object(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
