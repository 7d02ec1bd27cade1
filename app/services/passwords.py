"""Passwords checked away from the event loop, a few at a time: each takes a core for 40 ms and 19 MiB."""

import anyio
import anyio.to_thread

from app.domain.errors import Blank, Invalid, RateLimited, TooLong
from app.vault import passwords

#: Passwords that are worked on at once, and that may wait for it; who comes then is sent away.
AT_ONCE, WAITING = 2, 20
#: Seconds after which somebody who was sent away may try again.
PAUSE = 2.0
#: Lengths in characters. A long password is a good one, an endless one an attack.
MIN_LENGTH, MAX_LENGTH = 12, 1024
#: Least different characters: `aaaaaaaaaaaa` is long enough and yet the first one tried.
MIN_DIFFERENT = 5


class Passwords:
    """Derives and verifies."""

    def __init__(self) -> None:
        self._turns = anyio.CapacityLimiter(AT_ONCE)

    async def derive(self, password: str) -> str:
        """The hash to keep of a password that `checked` let through."""
        self._refuse_crowd()
        return await anyio.to_thread.run_sync(passwords.derive, password, limiter=self._turns)

    async def fits(self, password: str, kept: str | None) -> bool:
        """The password is the kept one. Takes as long where nothing is kept."""
        self._refuse_crowd()
        is_right = await anyio.to_thread.run_sync(
            passwords.fits, password[:MAX_LENGTH], kept or passwords.NOBODY, limiter=self._turns
        )
        return is_right and kept is not None and len(password) <= MAX_LENGTH

    def _refuse_crowd(self) -> None:
        if self._turns.statistics().tasks_waiting >= WAITING:
            raise RateLimited("too many people sign in at this moment; try again in a moment", PAUSE)


def checked(password: str, field: str, *known: str | None) -> str:
    """A new password, refused where anybody would guess it.

    Args:
        known: What others know of the person: address and name.
    """
    if not password.strip():
        raise Blank(f"{field} is empty", field)
    if len(password) < MIN_LENGTH:
        raise Invalid(f"{field} has {len(password)} characters; at least {MIN_LENGTH} are needed", field)
    if len(password) > MAX_LENGTH:
        raise TooLong(f"{field} has {len(password)} characters; at most {MAX_LENGTH} are allowed", field)
    if any("\ud800" <= character <= "\udfff" for character in password):
        raise Invalid(f"{field} is no valid Unicode", field)
    if len(set(password)) < MIN_DIFFERENT:
        raise Invalid(f"{field} repeats a few characters; use at least {MIN_DIFFERENT} different ones", field)
    if password.casefold() in {text.casefold() for text in known if text}:
        raise Invalid(f"{field} is the person's own name or address", field)
    return password


is_outdated = passwords.is_outdated
