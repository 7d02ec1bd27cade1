"""Machines that supervise bots: one row each, leased by the folder that holds the bots' homes."""

from uuid import UUID

from app import __version__
from app.db.engine import DB

#: Seconds after which a lease that was not renewed may be taken.
LEASE = 15.0


async def lease(name: str, holder: UUID) -> bool:
    """Takes or renews the machine's row for a folder of bots; False while another folder's server has it.

    The folder's own lock lets one process in, so the same folder has its lease back at once, also after a kill.
    """
    row = await DB.fetch_one(
        "INSERT INTO node (name, state, epoch, version, heartbeat_at, created_at, holder) "
        "VALUES ($1, 'READY', 1, $2, now(), now(), $3) ON CONFLICT (name) DO UPDATE SET heartbeat_at = now(), "
        "version = excluded.version, holder = excluded.holder, "
        "epoch = node.epoch + (node.holder IS DISTINCT FROM excluded.holder)::int "
        "WHERE node.holder IS NULL OR node.holder = $3 OR node.heartbeat_at < now() - make_interval(secs => $4) "
        "RETURNING name",
        name, __version__, holder, LEASE,
    )  # fmt: skip
    return row is not None


async def take_over(name: str, holder: UUID) -> list[str]:
    """Bots in this folder belong to this machine, whatever it was called before; the earlier names."""
    rows = await DB.fetch(
        "UPDATE bot_process p SET node_id = $1 FROM node n "
        "WHERE p.node_id = n.name AND n.holder = $2 AND n.name <> $1 RETURNING n.name",
        name, holder,
    )  # fmt: skip
    return sorted({row["name"] for row in rows})
