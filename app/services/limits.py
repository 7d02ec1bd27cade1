"""How much one caller may ask in a minute: token buckets in this server's memory.

Each server counts for itself, so two of them let twice as much through; what must hold exactly, such as the number of
bots, is the database's to count. A bucket that rested for a minute is full again and may be forgotten. Where more
callers than `MAX_KEPT` come within a minute, the one not heard of for longest loses its bucket and begins with a full
one: memory is bounded, and nobody is shut out by somebody else's flood.
"""

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from app.domain.errors import RateLimited

#: Buckets of one kind that are remembered.
MAX_KEPT = 10_000
#: Seconds an empty bucket takes to fill.
MINUTE = 60.0
#: Longest text that stands for an e-mail address or a client.
MAX_KEY = 320
#: Bits of an IPv6 address that name one customer; the rest is his to choose.
IPV6_NETWORK = 64

#: Clocks differ from what was worked out by less than this part of a unit.
_GRAIN = 1e-6


@dataclass(frozen=True, slots=True)
class Level:
    """How full a bucket is, and the seconds until it is full again."""

    limit: int
    left: float
    full_in: float


class Buckets:
    """One bucket a key: it holds what may be used in a minute, and fills evenly. Holding 0, it lets all through."""

    def __init__(self, a_minute: int, most: int = MAX_KEPT) -> None:
        self.a_minute = a_minute
        self._most = most
        self._kept: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def wait(self, key: str, amount: float, now: float) -> float:
        """Seconds until the amount could be taken: 0 for now, infinity for never."""
        if not self.a_minute:
            return 0.0
        if amount > self.a_minute:
            return math.inf
        missing = amount - self._left(key, now)
        return missing / self._rate if missing > _GRAIN else 0.0

    def take(self, key: str, amount: float, now: float) -> None:
        """Takes an amount for which there is no wait."""
        if not self.a_minute:
            return
        self._kept[key] = (max(0.0, self._left(key, now) - amount), now)
        self._kept.move_to_end(key)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)

    def level(self, key: str, now: float) -> Level:
        left = self._left(key, now)
        return Level(self.a_minute, left, (self.a_minute - left) / self._rate if self.a_minute else 0.0)

    @property
    def _rate(self) -> float:
        return self.a_minute / MINUTE

    def _left(self, key: str, now: float) -> float:
        left, since = self._kept.get(key, (float(self.a_minute), now))
        return min(self.a_minute, left + max(0.0, now - since) * self._rate)


class Limits:
    """What callers of this server may use; 0 stands for no limit."""

    def __init__(
        self,
        *,
        query: int = 0,
        mutation: int = 0,
        sign_in: int = 0,
        connect: int = 0,
        sockets_per_user: int = 0,
        sockets_per_address: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._query = Buckets(query)
        self._mutation = Buckets(mutation)
        self._email, self._address = Buckets(sign_in), Buckets(sign_in)
        self._connect = Buckets(connect)
        self.sockets_per_user = sockets_per_user
        self.sockets_per_address = sockets_per_address
        self._clock = clock

    def turn_away(self, who: str) -> None:
        """Refuses who has nothing left, before anything is read. Raises `RateLimited`."""
        if wait := self._query.wait(who, 1, self._clock()):
            raise RateLimited(f"you have used up what you may ask in a minute; {_again(wait)}", wait)

    def charge_query(self, who: str, cost: int) -> None:
        """Takes the cost of a query or of a subscription's start. Raises `RateLimited`."""
        self._charge(self._query, who, cost, f"this costs {cost} of the {self._query.a_minute} you may use in a minute")

    def charge_mutation(self, who: str, count: int) -> None:
        """Takes the mutations of one operation. Raises `RateLimited`."""
        most = self._mutation.a_minute
        self._charge(self._mutation, who, count, f"you may send {most} mutations in a minute, and this holds {count}")

    def sign_in(self, email: str, address: str | None) -> None:
        """Lets a try to sign in through, before anything is known about the person.

        Raises:
            RateLimited: There were too many, for this e-mail address or from this client.
        """
        now = self._clock()
        asked = ((self._address, network(address)), (self._email, email.strip().casefold()[:MAX_KEY]))
        if wait := max(buckets.wait(key, 1, now) for buckets, key in asked):
            raise RateLimited(f"there were too many tries to sign in; {_again(wait)}", wait)
        for buckets, key in asked:
            buckets.take(key, 1, now)

    def connect(self, address: str | None) -> None:
        """Lets a socket's upgrade through. Raises `RateLimited`."""
        most = self._connect.a_minute
        self._charge(self._connect, network(address), 1, f"your address may open {most} sockets in a minute")

    def allowance(self, who: str) -> Level | None:
        """The caller's bucket for queries; None where there is no limit."""
        return self._query.level(who, self._clock()) if self._query.a_minute else None

    @property
    def largest_query(self) -> int | None:
        """The cost that a full bucket could just pay; None where there is no limit."""
        return self._query.a_minute or None

    @property
    def most_mutations(self) -> int | None:
        """The mutations that a full bucket could just pay; None where there is no limit."""
        return self._mutation.a_minute or None

    def _charge(self, buckets: Buckets, key: str, amount: int, what: str) -> None:
        now = self._clock()
        if wait := buckets.wait(key, amount, now):
            raise RateLimited(f"{what}; {_again(wait)}", wait)
        buckets.take(key, amount, now)


def _again(wait: float) -> str:
    return "that can never be" if math.isinf(wait) else f"try again in {math.ceil(wait)} s"


def caller(user_id: UUID | None, address: str | None) -> str:
    """The key of who asks: the person, from wherever it is; else the address."""
    return f"user {user_id}" if user_id else network(address)


def network(address: str | None) -> str:
    """The key of a client's address. Of an IPv6 one it is the network, in which one customer has all addresses."""
    if address is None:
        return "nowhere"
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return f"? {address[:MAX_KEY]}"  # No address: it must not pass for one, or for a person.
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), IPV6_NETWORK), strict=False))
