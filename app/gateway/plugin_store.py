"""A process that looks into OpenClaw's database in a bot's home, which the bot may have made anything of.

    python -I -S plugin_store.py read 5
    python -I -S plugin_store.py end-lease 5

The number is that of the open folder `state`. `read` answers a line of JSON: for each plugin that is installed its
package's name and its place, or null where this version keeps no such record. What a bot put there can make SQLite run
for ever, take all memory, or remove a file: so it works without privileges and under limits, and is ended by whoever
started it. Standard library only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
from contextlib import closing

# Behind everything else, so that nothing there stands in the place of the standard library.
sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from app.gateway import fence

#: Bytes of memory, seconds of processor time, open files.
LIMITS = {"as": 512 * 1024 * 1024, "cpu": 3, "nofile": 64}
#: Bytes; no record of OpenClaw's is larger.
VALUE_MAX = 4_194_304
#: Plugins that are told of, and characters of a name or a place.
MOST, LONGEST = 500, 4096

FILE = "openclaw.sqlite"
RECORDS, LEASES = "config_machine_state", "state_leases"

_NAMED = {RECORDS, LEASES, "sqlite_master", None, "BEGIN", "COMMIT"}
_READS = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ}
_DELETES = {*_READS, sqlite3.SQLITE_DELETE, sqlite3.SQLITE_TRANSACTION}


def main() -> None:
    fence.die_with_parent()
    fence.drop_privileges()
    fence.set_limits(LIMITS)
    os.fchdir(int(sys.argv[2]))
    if sys.argv[1] == "read":
        sys.stdout.write(json.dumps(records()) + "\n")
    else:
        end_lease()


def records() -> list[list[str]] | None:
    if not is_there():
        return []
    with closing(opened("ro", _READS)) as store:
        if not is_plain(store, RECORDS):
            return None
        said = store.execute(f"SELECT value_json FROM {RECORDS} WHERE state_key = 'plugins.installedIndex'").fetchone()
    kept: dict[str, dict[str, str]] = json.loads(said[0])["index"]["installRecords"] if said else {}
    found = [(each.get("resolvedName"), each.get("installPath")) for each in kept.values()]
    return [[name[:LONGEST], place[:LONGEST]] for name, place in found[:MOST] if name and place]


def end_lease() -> None:
    if is_there():
        with closing(opened("rw", _DELETES)) as store:
            if is_plain(store, LEASES):
                store.execute(f"DELETE FROM {LEASES} WHERE scope = 'core:plugin-lifecycle'")
                store.commit()


def is_there() -> bool:
    try:
        return stat.S_ISREG(os.lstat(FILE).st_mode)
    except FileNotFoundError:
        return False


def opened(mode: str, allowed: set[int]) -> sqlite3.Connection:
    store = sqlite3.connect(f"file:{FILE}?mode={mode}", uri=True, timeout=1.0)
    store.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, VALUE_MAX)
    for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY"):
        store.execute(f"PRAGMA {pragma}")

    def authorize(action: int, table: str | None, *_: str | None) -> int:
        # What a view or a trigger would do is not allowed either: no function, no other table.
        is_fit = action in allowed and table in _NAMED
        return sqlite3.SQLITE_OK if is_fit else sqlite3.SQLITE_DENY

    store.set_authorizer(authorize)
    return store


def is_plain(store: sqlite3.Connection, table: str) -> bool:
    """It is a table, and nothing happens besides when it is written to."""
    found = store.execute("SELECT type FROM sqlite_master WHERE name = ? OR tbl_name = ?", (table, table)).fetchall()
    kinds = [kind for (kind,) in found]
    return kinds.count("table") == 1 and not {"view", "trigger"} & set(kinds)


if __name__ == "__main__":
    main()
