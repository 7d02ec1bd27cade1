"""Machines that supervise bots, as each says of itself."""

from app import __version__
from app.db.engine import DB


async def beat(name: str) -> None:
    """This machine lives: its row, made when it first appears."""
    await DB.fetch(
        "INSERT INTO node (name, state, epoch, version, heartbeat_at, created_at) "
        "VALUES ($1, 'READY', 1, $2, now(), now()) "
        "ON CONFLICT (name) DO UPDATE SET heartbeat_at = now(), version = excluded.version",
        name, __version__,
    )  # fmt: skip
