"""What happens after a failure: a pure function of the policy and the past, so that tests need no clock."""

from dataclasses import dataclass

from app.domain.states import BotStatus, Reason, RestartMode

#: Longest pause between two tries, in seconds; also the pause of one that loops but is still wanted.
MAX_DELAY = 300.0
#: Share by which a pause is lengthened or shortened, so that bots that fell together do not rise together.
JITTER = 0.2
#: Seconds of being ACTIVE after which earlier failures are forgotten.
FORGET_AFTER = 600.0

#: Failures that no second try mends: a person has to change something first.
_FINAL = frozenset({Reason.CONFIG_INVALID, Reason.CREDENTIALS_UNREADABLE, Reason.BINARY_MISSING})


@dataclass(frozen=True, slots=True)
class Policy:
    """What an owner wants done after a crash: at most so many restarts in a window, the first after a pause (s)."""

    mode: RestartMode
    max_restarts: int
    backoff: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The status to go to, why, and the seconds until the next try; None waits for a person."""

    status: BotStatus
    reason: Reason
    delay: float | None


def after_failure(
    policy: Policy, reason: Reason, *, is_clean: bool, in_a_row: int, in_window: int, chance: float
) -> Verdict:
    """Decides about a bot that is wanted and failed.

    Args:
        is_clean: It ended with exit code 0.
        in_a_row: Failures since it was last well, this one included; from 1.
        in_window: Failures within the policy's window, this one included.
        chance: A random number from -1 to 1, for the jitter.
    """
    if reason in _FINAL:
        return Verdict(BotStatus.ERROR, reason, None)
    if reason is Reason.PORT_IN_USE:
        # Every port of ours is taken by strangers: that ends when they leave, so look now and then.
        return Verdict(BotStatus.ERROR, reason, MAX_DELAY)
    if policy.mode is RestartMode.NEVER or (policy.mode is RestartMode.ON_FAILURE and is_clean):
        return Verdict(BotStatus.ERROR, Reason.NOT_RESTARTED, None)
    if in_window > policy.max_restarts:
        return Verdict(BotStatus.ERROR, Reason.CRASH_LOOP, MAX_DELAY)
    return Verdict(BotStatus.BACKOFF, reason, _delay(policy.backoff, in_a_row, chance))


def _delay(first: float, in_a_row: int, chance: float) -> float:
    # Doubling stops long before it could overflow.
    return min(MAX_DELAY, first * 2 ** min(in_a_row - 1, 16)) * (1 + JITTER * chance)
