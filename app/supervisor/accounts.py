"""A bot's channels and bindings as its configuration takes them in, with the secrets in plain text."""

from uuid import UUID

from app.gateway.channels import Account, Rule
from app.services import bindings, channels, keys
from app.vault import Vault


async def read(vault: Vault, bot_id: UUID) -> list[Account]:
    """The accounts the bot's process is to open, and without their secrets those it is to leave closed.

    Raises:
        CredentialsUnreadable: A secret cannot be read; a bot is not started with half of its channels.
    """
    return [
        Account(
            provider=row.provider,
            account_id=row.account_id,
            enabled=row.enabled,
            settings=row.settings,
            credentials=await _credentials(vault, row),
        )
        for row in await channels.rendered(bot_id)
    ]


async def _credentials(vault: Vault, row: channels.Rendered) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, sealed in row.credentials.items():
        place = keys.channel_place(row.id, row.provider, key)
        what = f"the credential {key!r} of the channel {row.name!r} ({row.provider})"
        found[key] = (await keys.unseal(vault, sealed, place, what)).reveal()
    return found


async def rules(bot_id: UUID) -> list[Rule]:
    """The bot's bindings."""
    return [
        Rule(
            provider=row.provider,
            account_id=row.account_id,
            peer_kind=row.peer_kind,
            peer_id=row.peer_id,
            priority=row.priority,
        )
        for row in await bindings.rendered(bot_id)
    ]
