"""Access tokens as their owners see them, and the word that goes round when somebody's rights change.

That word is said in a room of its own, in the transaction of the change: whoever holds sockets open listens there,
here at once and on other servers with their next look, and asks again what each token may still do.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import anyio
import structlog

from app.db.engine import DB
from app.domain.errors import Blank, Invalid, LimitReached, NotFound
from app.domain.ports import WakeRooms
from app.domain.states import TokenKind, TokenScope, UserRole
from app.domain.viewer import Viewer
from app.log import barrier
from app.services import accounts, audit, pages, rooms, words
from app.services.pages import Order, Page, Stretch, Where

log = structlog.get_logger()

#: Where changes of rights are told; no name a client can ask for.
ROOM = "auth"
#: Tokens that work at the same time, of one person.
MAX_TOKENS = 100
#: Longest time a token with an end may work.
LONGEST = timedelta(days=36_525)
#: Longest name of a token.
MAX_NAME = 100
#: How long a token that has ended is still known, and seconds between two rounds of forgetting.
REMEMBERED, FORGET_INTERVAL = timedelta(days=30), 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as it may be shown; `id` is its identity, `key` the part of its text that may be logged."""

    id: UUID
    key: str
    owner: UUID
    kind: TokenKind
    name: str
    scopes: tuple[TokenScope, ...]
    created_at: datetime
    last_used_at: datetime | None
    expires_at: datetime | None

    @property
    def hint(self) -> str:
        return f"cn_{self.kind.value}_{self.key}"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a token may do at this moment."""

    role: UserRole
    scopes: frozenset[TokenScope]
    expires_at: datetime | None
    #: It, or its person, was shut out.
    is_revoked: bool
    is_expired: bool


COLUMNS = 'public_id, id, "user", kind, name, scopes, created_at, last_used_at, expires_at'
#: What holds of a token that still works.
WORKS = "revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"


def token(row: dict[str, Any]) -> Token:
    return Token(
        id=row["public_id"],
        key=row["id"],
        owner=row["user"],
        kind=TokenKind(row["kind"]),
        name=row["name"],
        scopes=tuple(scope for scope in TokenScope if scope in row["scopes"]),
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        expires_at=row["expires_at"],
    )


async def by_ids(viewer: Viewer, ids: list[UUID]) -> dict[UUID, Token]:
    """Tokens that work, of the viewer's own; every one for administrators."""
    rows = await DB.fetch(
        f'SELECT {COLUMNS} FROM access_token WHERE public_id = ANY($1::uuid[]) AND ($2 OR "user" = $3) AND {WORKS}',
        ids, viewer.writes_all and viewer.may(TokenScope.ADMIN), viewer.user_id,
    )  # fmt: skip
    return {row["public_id"]: token(row) for row in rows}


_NEWEST_FIRST = Order("accessTokens", "created_at", pages.time, "public_id", is_descending=True)


def _own(viewer: Viewer) -> Where:
    return Where(f'"user" = $1 AND {WORKS}', viewer.user_id)


async def page(viewer: Viewer, stretch: Stretch) -> Page[Token]:
    """The viewer's own tokens that work, the newest first."""
    return await pages.read(COLUMNS, "access_token", _own(viewer), _NEWEST_FIRST, stretch, token)


async def count(viewer: Viewer) -> int:
    return await pages.count("access_token", _own(viewer))


async def create(
    viewer: Viewer, name: str, scopes: Iterable[TokenScope], life: timedelta | None = accounts.TOKEN_LIFE
) -> tuple[Token, str]:
    """A new token of the viewer's own, and its text, which exists only in this answer."""
    name = words.line(name, "name", MAX_NAME)
    wanted = frozenset(scopes)
    if not wanted:
        raise Blank("scopes is empty: such a token could do nothing", "scopes")
    for scope in sorted(wanted):
        if not viewer.may(scope):
            raise Invalid(f"your token may not {scope} itself, so it cannot give it to another one", "scopes")
    if life is not None and life <= timedelta(0):
        raise Invalid("expiresAt has passed already", "expiresAt")
    if life is not None and life > LONGEST:
        raise Invalid("expiresAt is more than a hundred years away; null stands for no end", "expiresAt")
    async with DB.transaction():
        await DB.fetch("SELECT id FROM app_user WHERE id = $1 FOR NO KEY UPDATE", viewer.user_id)
        await _refuse_more(viewer.user_id)
        text = await accounts.add_token(viewer.user_id, name, wanted, life)
        row = await DB.fetch_one(f"SELECT {COLUMNS} FROM access_token WHERE id = $1", accounts.id_of(text))
        assert row is not None  # It was just made.
        made = token(row)
        await audit.note(
            "accessTokenCreate", audit.Subject("AccessToken", made.id),
            name=name, scopes=made.scopes, expiresAt=made.expires_at,
        )  # fmt: skip
        await accounts.still(*made.scopes)
    return made, text


