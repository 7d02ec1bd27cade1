"""`clawnet keys`: change data keys and the master key, see whether everything can be opened, delete old keys."""

import argparse
import os
import sys
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import anyio

from app import log, settings
from app.db.engine import DB
from app.domain.errors import ClawNetError, Refusal, SettingsError
from app.domain.states import KeyRotationState
from app.foundations import KEY_FILE, database, encryption_key, protect
from app.services import audit, data_keys, keys, rotation, sealed_rows
from app.services.rotation import Rotation, Rotations
from app.settings import Settings
from app.vault import Vault, key_file

#: Seconds between two looks at how far a change of keys has come.
LOOK_INTERVAL = 0.2
#: Characters of the bar.
WIDTH = 40


async def run(arguments: argparse.Namespace) -> int:
    """Does one deed on the database, whether servers run on it or not."""
    protect()
    wanted = settings.take(os.environ)
    log.configure(wanted.clawnet_log_format, "warning")
    async with database(wanted, _say):
        try:
            with audit.acting(audit.Actor(address=f"command line, uid {os.geteuid()}")):
                return await _deed(arguments, wanted)
        except Refusal as refusal:
            print(f"clawnet: {refusal.message}", file=sys.stderr)
            return 1


async def _deed(arguments: argparse.Namespace, wanted: Settings) -> int:
    match arguments.deed:
        case "rotate":
            return await _rotate(await _open(wanted), wanted.clawnet_key_rotation_wait, arguments.reason)
        case "rekey":
            return await _rekey(wanted)
        case "verify":
            return await _verify(await _open(wanted))
        case "prune":
            await _open(wanted)  # Who cannot open the keyring takes nothing out of it.
            return await _prune(arguments.days)
        case _:
            return await _status()


def _wake(names: Iterable[str]) -> None:
    """Servers hear of it with their next look at the rooms."""


async def _open(wanted: Settings) -> Vault:
    return await keys.open_vault(await encryption_key(wanted, _say))


async def _rotate(opened: Vault, wait: float, reason: str | None) -> int:
    rotations = Rotations(opened, _wake, wait)
    under_way = await rotation.running()
    now = under_way or await rotations.start(reason)
    _say(f"key {now.to_key} is active{', and a change to it under way' if under_way else ''}")
    ended = await _carry_on(rotations, now.id, wait)
    print(f"encrypted with key {ended.to_key}: {ended.done}, not readable: {ended.failed}")
    if ended.state is KeyRotationState.FAILED:
        _say("`clawnet keys verify` names them; set them anew, then change the key again")
        return 1
    return 0


async def _carry_on(rotations: Rotations, identity: UUID, wait: float) -> Rotation:
    found: Rotation | ClawNetError | None = None
    async with anyio.create_task_group() as tasks:
        # A server may be at it as well: one of the two works, and the other one waits for it.
        tasks.start_soon(rotations.run)
        try:
            found = await _follow(identity, wait)
        except ClawNetError as error:
            found = error
        tasks.cancel_scope.cancel()
    if isinstance(found, ClawNetError):
        raise found
    assert found is not None
    return found


async def _follow(identity: UUID, wait: float) -> Rotation:
    bar, is_waiting = Bar("encrypted"), False
    while True:
        now = await rotation.get(identity)
        assert now is not None  # Rows of changes are never deleted.
        come_to = now.done + now.failed
        bar.show(come_to, now.total)
        if now.state is not KeyRotationState.RUNNING:
            bar.end()
            return now
        if come_to >= now.total and not is_waiting:
            is_waiting = True
            bar.end()
            _say(f"every server takes the new key in; a last look follows in {wait:g} s")
        await anyio.sleep(LOOK_INTERVAL)


async def _rekey(wanted: Settings) -> int:
    new = await encryption_key(wanted, _say)
    if await keys.rekey(new, _previous(wanted)):
        print("the keys are wrapped with the new master key; start every server again with it")
    else:
        print("the keys are wrapped with this master key already")
    return 0


def _previous(wanted: Settings) -> str:
    if wanted.encryption_key_previous is not None:
        return wanted.encryption_key_previous.reveal()
    path = wanted.clawnet_data_dir / KEY_FILE
    if wanted.encryption_key is not None and path.exists():
        return key_file(path)
    raise SettingsError(
        "ENCRYPTION_KEY_PREVIOUS is not set; expected the master key until now, and the new one in ENCRYPTION_KEY "
        "(each may be in a file: ENCRYPTION_KEY_PREVIOUS_FILE, ENCRYPTION_KEY_FILE)"
    )


async def _verify(opened: Vault) -> int:
    total = sum(sum(key.counts.values()) for key in await data_keys.versions())
    bar = Bar("looked at")
    checked = await sealed_rows.verify(opened, lambda seen: bar.show(seen, total))
    bar.end()
    for table, number in checked.opened.items():
        print(f"{table}: {number} can be opened")
    for table, row_id in checked.unreadable:
        print(f"{table} {row_id}: cannot be opened", file=sys.stderr)
    return 1 if checked.unreadable else 0


async def _prune(days: int) -> int:
    gone = await data_keys.prune(days)
    if not gone:
        print(f"no key has been out of use for {days} days")
        return 0
    last = max(key.retired_at for key in gone if key.retired_at)
    print(f"deleted: {', '.join(f'key {key.key_id}' for key in gone)}")
    print(
        f"rows out of backups from before {_day(last)} cannot be opened here any more; a backup that is restored as a "
        "whole brings its keys"
    )
    return 0


async def _status() -> int:
    tables = [column.table for column in keys.SEALED]
    _row("key", "state", *tables, "made", "retired", "master key")
    for key in await data_keys.versions():
        counts = [str(key.counts.get(table, 0)) for table in tables]
        _row(str(key.key_id), key.state, *counts, _day(key.created_at), _day(key.retired_at), key.kek_id.hex())
    row = await DB.fetch_one("SELECT id FROM key_rotation ORDER BY started_at DESC LIMIT 1")
    last = await rotation.get(row["id"]) if row else None
    if last:
        print(
            f"last change: to key {last.to_key}, {last.state.lower()}, {last.done} of {last.total} encrypted, "
            f"{last.failed} not readable"
        )
    return 0


def _row(*cells: str) -> None:
    print("  ".join(cell.ljust(14) for cell in cells).rstrip())


class Bar:
    """How far something has come: a bar at a terminal, elsewhere a line for each tenth."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._is_terminal = sys.stderr.isatty()
        self._tenth = -1

    def show(self, done: int, total: int) -> None:
        share = min(1.0, done / total) if total else 1.0
        text = f"{done:,} of {total:,} {self._what}"
        if self._is_terminal:
            filled = "#" * int(share * WIDTH)
            print(f"\r  [{filled.ljust(WIDTH, '.')}] {share:4.0%}  {text}", end="\033[K", file=sys.stderr, flush=True)
        elif int(share * 10) > self._tenth:
            self._tenth = int(share * 10)
            _say(text)

    def end(self) -> None:
        if self._is_terminal:
            print(file=sys.stderr)


def _day(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d") if at else "-"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
