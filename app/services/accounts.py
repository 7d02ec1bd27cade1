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
from uuid import UUID

from app.db.engine import DB
from app.domain.ids import new_id
from app.domain.states import TokenKind, TokenScope, UserRole
from app.domain.viewer import Viewer

#: How long a token of a person's own works unless told otherwise.
TOKEN_LIFE = timedelta(days=90)

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
    """Makes the first administrator with one token; the token's text, or None where somebody is there already."""
    async with DB.transaction():
        # The one row of the installation serialises two servers that start together.
        await DB.fetch("SELECT id FROM installation FOR UPDATE")
        if await DB.fetch_one("SELECT id FROM app_user LIMIT 1"):
            return None
        user_id = await add_user("Administrator", UserRole.ADMIN)
        return await add_token(user_id, "first sign-in", frozenset(TokenScope))


async def add_user(name: str, role: UserRole, email: str | None = None) -> UUID:
    identity = new_id()
    await DB.fetch(
        "INSERT INTO app_user (id, email, name, role, created_at) VALUES ($1, $2, $3, $4, now())",
        identity, email, name, role.value,
    )  # fmt: skip
    return identity


async def add_token(
    user_id: UUID, name: str, scopes: frozenset[TokenScope], life: timedelta | None = TOKEN_LIFE
) -> str:
    """Makes a token; its text exists only in the answer."""
    text, identity, digest = make_token(TokenKind.PERSONAL)
    await DB.fetch(
        'INSERT INTO access_token (id, "user", kind, name, secret_sha256, scopes, created_at, expires_at) '
        "VALUES ($1, $2, $3, $4, $5, $6, now(), now() + $7::interval)",
        identity, user_id, TokenKind.PERSONAL.value, name, digest, sorted(scopes), life,
    )  # fmt: skip
    return text


async def viewer_of(token: str) -> Viewer | None:
    """The person behind a token; None for one that is malformed, unknown, revoked or expired."""
    match = _TOKEN.match(token)
    if match is None or not hmac.compare_digest(_checksum(token[:-6]), match["crc"]):
        return None
    row = await DB.fetch_one(
        "SELECT t.secret_sha256, t.scopes, u.id, u.role, "
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
        await DB.fetch("UPDATE access_token SET last_used_at = now() WHERE id = $1", match["id"])
    scopes = frozenset(TokenScope(scope) for scope in row["scopes"])
    return Viewer(row["id"], match["id"], UserRole(row["role"]), scopes)


async def users(ids: list[UUID]) -> dict[UUID, User]:
    rows = await DB.fetch("SELECT id, email, name, role, created_at FROM app_user WHERE id = ANY($1::uuid[])", ids)
    return {r["id"]: User(r["id"], r["email"], r["name"], UserRole(r["role"]), r["created_at"]) for r in rows}
