# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""Whoever forgets to seal is told by the type checker. Nothing here runs.

`scripts/check` holds it: a line that was accepted would not need its comment, and that is an error here.
"""

from uuid import UUID

from app.domain.ports import Wake
from app.domain.viewer import Viewer
from app.services import bot_settings, keys, models
from app.services.bots import Bots
from app.services.channels import Credentials
from app.vault import Place, Secret, Vault


async def forgotten(plain: str, secret: Secret, row: UUID) -> None:
    Credentials(sealed={"botToken": plain})  # pyright: ignore[reportArgumentType]
    Credentials(sealed={"botToken": secret})  # pyright: ignore[reportArgumentType]
    await keys.keep_gateway_token(row, plain, row, 1)  # pyright: ignore[reportArgumentType]
    await keys.keep_gateway_token(row, secret, row, 1)  # pyright: ignore[reportArgumentType]


async def forgotten_for_bots_and_models(
    bots: Bots, viewer: Viewer, wake: Wake, bot: bot_settings.Draft, model: models.Draft, plain: str, row: UUID
) -> None:
    await bots.create(viewer, bot, plain, row, 1)  # pyright: ignore[reportArgumentType]
    await models.save(viewer, wake, model, plain, 1, row)  # pyright: ignore[reportArgumentType]


async def sealed(vault: Vault, plain: str, place: Place, row: UUID) -> None:
    Credentials(sealed={"botToken": vault.seal(plain, place)})
    await keys.keep_gateway_token(row, vault.seal(plain, place), row, vault.active_key_id)
