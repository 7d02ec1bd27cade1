"""The fleet in one look: how many bots are in which status, and the machines that run them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.db.engine import DB
from app.domain.states import BotStatus, FleetHostState, Phase
from app.domain.viewer import Viewer
from app.services import pages
from app.services.pages import Order, Page, Stretch, Where


@dataclass(frozen=True, slots=True)
class Host:
    """A machine that runs bots, as it last said of itself."""

    id: UUID
    name: str
    state: FleetHostState
    capacity: int
    bot_count: int
    cpu_ratio: float
    memory_bytes: int
    version: str
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class Summary:
    """Bots the viewer may see, added up; places for starts are the machines'."""

    counts: dict[BotStatus, int]
    memory_bytes: int
    slots: int
    starting: int
    waiting: int


# $1: whether the viewer sees machines at all; $2: seconds after which one that is silent counts as lost.
_HOST = """
  n.public_id AS id, n.name,
  CASE WHEN n.heartbeat_at < now() - make_interval(secs => $2::float8) THEN 'LOST' ELSE n.state END AS state,
  n.capacity, n.cpu_ratio, n.memory_bytes, n.version, n.heartbeat_at,
  (SELECT count(*) FROM bot_process p
   WHERE p.node_id = n.name AND p.status IN ('STARTING', 'ACTIVE', 'STOPPING')) AS bot_count
"""
_BY_NAME = Order("hosts.name", "n.name", id="n.public_id")


class Fleet:
    """Reads what machines said, and adds up what bots do."""

    def __init__(self, lease: float) -> None:
        """The lease (s) of a machine: one that has not renewed it for so long is lost."""
        self._lease = lease

    async def summary(self, viewer: Viewer) -> Summary:
        """One query, whatever is asked of it."""
        rows = await DB.fetch(
            "SELECT p.status, count(*) AS n, coalesce(sum(p.memory_bytes), 0)::bigint AS memory, "
            "count(*) FILTER (WHERE p.phase = $3) AS waiting, (SELECT coalesce(sum(n.start_slots), 0) FROM node n "
            "WHERE n.state = 'READY' AND n.heartbeat_at >= now() - make_interval(secs => $4::float8)) AS slots "
            "FROM (VALUES (0)) AS one LEFT JOIN (bot_process p JOIN bot b ON b.id = p.bot) "
            "ON b.desired <> 'DELETED' AND ($1 OR b.owner = $2) GROUP BY p.status",
            viewer.sees_all, viewer.user_id, Phase.WAITING.value, self._lease,
        )  # fmt: skip
        found = {BotStatus(row["status"]): row for row in rows if row["status"] is not None}
        starting = found.get(BotStatus.STARTING, {"n": 0, "waiting": 0})
        return Summary(
            counts={status: found[status]["n"] if status in found else 0 for status in BotStatus},
            memory_bytes=sum(row["memory"] for row in rows),
            slots=rows[0]["slots"],
            starting=starting["n"] - starting["waiting"],
            waiting=starting["waiting"],
        )

    async def hosts(self, viewer: Viewer, stretch: Stretch) -> Page[Host]:
        """Machines by name; none for whom machines are not to see."""
        return await pages.read(_HOST, "node n", self._visible(viewer), _BY_NAME, stretch, _host)

    async def count_hosts(self, viewer: Viewer) -> int:
        return await pages.count("node n", Where("$1::boolean", viewer.sees_all))

    async def hosts_by_ids(self, viewer: Viewer, ids: list[UUID]) -> dict[UUID, Host]:
        where = self._visible(viewer)
        where.add("n.public_id = ANY({}::uuid[])", ids)
        rows = await DB.fetch(f"SELECT {_HOST} FROM node n WHERE {where}", *where.values)
        return {row["id"]: _host(row) for row in rows}

    def _visible(self, viewer: Viewer) -> Where:
        """Administrators and observers see machines; members see their bots, and nothing of where they run."""
        return Where("$1::boolean", viewer.sees_all, self._lease)


def _host(row: dict[str, Any]) -> Host:
    row["state"] = FleetHostState(row["state"])
    return Host(**row)
