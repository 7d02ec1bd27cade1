"""What happens after a failure, decided by a pure function."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.states import BotStatus, Reason, RestartMode
from app.supervisor.restarts import MAX_DELAY, Policy, after_failure

ALWAYS = Policy(RestartMode.ALWAYS, 5, 1.0)


def decide(policy: Policy = ALWAYS, reason: Reason = Reason.CRASHED, **more: object):
    given_ = {"is_clean": False, "in_a_row": 1, "in_window": 1, "chance": 0.0} | more
    return after_failure(policy, reason, **given_)


def test_pauses_double_from_the_policys_first_to_five_minutes() -> None:
    pauses = [decide(in_a_row=n).delay for n in range(1, 12)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(st.integers(1, 10_000), st.floats(-1, 1), st.floats(0.1, 300))
def test_a_pause_is_never_longer_than_the_longest_and_its_jitter(in_a_row: int, chance: float, first: float) -> None:
    delay = decide(Policy(RestartMode.ALWAYS, 5, first), in_a_row=in_a_row, chance=chance).delay
    assert delay is not None
    assert 0 < delay <= MAX_DELAY * 1.2


@pytest.mark.parametrize("reason", [Reason.CONFIG_INVALID, Reason.CREDENTIALS_UNREADABLE, Reason.BINARY_MISSING])
def test_what_only_a_person_can_mend_is_not_tried_again(reason: Reason) -> None:
    verdict = decide(reason=reason)
    assert (verdict.status, verdict.reason, verdict.delay) == (BotStatus.ERROR, reason, None)


def test_more_failures_than_the_policy_allows_are_a_crash_loop_that_is_tried_now_and_then() -> None:
    assert decide(in_window=5).status is BotStatus.BACKOFF
    verdict = decide(in_window=6)
    assert (verdict.status, verdict.reason, verdict.delay) == (BotStatus.ERROR, Reason.CRASH_LOOP, MAX_DELAY)


def test_never_leaves_the_bot_in_error() -> None:
    verdict = decide(Policy(RestartMode.NEVER, 5, 1.0))
    assert (verdict.status, verdict.reason) == (BotStatus.ERROR, Reason.NOT_RESTARTED)


def test_on_failure_restarts_a_fault_but_no_clean_exit() -> None:
    policy = Policy(RestartMode.ON_FAILURE, 5, 1.0)
    assert decide(policy, is_clean=True).reason is Reason.NOT_RESTARTED
    assert decide(policy, is_clean=False).status is BotStatus.BACKOFF


def test_always_restarts_a_clean_exit_too() -> None:
    assert decide(is_clean=True).status is BotStatus.BACKOFF
