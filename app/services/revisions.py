"""Changes of what hangs on a bot: its row is held for them, and its process reads its configuration again."""

from uuid import UUID

from app.db.engine import DB
from app.domain.errors import NotFound
from app.domain.events import BotEventKind
from app.domain.ports import Wake
from app.domain.viewer import Viewer
from app.services.recorder import Recorder


class Revisions:
    """Raises a bot's revision, tells its room and rings for its runner."""

    def __init__(self, recorder: Recorder, wake: Wake) -> None:
        self._recorder = recorder
        self._wake = wake

    async def hold(self, viewer: Viewer, bot_id: UUID | None, missing: NotFound) -> None:
        """Locks the bot until the caller's transaction ends, so that changes of one bot come one after the other.

        Args:
            missing: What is raised where the viewer may not change the bot: to it there is no such thing.
        """
        row = await DB.fetch_one(
            "SELECT id FROM bot WHERE id = $1 AND desired <> 'DELETED' AND ($2 OR owner = $3) FOR NO KEY UPDATE",
            bot_id, viewer.writes_all, viewer.user_id,
        )  # fmt: skip
        if row is None:
            raise missing

    async def changed(self, bot_id: UUID, *, is_configured: bool = True) -> None:
        """Says so, inside the caller's transaction.

        Args:
            is_configured: The change ends up in the configuration; else nothing has to be read again.
        """
        await DB.fetch(
            "UPDATE bot SET config_revision = config_revision + $2, updated_at = now() WHERE id = $1",
            bot_id, int(is_configured),
        )  # fmt: skip
        await self._recorder.tell(bot_id, BotEventKind.UPDATED)
        if is_configured:
            DB.after_commit(lambda: self._wake(bot_id))
