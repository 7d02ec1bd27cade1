"""What hangs on a bot, channels and bindings say: read under the rights that the viewer has in the bot itself."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

from app.db.engine import DB
from app.domain.errors import NotFound
from app.domain.viewer import Viewer
from app.services import pages
from app.services.pages import Order, Page, Stretch, Where

T = TypeVar("T")


def visible(viewer: Viewer) -> Where:
    """Bots the viewer may see. One that is being deleted is gone for everybody but its runner."""
    return Where("b.desired <> 'DELETED' AND ($1 OR b.owner = $2)", viewer.sees_all, viewer.user_id)


class Parts(Generic[T]):
    """Rows of one table that hang on bots.

    Args:
        columns: What `make` needs of each row, as SQL after SELECT.
        source: What is read, as SQL after FROM; the part's table is `x`, its bot's is `b`.
        name: Of the list, as it stands in cursors.
        make: Turns a row into what it stands for.
        missing: What is raised where there is none that the viewer may see.
    """

    def __init__(
        self,
        columns: str,
        source: str,
        name: str,
        make: Callable[[dict[str, Any]], T],
        missing: Callable[[], NotFound],
    ) -> None:
        self._columns = columns
        self._source = source
        self._oldest_first = Order(name, "x.created_at", pages.time, "x.id")
        self._make = make
        self._missing = missing

    async def by_ids(self, viewer: Viewer, ids: list[UUID]) -> dict[UUID, T]:
        """Those that there are and that the viewer may see."""
        where = visible(viewer)
        where.add("x.id = ANY({}::uuid[])", ids)
        rows = await DB.fetch(f"SELECT {self._columns} FROM {self._source} WHERE {where}", *where.values)
        return {row["id"]: self._make(row) for row in rows}

    async def require(self, viewer: Viewer, key: UUID) -> T:
        found = (await self.by_ids(viewer, [key])).get(key)
        if found is None:
            raise self._missing()
        return found

    async def page(self, viewer: Viewer, bot_id: UUID, stretch: Stretch) -> Page[T]:
        """A page of what hangs on one bot, the oldest first."""
        where, order = self._of(viewer, bot_id), self._oldest_first
        return await pages.read(self._columns, self._source, where, order, stretch, self._make)

    async def count(self, viewer: Viewer, bot_id: UUID) -> int:
        return await pages.count(self._source, self._of(viewer, bot_id))

    def _of(self, viewer: Viewer, bot_id: UUID) -> Where:
        where = visible(viewer)
        where.add("x.bot = {}", bot_id)
        return where