async def _refuse_more(user_id: UUID) -> None:
    row = await DB.fetch_one(
        f"SELECT count(*) AS n FROM access_token WHERE \"user\" = $1 AND kind = 'p' AND {WORKS}", user_id
    )
    if row and row["n"] >= MAX_TOKENS:
        raise LimitReached(f"a person has at most {MAX_TOKENS} tokens; revoke one that is not used any more")


def life_until(end: datetime) -> timedelta:
    """How long it is until then; a time without a zone is taken for UTC."""
    return (end if end.tzinfo else end.replace(tzinfo=UTC)) - datetime.now(UTC)


async def revoke(wake: WakeRooms, viewer: Viewer, identity: UUID) -> None:
    """Ends a token of the viewer's own, or anybody's for administrators, and closes its sockets.

    A token ends none that may more than itself: a stolen one that only reads could shut everybody out.
    """
    async with DB.transaction():
        row = await DB.fetch_one(
            'SELECT id, "user", name, scopes FROM access_token WHERE public_id = $1 AND ($2 OR "user" = $3) '
            f"AND {WORKS} FOR NO KEY UPDATE",
            identity, viewer.writes_all and viewer.may(TokenScope.ADMIN), viewer.user_id,
        )  # fmt: skip
        if row is None:
            raise NotFound("there is no such access token", "accessTokenId")
        if not viewer.scopes.issuperset(row["scopes"]):
            raise Invalid("that token may do more than yours; sign in to end it", "accessTokenId")
        await DB.fetch("UPDATE access_token SET revoked_at = now() WHERE id = $1", row["id"])
        await audit.note("accessTokenRevoke", audit.Subject("AccessToken", identity), name=row["name"])
        await tell(wake, row["user"])


async def end_sessions(wake: WakeRooms, user_id: UUID, but: str | None = None) -> None:
    """Ends every sign-in of a person, but for the one token, inside the caller's transaction."""
    await DB.fetch(
        f"UPDATE access_token SET revoked_at = now() WHERE \"user\" = $1 AND kind = 's' AND id IS DISTINCT FROM $2 "
        f"AND {WORKS}",
        user_id, but,
    )  # fmt: skip
    await tell(wake, user_id)


async def end_all(wake: WakeRooms, user_id: UUID) -> None:
    """Ends everything a person could come in with, inside the caller's transaction."""
    await DB.fetch(f'UPDATE access_token SET revoked_at = now() WHERE "user" = $1 AND {WORKS}', user_id)
    await tell(wake, user_id)


async def tell(wake: WakeRooms, user_id: UUID) -> None:
    """Says that a person's rights or tokens changed, inside the caller's transaction."""
    await rooms.append(wake, [ROOM], "CHANGED", {"userId": user_id}, None)


async def standings(keys: list[str]) -> dict[str, Standing]:
    """What these tokens may do now; one that is not known any more is left out."""
    rows = await DB.fetch(
        "SELECT t.id, t.scopes, t.expires_at, u.role, (t.revoked_at IS NOT NULL OR u.disabled_at IS NOT NULL) AS out, "
        "(t.expires_at IS NOT NULL AND t.expires_at <= now()) AS is_expired "
        'FROM access_token t JOIN app_user u ON u.id = t."user" WHERE t.id = ANY($1::text[])',
        keys,
    )
    return {
        row["id"]: Standing(
            UserRole(row["role"]),
            frozenset(TokenScope(scope) for scope in row["scopes"]),
            row["expires_at"],
            row["out"],
            row["is_expired"],
        )
        for row in rows
    }


async def forget() -> None:
    """Forgets, every now and then, tokens that ended long ago. Runs until cancelled."""
    while True:
        with barrier(log, "tokens_not_forgotten"):
            await DB.fetch(
                "DELETE FROM access_token WHERE least(revoked_at, expires_at) < now() - $1::interval", REMEMBERED
            )
        await anyio.sleep(FORGET_INTERVAL)
