"""What a gateway says of its channels, in our words: both versions' `channels.status`, and why a channel is down."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from app.domain.states import ChannelStatus

#: Longest reason of the gateway's that is looked at, and that is passed on, in characters.
MAX_LOOK, MAX_REASON = 2000, 300
#: Characters of it that secrets are taken out of: more than the longest secret in all its length, so that none is cut.
MAX_RAW = 40_000

#: What stands in OpenClaw's reasons, and what it means for people. The first that fits is taken.
_MEANINGS = (
    (
        re.compile(r"(crash|restart)-loop breaker|autostart.suppressed", re.IGNORECASE),
        "OpenClaw holds its channels back after several crashes; they are started again once the bot runs steadily",
    ),
    (
        re.compile(
            r"\b401\b|unauthori[sz]ed|invalid.?auth|invalid token|TOKEN_INVALID|token.*(revoked|expired)", re.IGNORECASE
        ),
        "the provider refuses the credentials",
    ),
    (
        re.compile(r"\b409\b|conflict|terminated by other", re.IGNORECASE),
        "somebody else receives this account's messages with the same credentials",
    ),
    (
        re.compile(r"no channel plugin|not installed|plugin.*(trust|load)", re.IGNORECASE),
        "OpenClaw has no plugin for the channel that it can run",
    ),
    (
        re.compile(r"\bnot linked\b|\blogged out\b", re.IGNORECASE),
        "the channel is not linked to an account: scan its code (`channelLogin`, or `clawnet channels login`)",
    ),
)
_SUPPRESSED, _UNLINKED = _MEANINGS[0], _MEANINGS[-1]
#: What looks like a secret. A reason may quote one that was replaced since, so that nobody can look it up any more.
_SECRET = re.compile(r"(?=[\w:.-]*[0-9])(?=[\w:.-]*[A-Za-z])[\w:.-]{20,}", re.ASCII)
_ONE_OF_THEM = (
    "somebody else receives the messages of one of the bot's accounts with the same credentials; "
    "OpenClaw does not say of which"
)
_NOT_OPENED = "OpenClaw does not open the channel; its log says why"
_STOPPED = "the channel stopped and gives no reason; the bot's log may have one"


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found out about one account."""

    status: ChannelStatus
    #: Why the status is ERROR, in words for people; `raw` is what the gateway said, with every secret still in it.
    error: str | None = None
    raw: str | None = field(default=None, repr=False)
    connected_at: datetime | None = None
    #: OpenClaw does not start the channel by itself, but does when it is told to.
    is_suppressed: bool = False
    #: It runs, and this version says no more unless it is asked to try the account out (`probe`).
    is_unsure: bool = False


def account_in(answer: dict[str, Any], provider: str, account_id: str) -> dict[str, Any] | None:
    """What an answer to `channels.status` says of one account; None where it says nothing."""
    listed: list[object] = _list(_object(answer.get("channelAccounts")).get(provider))
    return next((each for each in map(_object, listed) if each.get("accountId") == account_id), None)


def read(answer: dict[str, Any], provider: str, account_id: str, *, is_settled: bool) -> Seen:
    """One account's state in an answer to `channels.status`.

    Args:
        is_settled: The gateway has had its time: what it does not open by now it will not open.
    """
    account = account_in(answer, provider, account_id)
    if account is None:
        return Seen(ChannelStatus.ERROR, _NOT_OPENED) if is_settled else Seen(ChannelStatus.CONNECTING)
    if account.get("enabled") is False or account.get("stateReason") == "disabled":
        return Seen(ChannelStatus.DISCONNECTED)
    reason = _reason(account)
    if _SUPPRESSED[0].search(reason[:MAX_LOOK]) and account.get("running") is not True:
        return Seen(ChannelStatus.ERROR, _SUPPRESSED[1], is_suppressed=True)
    if account.get("lifecycle") == "blocked":
        return _failed(reason or "the channel is blocked")
    return _running(account, reason) if account.get("running") is True else _down(account, reason, is_settled)


def _reason(account: dict[str, Any]) -> str:
    """What went wrong; new OpenClaw calls it no error that nobody has linked an account yet."""
    error, state = account.get("lastError"), account.get("stateReason")
    raw = state if not error and isinstance(state, str) and _UNLINKED[0].search(state[:MAX_LOOK]) else error
    # Old OpenClaw says "disabled" for a moment longer of a channel that was switched on again.
    return raw[:MAX_RAW].strip() if isinstance(raw, str) and raw != "disabled" else ""


def _running(account: dict[str, Any], reason: str) -> Seen:
    connected, lifecycle = account.get("connected"), account.get("lifecycle")
    if connected is True and lifecycle in (None, "ready"):
        return _connected(account)
    if reason:
        return _failed(reason)
    if connected is False or lifecycle not in (None, "ready"):
        return Seen(ChannelStatus.CONNECTING)
    # Webhooks of the new version say `ready` and no more; the old version does not say whether it is connected.
    return _connected(account) if lifecycle == "ready" else _tried_out(account)


def _tried_out(account: dict[str, Any]) -> Seen:
    probe = _object(account.get("probe"))
    if probe.get("ok") is False:
        said = probe.get("error")
        return _failed(f"{said if isinstance(said, str) else ''} {probe.get('status') or ''}".strip() or _STOPPED)
    seen = _connected(account)
    return seen if probe else Seen(seen.status, connected_at=seen.connected_at, is_unsure=True)


def _down(account: dict[str, Any], reason: str, is_settled: bool) -> Seen:
    if account.get("lifecycle") in ("starting", "recovering") or account.get("restartPending") is True:
        return _failed(reason) if reason else Seen(ChannelStatus.CONNECTING)
    if reason:
        return _failed(reason)
    return Seen(ChannelStatus.ERROR, _STOPPED) if is_settled else Seen(ChannelStatus.CONNECTING)


def _connected(account: dict[str, Any]) -> Seen:
    return Seen(ChannelStatus.CONNECTED, connected_at=_when(account.get("lastConnectedAt")))


def conflict(said: str, *, is_certain: bool) -> Seen:
    """Somebody else polls: what the log said of it.

    Args:
        is_certain: The bot has no other account that it could be about.
    """
    seen = _failed(f"conflict: {said}")
    return seen if is_certain else Seen(seen.status, _ONE_OF_THEM, seen.raw)


def _failed(reason: str) -> Seen:
    said = reason[:MAX_LOOK]
    meaning = next((words for pattern, words in _MEANINGS if pattern.search(said)), "the channel failed")
    return Seen(ChannelStatus.ERROR, meaning, reason[:MAX_RAW])


def sentence(seen: Seen, raw: str | None) -> str | None:
    """Why, for people: our words, then the gateway's. `raw` is `seen.raw` with the bot's secrets taken out.

    Known secrets are found in what the gateway said word for word, so that comes first and the rest here.
    """
    line = "".join(filter(str.isprintable, " ".join((raw or "")[:MAX_LOOK].split())))
    if seen.error is None or not line:
        return seen.error
    return f"{seen.error} ({_SECRET.sub('***', line)[:MAX_REASON]})"


def _when(value: object) -> datetime | None:
    """Milliseconds since 1970, if they are a time at all."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
