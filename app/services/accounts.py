"""People and their tokens: the first administrator, and who stands behind a bearer token.

A token reads `cn_<kind>_<id>_<secret><crc>`: the id is looked up and may be logged, of the secret only the SHA-256
is kept (it has 256 random bits, so a slow hash would protect nothing), and the checksum finds typing errors and
lets secret scanners know a token when they see one.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.errors import Forbidden, Taken, Unauthenticated
from app.domain.ids import new_id
from app.domain.states import TokenKind, TokenScope, UserRole
from app.domain.viewer import Viewer
from app.services import audit, pages
from app.services.pages import Order, Page, Stretch, Where

#: How long a token of a person's own works unless told otherwise.
TOKEN_LIFE = timedelta(days=90)
#: How long a sign-in lasts after it was last used, and at most.
SESSION_LIFE, LONGEST_SESSION = timedelta(hours=12), timedelta(days=30)
#: Longest e-mail address (RFC 5321, section 4.5.3.1).
MAX_EMAIL = 320

#: The columns of a `User`.
USER = "id, email, name, role, created_at, disabled_at"
_AS_THEY_CAME = Order("users", "created_at", pages.time)

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TOKEN = re.compile(r"cn_(?P<kind>[spi])_(?P<id>[a-z2-7]{12})_(?P<secret>[A-Za-z0-9_-]{43})(?P<crc>[0-9A-Za-z]{6})\Z")
#: Compared against where the id is unknown, so that both refusals take the same steps.
_NOBODY = hashlib.sha256(b"nobody").digest()


@dataclass(frozen=True, slots=True)
class User:
    """A person with an account."""

    id: UUID
    email: str | None
    name: str
    role: UserRole
    created_at: datetime
    disabled_at: datetime | None = None


def make_token(kind: TokenKind) -> tuple[str, str, bytes]:
    """A new token's text, its id, and the hash that is kept."""
    identity = "".join(secrets.choice(_BASE32) for _ in range(12))
    secret = secrets.token_urlsafe(32)
    body = f"cn_{kind}_{identity}_{secret}"
    return body + _checksum(body), identity, hashlib.sha256(secret.encode()).digest()


def _checksum(body: str) -> str:
    value, text = zlib.crc32(body.encode()), ""
    for _ in range(6):
        value, digit = divmod(value, 62)
        text = _BASE62[digit] + text
    return text


async def first_administrator() -> str | None:
    """Makes the first administrator with one token; the token's text, or None where there is one already."""
    async with DB.transaction():
        # The one row of the installation serialises two servers that start together.
        await DB.fetch("SELECT id FROM installation FOR UPDATE")
        if await DB.fetch_one("SELECT id FROM app_user WHERE role = 'ADMIN' LIMIT 1"):
            return None
        user_id = await add_user("Administrator", UserRole.ADMIN)
        await audit.note("userCreate", audit.Subject("User", user_id), role=UserRole.ADMIN)
        token = await add_token(user_id, "first sign-in", frozenset(TokenScope))
        await audit.note("accessTokenCreate", audit.Subject("User", user_id), name="first sign-in")
        return token


async def add_user(name: str, role: UserRole, email: str | None = None, password_hash: str | None = None) -> UUID:
    """Raises `Taken` where the address is another person's."""
    identity = new_id()
    try:
        async with DB.transaction():
            await DB.fetch(
                "INSERT INTO app_user (id, email, name, role, password_hash, created_at) "
                "VALUES ($1, $2, $3, $4, $5, now())",
                identity, email, name, role.value, password_hash,
            )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise Taken("another person has this address", "email") from error
    return identity


async def add_token(
    user_id: UUID,
    name: str,
    scopes: frozenset[TokenScope],
    life: timedelta | None = TOKEN_LIFE,
    kind: TokenKind = TokenKind.PERSONAL,
) -> str:
    """Makes a token; its text exists only in the answer.

    Args:
        life: How long it works; None: for ever.
    """
    text, identity, digest = make_token(kind)
    await DB.fetch(
        'INSERT INTO access_token (id, public_id, "user", kind, name, secret_sha256, scopes, address, created_at, '
        "expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now(), now() + $9::interval)",
        identity, new_id(), user_id, kind.value, name, digest, sorted(scopes), audit.actor().address, life,
    )  # fmt: skip
    return text


