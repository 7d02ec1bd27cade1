"""What machines write of channels: whether they are connected, and why not. People's part is in `channels.py`."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from app.db.engine import DB
from app.domain.states import ChannelStatus


@dataclass(frozen=True, slots=True)
class ChannelState:
    """One channel as its watcher compares it with what the gateway says."""

    channel_id: UUID
    provider: str
    account_id: str
    enabled: bool
    #: Changes with whatever people change in the channel.
    updated_at: datetime
    status: ChannelStatus
    error: str | None


async def of_bot(bot_id: UUID) -> list[ChannelState]:
    """All channels of the bot."""
    rows = await DB.fetch(
        "SELECT c.id, c.provider, c.account_id, c.enabled, c.updated_at, s.status, s.error "
        "FROM channel c JOIN channel_state s ON s.channel = c.id WHERE c.bot = $1 ORDER BY c.id",
        bot_id,
    )
    return [
        ChannelState(
            row["id"], row["provider"], row["account_id"], row["enabled"], row["updated_at"],
            ChannelStatus(row["status"]), row["error"],
        )
        for row in rows
    ]  # fmt: skip


async def write(
    bot_id: UUID, channel_id: UUID, status: ChannelStatus, error: str | None, connected_at: datetime | None
) -> bool:
    """Writes what was seen; False where the row says so already, or is gone."""
    row = await DB.fetch_one(
        "UPDATE channel_state s SET status = $3::text, error = $4::text, changed_at = now(), last_connected_at = "
        "CASE WHEN $3::text = 'CONNECTED' THEN greatest(coalesce($5::timestamptz, now()), s.last_connected_at) "
        "ELSE s.last_connected_at END "
        "FROM channel c WHERE c.id = s.channel AND c.id = $2 AND c.bot = $1 "
        "AND (s.status, s.error) IS DISTINCT FROM ($3::text, $4::text) RETURNING s.channel",
        bot_id, channel_id, status.value, error, connected_at,
    )  # fmt: skip
    return row is not None


async def disconnect(bot_id: UUID, provider: str, error: str | None) -> bool:
    """None of the provider's channels is open, for a reason if there is one; whether that is news."""
    status = ChannelStatus.ERROR if error else ChannelStatus.DISCONNECTED
    rows = await DB.fetch(
        "UPDATE channel_state s SET status = $3::text, error = $4::text, changed_at = now() "
        "FROM channel c WHERE c.id = s.channel AND c.bot = $1 AND c.provider = $2 AND c.enabled "
        "AND (s.status, s.error) IS DISTINCT FROM ($3::text, $4::text) RETURNING s.channel",
        bot_id, provider, status.value, error,
    )  # fmt: skip
    return bool(rows)


async def disconnect_all(bot_id: UUID) -> bool:
    """Nothing of the bot is connected without its process; whether that is news."""
    rows = await DB.fetch(
        "UPDATE channel_state s SET status = 'DISCONNECTED', error = NULL, changed_at = now() "
        "FROM channel c WHERE c.id = s.channel AND c.bot = $1 "
        "AND (s.status <> 'DISCONNECTED' OR s.error IS NOT NULL) RETURNING s.channel",
        bot_id,
    )
    return bool(rows)
