"""What a person should know, kept until read and said in the person's own room."""

from uuid import UUID

from app.db.engine import DB
from app.domain import rooms as names
from app.domain.ids import new_id
from app.domain.ports import WakeRooms
from app.domain.states import NotificationKind
from app.services import rooms

#: Longest title and body that are kept.
MAX_TITLE, MAX_BODY = 200, 2_000


async def add(
    wake: WakeRooms, user_id: UUID, kind: NotificationKind, title: str, body: str | None, bot_id: UUID | None = None
) -> None:
    """Keeps a notification and says so, inside the caller's transaction."""
    identity = new_id()
    title, body = title[:MAX_TITLE], body[:MAX_BODY] if body else None
    await DB.fetch(
        'INSERT INTO notification (id, "user", kind, title, body, bot, created_at) '
        "VALUES ($1, $2, $3, $4, $5, $6, now())",
        identity, user_id, kind.value, title, body, bot_id,
    )  # fmt: skip
    payload = {"notificationId": identity, "kind": kind, "title": title, "body": body, "botId": bot_id}
    await rooms.append(wake, [names.notifications(user_id)], "CREATED", payload, user_id)


async def add_to_administrators(wake: WakeRooms, kind: NotificationKind, title: str, body: str | None) -> None:
    """As `add`, for everybody who administers this installation now."""
    # In one order, so that two that tell them at the same moment do not wait for each other.
    for row in await DB.fetch("SELECT id FROM app_user WHERE role = 'ADMIN' AND disabled_at IS NULL ORDER BY id"):
        await add(wake, row["id"], kind, title, body)


async def unread(user_id: UUID) -> int:
    row = await DB.fetch_one('SELECT count(*) AS n FROM notification WHERE "user" = $1 AND read_at IS NULL', user_id)
    return 0 if row is None else row["n"]
