"""Linking a channel by a code that a person scans: `web.login.start` and `web.login.wait`, which both versions have.

While it lives the code is a secret: whoever scans it links an account. It is handed on, never kept and never logged.
What the gateway says beside it may quote anything, so its sentences are recognised here and not repeated.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio

from app.domain.errors import GatewayFailed
from app.domain.ports import LoginStep, Running
from app.domain.states import ChannelLoginState
from app.gateway import channel_status, running
from app.gateway.rpc import Connection

START, WAIT, LOGOUT = "web.login.start", "web.login.wait", "channels.logout"
#: The protocol of versions that take no `channel`: only one of their channels is linked so.
OLD_PROTOCOL = 3
#: Seconds the gateway has to get a code, and that one wait for the scan lasts; the connection has some more.
CODE_WITHIN, WAIT_FOR, GRACE = 30.0, 20.0, 15.0
#: Shortest wait the gateway knows, in seconds; one that answers sooner is not asked sooner.
LEAST_WAIT = 1.0
#: Seconds WhatsApp's codes live, as the library in OpenClaw has it: the first of a row, and each that follows.
FIRST_LIFE, NEXT_LIFE = timedelta(seconds=60), timedelta(seconds=20)
#: Rows of codes that are asked for before nobody is thought to be there; one takes about three minutes.
ROWS = 5
#: Most codes of a row that are handed on; WhatsApp gives six.
MAX_CODES = 10
#: Seconds a login may take in all, whatever the gateway answers.
LONGEST = 20 * 60.0
#: Longest code that is handed on, in characters; new OpenClaw takes back none that is longer.
MAX_CODE = 16 * 1024

_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}", re.ASCII)
_LINKED = re.compile(r"already linked|recovered the existing", re.IGNORECASE)
_SHOWN_BEFORE = re.compile(r"already active", re.IGNORECASE)
_WAITING = re.compile(r"still waiting|QR refreshed", re.IGNORECASE)
#: The row of codes is over, and there can be another one.
_OVER = re.compile(
    r"expired|no active|logged out|scan a new|QR refs|\b408\b|ended without|replaced by a newer", re.IGNORECASE
)
_NO_CODE = "the bot's gateway got no code: its provider could not be reached, or refused; the bot's log may say why"
_BROKEN = "the account was not linked; the bot's log may say why"
_NOBODY = "nobody scanned a code in time; begin anew"
_NOT_OPENED = "the bot's gateway has not opened the channel; its `errorMessage` says why"


class Logins:
    """Speaks to any number of gateways on this machine.

    Args:
        homes: The folder with the bots' homes, by agentId.
    """

    def __init__(self, homes: Path) -> None:
        self._homes = homes

    async def follow(self, gateway: Running, provider: str, account_id: str) -> AsyncGenerator[LoginStep]:
        """Every step up to LINKED; a channel that is linked already says just that. Raises `GatewayFailed`."""
        async with running.connect(self._homes, gateway) as connection:
            row = _Row(connection, provider, account_id)
            if not await row.is_to_be_linked():
                yield LoginStep(ChannelLoginState.LINKED)
                return
            yield LoginStep(ChannelLoginState.WAITING)
            for _ in range(ROWS):
                async for step in row.follow():
                    yield step
                    if step.state is ChannelLoginState.LINKED:
                        return
            raise GatewayFailed(_NOBODY)


class _Row:
    """Codes that follow one another, until one is scanned or the last one ended."""

    def __init__(self, connection: Connection, provider: str, account_id: str) -> None:
        self._connection = connection
        self._is_old = connection.protocol == OLD_PROTOCOL
        self._account = {"channel": provider, "accountId": account_id}
        #: Of which login this is about, where the gateway gives it a name.
        self._session: dict[str, str] = {}
        self._code = ""
        self._ends_at: datetime | None = None
        self._deadline = anyio.current_time() + LONGEST
        self._asks_at = 0.0

    async def is_to_be_linked(self) -> bool:
        """The account is not linked; one whose provider ended that is made to forget it.

        Asked first, because to begin stops the channel, also one that is linked and well (old OpenClaw).
        """
        answer = await self._connection.call("channels.status", {"probe": False})
        account = channel_status.account_in(answer, self._account["channel"], self._account["accountId"])
        if account is None:
            raise GatewayFailed(_NOT_OPENED)
        if account.get("linked") is not True:
            return True
        if not self._is_old:
            return account.get("running") is not True
        last = account.get("lastDisconnect")
        if not isinstance(last, Mapping) or last.get("loggedOut") is not True:
            return False
        await self._connection.call(LOGOUT, self._account)
        return True

    async def follow(self) -> AsyncGenerator[LoginStep]:
        """Ends without LINKED where the row is over."""
        self._code, self._session = "", {}
        answer = await self._ask(START, {"timeoutMs": int(CODE_WITHIN * 1000)}, CODE_WITHIN)
        if _is_linked(answer):
            yield LoginStep(ChannelLoginState.LINKED)
            return
        if not self._take(answer, None if _SHOWN_BEFORE.search(_said(answer)) else FIRST_LIFE):
            raise GatewayFailed(_NO_CODE)
        yield self._step()
        codes = 1
        while anyio.current_time() < self._deadline:
            answer = await self._wait()
            if _is_linked(answer):
                yield LoginStep(ChannelLoginState.LINKED)
                return
            if self._take(answer, NEXT_LIFE):
                codes += 1
                if codes > MAX_CODES:
                    yield LoginStep(ChannelLoginState.WAITING)
                    return
                yield self._step()
            elif not _WAITING.search(_said(answer)):
                if not _OVER.search(_said(answer)):
                    raise GatewayFailed(_BROKEN)
                yield LoginStep(ChannelLoginState.WAITING)
                return
            elif self._has_ended():
                # Old OpenClaw keeps the codes that follow the first to itself, until the row is over.
                self._ends_at = None
                yield LoginStep(ChannelLoginState.WAITING)
        raise GatewayFailed(_NOBODY)

    async def _wait(self) -> dict[str, Any]:
        await anyio.sleep_until(self._asks_at)
        self._asks_at = anyio.current_time() + LEAST_WAIT
        left = WAIT_FOR if self._ends_at is None else (self._ends_at - datetime.now(UTC)).total_seconds()
        for_ = max(LEAST_WAIT, min(WAIT_FOR, left))
        params: dict[str, Any] = {"timeoutMs": int(for_ * 1000)}
        if not self._is_old:
            params |= {"currentQrDataUrl": self._code, **self._session}
        return await self._ask(WAIT, params, for_)

    async def _ask(self, method: str, params: dict[str, Any], within: float) -> dict[str, Any]:
        account = {"accountId": self._account["accountId"]} if self._is_old else self._account
        return await self._connection.call(method, {**account, **params}, within + GRACE)

    def _take(self, answer: dict[str, Any], life: timedelta | None) -> bool:
        """Whether there is a code in the answer that was not there before."""
        code, session = answer.get("qrDataUrl"), answer.get("sessionKey")
        if isinstance(session, str):
            self._session = {"sessionKey": session}
        if not isinstance(code, str) or len(code) > MAX_CODE or not _PICTURE.fullmatch(code) or code == self._code:
            return False
        self._code = code
        self._ends_at = None if life is None else datetime.now(UTC) + life
        return True

    def _step(self) -> LoginStep:
        return LoginStep(ChannelLoginState.CODE, self._code, self._ends_at)

    def _has_ended(self) -> bool:
        return self._ends_at is not None and datetime.now(UTC) >= self._ends_at


def _is_linked(answer: dict[str, Any]) -> bool:
    return answer.get("connected") is True or _LINKED.search(_said(answer)) is not None


def _said(answer: dict[str, Any]) -> str:
    said = answer.get("message")
    return said[:1000] if isinstance(said, str) else ""