def id_of(token: str) -> str:
    """The part of a token's text that may be shown."""
    return token[5:17]


async def viewer_of(token: str) -> Viewer | None:
    """The person behind a token; None for one that is malformed, unknown, revoked or expired."""
    match = _TOKEN.match(token)
    if match is None or not hmac.compare_digest(_checksum(token[:-6]), match["crc"]):
        return None
    row = await DB.fetch_one(
        "SELECT t.secret_sha256, t.scopes, t.kind, t.expires_at, u.id, u.role, "
        "(t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND u.disabled_at IS NULL) AS works, "
        "(t.last_used_at IS NULL OR t.last_used_at < now() - interval '1 minute') AS is_quiet "
        'FROM access_token t JOIN app_user u ON u.id = t."user" WHERE t.id = $1',
        match["id"],
    )
    digest = hashlib.sha256(match["secret"].encode()).digest()
    is_right = hmac.compare_digest(digest, bytes(row["secret_sha256"]) if row else _NOBODY)
    if row is None or not is_right or not row["works"]:
        return None
    if row["is_quiet"]:
        # At most once a minute, so that reading costs no write.
        row |= (await touch([match["id"]])).get(match["id"], {})
    scopes = frozenset(TokenScope(scope) for scope in row["scopes"])
    return Viewer(
        row["id"], match["id"], UserRole(row["role"]), scopes, kind=TokenKind(row["kind"]), expires_at=row["expires_at"]
    )


async def touch(token_ids: list[str]) -> dict[str, dict[str, Any]]:
    """Notes that these tokens are in use, which makes a sign-in last longer; when each ends, by its id."""
    rows = await DB.fetch(
        "UPDATE access_token SET last_used_at = now(), expires_at = CASE WHEN kind = 's' THEN "
        "least(now() + $2::interval, created_at + $3::interval) ELSE expires_at END "
        "WHERE id = ANY($1::text[]) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) "
        "RETURNING id, expires_at",
        token_ids, SESSION_LIFE, LONGEST_SESSION,
    )  # fmt: skip
    return {row["id"]: {"expires_at": row["expires_at"]} for row in rows}


async def still(*scopes: TokenScope) -> None:
    """Whoever acts may still do so: the last word of a transaction that gives rights away.

    A document can wait for a minute between its first look at the token and this.

    Raises:
        Unauthenticated: The token does not count any more.
        Forbidden: It may not do this any more.
    """
    key = audit.actor().token_id
    if key is None:
        return  # The server itself, or who sits at the machine.
    row = await DB.fetch_one(
        'SELECT t.scopes, u.role FROM access_token t JOIN app_user u ON u.id = t."user" WHERE t.id = $1 '
        "AND t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()) AND u.disabled_at IS NULL",
        key,
    )
    if row is None:
        raise Unauthenticated("your token does not count any more")
    viewer = Viewer(UUID(int=0), key, UserRole(row["role"]), frozenset(TokenScope(one) for one in row["scopes"]))
    for scope in scopes:
        if not viewer.may(scope):
            raise Forbidden(f"your token may not {scope} any more")


async def users(ids: list[UUID]) -> dict[UUID, User]:
    rows = await DB.fetch(f"SELECT {USER} FROM app_user WHERE id = ANY($1::uuid[])", ids)
    return {row["id"]: user(row) for row in rows}


async def page(stretch: Stretch) -> Page[User]:
    """Everyone with an account, in the order in which they came."""
    return await pages.read(USER, "app_user", Where(), _AS_THEY_CAME, stretch, user)


async def count() -> int:
    return await pages.count("app_user", Where())


def user(row: dict[str, Any]) -> User:
    return User(row["id"], row["email"], row["name"], UserRole(row["role"]), row["created_at"], row["disabled_at"])
