"""Token buckets, and what they are asked about."""

import math
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.errors import RateLimited
from app.services.limits import MINUTE, Buckets, Limits, caller, network


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def refused(limits: Limits, ask: str, *arguments: object) -> RateLimited:
    with pytest.raises(RateLimited) as caught:
        getattr(limits, ask)(*arguments)
    return caught.value


def test_a_minute_s_worth_goes_at_once_and_the_rest_evenly() -> None:
    buckets = Buckets(60)
    for _ in range(60):
        assert buckets.wait("a", 1, 0.0) == 0
        buckets.take("a", 1, 0.0)
    assert buckets.wait("a", 1, 0.0) == pytest.approx(1.0)
    assert buckets.wait("a", 30, 0.0) == pytest.approx(30.0)
    assert buckets.wait("a", 1, 1.0) == 0
    assert buckets.wait("b", 60, 0.0) == 0
    assert buckets.level("a", 30.0).left == pytest.approx(30)
    assert buckets.level("a", 30.0).full_in == pytest.approx(30)
    assert buckets.level("a", 500.0).left == 60


def test_what_a_full_bucket_does_not_hold_can_never_be_had() -> None:
    assert Buckets(60).wait("a", 61, 0.0) == math.inf


def test_a_bucket_that_holds_nothing_lets_everything_through() -> None:
    buckets = Buckets(0)
    for _ in range(1_000):
        assert buckets.wait("a", 10**9, 0.0) == 0
        buckets.take("a", 10**9, 0.0)
    assert len(buckets) == 0


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=60),
    st.floats(0, 1e7),
)
def test_no_minute_sees_more_than_two_allowances_and_waiting_as_told_is_enough(
    a_minute: int, asks: list[tuple[float, int]], start: float
) -> None:
    buckets, now = Buckets(a_minute), start
    taken: list[tuple[float, int]] = []
    for pause, amount in asks:
        now += pause
        wait = buckets.wait("a", amount, now)
        if math.isinf(wait):
            assert amount > a_minute
            continue
        now += wait
        assert buckets.wait("a", amount, now) == 0
        buckets.take("a", amount, now)
        taken.append((now, amount))
        assert sum(n for at, n in taken if at > now - MINUTE) <= 2 * a_minute + 1e-3


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    buckets = Buckets(10)
    buckets.take("a", 10, 100.0)
    assert buckets.wait("a", 1, 50.0) > 0


def test_memory_is_bounded_and_the_one_not_heard_of_for_longest_begins_anew() -> None:
    buckets = Buckets(5, most=3)
    for key in "abc":
        buckets.take(key, 5, 0.0)
    buckets.take("a", 0, 0.0)
    buckets.take("d", 5, 0.0)
    assert len(buckets) == 3
    assert [buckets.wait(key, 5, 0.0) == 0 for key in "abcd"] == [False, True, False, False]
    for number in range(10_000):
        buckets.take(f"n{number}", 1, 0.0)
    assert len(buckets) == 3


def test_queries_and_mutations_have_buckets_of_their_own() -> None:
    clock = Clock()
    limits = Limits(query=100, mutation=2, clock=clock)
    limits.charge_query("mia", 100)
    limits.charge_mutation("mia", 2)
    assert refused(limits, "charge_query", "mia", 10).wait == pytest.approx(6)
    assert refused(limits, "charge_mutation", "mia", 1).wait == pytest.approx(30)
    limits.charge_query("sven", 100)
    clock.now += 30
    limits.charge_mutation("mia", 1)
    limits.charge_query("mia", 50)


def test_a_refusal_says_what_was_asked_what_there_is_and_how_long_to_wait() -> None:
    limits = Limits(query=100, clock=Clock())
    limits.charge_query("mia", 95)
    said = refused(limits, "charge_query", "mia", 10)
    assert said.message == "this costs 10 of the 100 you may use in a minute; try again in 3 s"
    never = refused(limits, "charge_query", "mia", 101)
    assert never.message == "this costs 101 of the 100 you may use in a minute; that can never be"
    assert math.isinf(never.wait)


def test_what_was_refused_takes_nothing() -> None:
    clock = Clock()
    limits = Limits(query=100, sign_in=1, clock=clock)
    limits.charge_query("mia", 100)
    for _ in range(1_000):
        refused(limits, "charge_query", "mia", 100)
    clock.now += 60
    limits.charge_query("mia", 100)


def test_sign_ins_are_counted_by_person_and_by_address() -> None:
    clock = Clock()
    limits = Limits(sign_in=3, clock=clock)
    for number in range(3):
        limits.sign_in("mia@example.com", f"10.0.0.{number}")
    # The person's are used up, from wherever it is and however the address is written.
    assert refused(limits, "sign_in", " MIA@Example.com ", "10.9.9.9").wait == pytest.approx(20)
    # Other people sign in, also from where Mia was; the address has its own allowance.
    for name in ("sven", "nina"):
        limits.sign_in(f"{name}@example.com", "10.0.0.1")
    refused(limits, "sign_in", "olga@example.com", "10.0.0.1")
    # What the address was refused costs the person nothing.
    for number in range(3):
        limits.sign_in("olga@example.com", f"10.0.1.{number}")


def test_ten_thousand_sign_ins_are_refused_at_once_and_remembered_in_little() -> None:
    limits = Limits(sign_in=20, clock=Clock())
    for number in range(20):
        limits.sign_in(f"{number}@example.com" * 50, "203.0.113.9")
    for number in range(20, 10_000):
        assert 0 < refused(limits, "sign_in", f"{number}@example.com" * 50, "203.0.113.9").wait <= 3
    assert len(limits._email) == 20
    assert all(len(key) <= 320 for key in limits._email._kept)


def test_without_limits_everything_passes() -> None:
    limits = Limits()
    for _ in range(500):
        limits.sign_in("mia@example.com", None)
        limits.connect("10.0.0.1")
        limits.charge_query("mia", 10**6)
        limits.charge_mutation("mia", 10**6)
    assert limits.allowance("mia") is None
    assert (limits.largest_query, limits.most_mutations) == (None, None)


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("203.0.113.9", "203.0.113.9", True),
        ("203.0.113.9", "203.0.113.10", False),
        ("::ffff:203.0.113.9", "203.0.113.9", True),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("unknown", "203.0.113.9", False),
    ],
)
def test_one_client_has_one_key(one: str, other: str, is_same: bool) -> None:
    assert (network(one) == network(other)) is is_same


def test_nobody_passes_for_somebody_else() -> None:
    mia = uuid4()
    keys = {caller(mia, "10.0.0.1"), caller(None, "10.0.0.1"), caller(None, None), caller(None, caller(mia, None))}
    assert len(keys) == 4
    assert caller(mia, "10.0.0.1") == caller(mia, None)
