"""`clawnet channels login`: links a channel to an account by a code that the terminal shows.

Straight to the bot's gateway, as the server on this machine would: no token is needed, and no server has to run.
"""

import argparse
import os
import sys
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from app import log, settings
from app.commands import qr
from app.db.engine import DB
from app.domain.errors import Denied, NotFound, Refusal
from app.domain.ports import LoginStep
from app.domain.states import ChannelLoginState, TokenScope, UserRole
from app.domain.viewer import Viewer
from app.foundations import database, encryption_key, protect
from app.gateway import process
from app.gateway.channel_rules import InstalledRules
from app.gateway.login import Logins as GatewayLogins
from app.graphql.types import node
from app.services import audit, keys
from app.services.channels import Channels
from app.services.logins import Logins
from app.services.recorder import Recorder
from app.services.revisions import Revisions
from app.settings import Settings

#: Who sits at the machine may do everything.
_VIEWER = Viewer(UUID(int=0), "", UserRole.ADMIN, frozenset(TokenScope))


async def run(arguments: argparse.Namespace) -> int:
    """Shows each code until one is scanned."""
    protect()
    wanted = settings.take(os.environ)
    log.configure(wanted.clawnet_log_format, "warning")
    async with database(wanted, _say):
        try:
            await _login(await _logins(wanted), _channel_id(arguments.channel))
        except (Refusal, Denied) as refusal:
            print(f"clawnet: {refusal}", file=sys.stderr)
            return 1
    return 0


async def _login(logins: Logins, channel_id: UUID) -> None:
    with audit.acting(audit.Actor(address=f"command line, uid {os.geteuid()}")):
        login = await logins.begin(_VIEWER, channel_id)
    steps: AsyncGenerator[LoginStep] = logins.follow(login)
    async with aclosing(steps):
        async for step in steps:
            _show(step)


def _show(step: LoginStep) -> None:
    match step.state:
        case ChannelLoginState.CODE if step.code:
            print("\n".join(qr.lines(step.code, sys.stdout.encoding)))
            left = step.code_ends_at and round((step.code_ends_at - datetime.now(UTC)).total_seconds())
            _say(f"scan it with the app of the account{f'; it ends in {left} s' if left else ''}")
        case ChannelLoginState.LINKED:
            print("linked", flush=True)
        case _:
            _say("waiting for a code …")


async def _logins(wanted: Settings) -> Logins:
    homes = wanted.openclaw_base_path / "bots"

    async def is_here(bot_id: UUID) -> bool:
        return await _runs_here(homes, bot_id)

    recorder = Recorder(_wake)
    channels = Channels(Revisions(recorder, _ring), InstalledRules(lambda: wanted.clawnet_openclaw_version))
    vault = await keys.open_vault(await encryption_key(wanted, _say))
    return Logins(vault, channels, recorder, GatewayLogins(homes), is_here)


async def _runs_here(homes: Path, bot_id: UUID) -> bool:
    row = await DB.fetch_one("SELECT agent_id FROM bot WHERE id = $1", bot_id)
    held = await process.holder(homes / row["agent_id"]) if row else None
    if held is None:
        return False
    with held:
        return True


def _channel_id(text: str) -> UUID:
    """An identity as the API shows it, or the bare key in it."""
    try:
        return UUID(text)
    except ValueError:
        pass
    try:
        return node.require(text, "Channel")
    except NotFound as error:
        raise NotFound(f"there is no such channel {text!r} (its id is what the API calls `id`)") from error


def _wake(names: Iterable[str]) -> None:
    """Servers hear of it with their next look at the rooms."""


def _ring(bot_id: UUID) -> None:
    """Nothing is wanted of the bot."""


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
