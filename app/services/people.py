"""People: signing in and out, passwords, accounts, and what happens to them."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.errors import (
    Conflict,
    CredentialsRefused,
    Invalid,
    NotFound,
    RateLimited,
    Refusal,
    SignInRefused,
    Taken,
)
from app.domain.ports import WakeRooms
from app.domain.states import TokenKind, TokenScope, UserRole
from app.domain.viewer import Viewer
from app.services import accounts, audit, passwords, tokens, words
from app.services.accounts import User
from app.services.limits import Buckets
from app.services.passwords import Passwords

#: What a sign-in may do, by role; the role itself takes the rest away again.
SCOPES = {
    UserRole.ADMIN: frozenset(TokenScope),
    UserRole.MEMBER: frozenset(TokenScope) - {TokenScope.ADMIN},
    UserRole.OBSERVER: frozenset({TokenScope.FLEET_READ, TokenScope.SOCIAL_READ}),
}
#: The same words whatever was wrong: who has an account here is nobody's business.
REFUSED = "the address or the password is wrong"


class SignInLimits(Protocol):
    """How often somebody may try. Raises `RateLimited`."""

    def sign_in(self, email: str, address: str | None) -> None: ...


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A sign-in's token, which exists only in this answer, and who it is for."""

    token: str
    expires_at: datetime
    viewer: Viewer


class People:
    """Changes accounts; each change of rights is told to whoever holds sockets open."""

    def __init__(self, wake: WakeRooms, limits: SignInLimits) -> None:
        self._wake = wake
        self._limits = limits
        self._passwords = Passwords()
        #: Whose floods of sign-ins the audit trail has heard of in the last minute.
        self._told = Buckets(1)

    async def sign_in(self, email: str, password: str) -> SignedIn:
        """Trades address and password for a token.

        Unknown, disabled and mistaken people take the same steps, so that neither words nor time tell them apart.

        Raises:
            SignInRefused: They do not fit.
            RateLimited: Too many tries with this address, or from this one.
        """
        email = _sought(email)
        await self._count(email)
        row = await DB.fetch_one(
            "SELECT id, role, password_hash, disabled_at FROM app_user WHERE lower(email) = lower($1)", email
        )
        kept = row["password_hash"] if row else None
        is_right = await self._passwords.fits(password, kept)
        if row is None or kept is None or not is_right or row["disabled_at"] is not None:
            await _tell_refused(row["id"] if row else None, email)
            raise SignInRefused(REFUSED)
        fresh = await self._passwords.derive(password) if passwords.is_outdated(kept) else None
        try:
            return await self._begin_session(row["id"], kept, fresh)
        except SignInRefused:
            await _tell_refused(row["id"], email)
            raise

    async def _count(self, email: str) -> None:
        """Lets the try through, or tells the audit trail once a minute that it did not."""
        try:
            self._limits.sign_in(email, audit.actor().address)
        except RateLimited as refusal:
            about = email.lower()
            now = time.monotonic()
            if not self._told.wait(about, 1, now):
                self._told.take(about, 1, now)
                await audit.note("signIn", refusal=refusal.code, email=_masked(email))
            raise

    async def _begin_session(self, user_id: UUID, kept: str, fresh: str | None) -> SignedIn:
        async with DB.transaction():
            # What was verified may have been changed meanwhile.
            row = await DB.fetch_one(
                "UPDATE app_user SET password_hash = coalesce($3, password_hash) "
                "WHERE id = $1 AND password_hash = $2 AND disabled_at IS NULL RETURNING role",
                user_id, kept, fresh,
            )  # fmt: skip
            if row is None:
                raise SignInRefused(REFUSED)
            scopes = SCOPES[UserRole(row["role"])]
            text = await accounts.add_token(user_id, "sign-in", scopes, accounts.SESSION_LIFE, TokenKind.SESSION)
            viewer = await accounts.viewer_of(text)
            assert viewer is not None  # It was just made.
            assert viewer.expires_at is not None  # As every sign-in has an end.
            who = audit.Actor(user_id, viewer.token_id, audit.actor().address)
            with audit.acting(who):
                await audit.note("signIn", audit.Subject("User", user_id))
        return SignedIn(text, viewer.expires_at, viewer)

    async def sign_out(self, viewer: Viewer) -> None:
        """Ends the token the viewer came with."""
        async with DB.transaction():
            await DB.fetch("UPDATE access_token SET revoked_at = now() WHERE id = $1", viewer.token_id)
            await audit.note("signOut", audit.Subject("User", viewer.user_id))
            await tokens.tell(self._wake, viewer.user_id)

    async def change_password(self, viewer: Viewer, current: str, new: str) -> None:
        """Changes the viewer's own password, and ends the person's other sign-ins."""
        row = await DB.fetch_one("SELECT email, name, password_hash FROM app_user WHERE id = $1", viewer.user_id)
        assert row is not None  # The viewer is signed in.
        # Counted apart from sign-ins with the address, or strangers could keep the person from changing it.
        self._limits.sign_in(str(viewer.user_id), audit.actor().address)
        if row["password_hash"] is None:
            raise Conflict("no password is set; an administrator sets the first one with userUpdate", "currentPassword")
        if not await self._passwords.fits(current, row["password_hash"]):
            raise CredentialsRefused("the current password is wrong", "currentPassword")
        fresh = await self._passwords.derive(passwords.checked(new, "newPassword", *_known(row["email"], row["name"])))
        async with DB.transaction():
            found = await DB.fetch_one(
                "UPDATE app_user SET password_hash = $3 WHERE id = $1 AND password_hash = $2 RETURNING id",
                viewer.user_id, row["password_hash"], fresh,
            )  # fmt: skip
            if found is None:
                raise Conflict("the password was changed by somebody else meanwhile", "currentPassword")
            await audit.note("passwordChange", audit.Subject("User", viewer.user_id))
            await tokens.end_sessions(self._wake, viewer.user_id, but=viewer.token_id)

    async def create(self, name: str, email: str, password: str | None, role: UserRole) -> UUID:
        """Makes an account. Without a password nobody signs in to it before one is set."""
        name = words.line(name, "name", words.MAX_NAME)
        email = checked_email(email)
        hash_ = await self._new_password(password, email, name) if password is not None else None
        async with DB.transaction():
            user_id = await accounts.add_user(name, role, email, hash_)
            await audit.note("userCreate", audit.Subject("User", user_id), role=role)
            await accounts.still(TokenScope.ADMIN)
        return user_id

    async def update(self, user_id: UUID, changes: dict[str, Any]) -> User:
        """Changes an account; what is not among `changes` stays.

        Args:
            changes: By name of the input's field: name, email, role, password, disabled.
        """
        found = await accounts.users([user_id])
        if user_id not in found:
            raise NotFound("there is no such user", "userId")
        columns = await self._columns(found[user_id], changes)
        if not columns:
            return found[user_id]
        async with DB.transaction():
            await accounts.still(TokenScope.ADMIN)
            await _keep_an_administrator(user_id, columns)
            await self._write(user_id, columns)
            shown = {"role": columns.get("role"), "disabled": changes.get("disabled")}
            shown = {name: value for name, value in shown.items() if value is not None}
            await audit.note("userUpdate", audit.Subject("User", user_id), changed=sorted(changes), **shown)
            if columns.get("disabled_at"):
                await tokens.end_all(self._wake, user_id)
            elif "password_hash" in columns:
                await tokens.end_sessions(self._wake, user_id, but=audit.actor().token_id)
            elif columns.keys() & {"role", "disabled_at"}:
                await tokens.tell(self._wake, user_id)
            await _still_administrates(user_id)
        return (await accounts.users([user_id]))[user_id]

    async def _columns(self, user: User, changes: dict[str, Any]) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        name, email = user.name, user.email
        if "name" in changes:
            columns["name"] = name = words.line(changes["name"] or "", "name", words.MAX_NAME)
        if "email" in changes:
            columns["email"] = email = checked_email(changes["email"] or "")
        if changes.get("role") is not None:
            columns["role"] = changes["role"].value
        if changes.get("disabled") is not None and changes["disabled"] != (user.disabled_at is not None):
            columns["disabled_at"] = changes["disabled"]
        if changes.get("password") is not None:
            columns["password_hash"] = await self._new_password(changes["password"], email, name)
        return columns

    async def _write(self, user_id: UUID, columns: dict[str, Any]) -> None:
        # Whether somebody is disabled is asked for; since when is the database's to say.
        since = "CASE WHEN {} THEN now() END"
        texts = [
            f"{key} = {since.format(f'${n}') if key == 'disabled_at' else f'${n}'}" for n, key in enumerate(columns, 2)
        ]
        try:
            await DB.fetch(f"UPDATE app_user SET {', '.join(texts)} WHERE id = $1", user_id, *columns.values())
        except asyncpg.UniqueViolationError as error:
            raise Taken("another person has this address", "email") from error

    async def _new_password(self, password: str, email: str | None, name: str) -> str:
        return await self._passwords.derive(passwords.checked(password, "password", *_known(email, name)))


async def _still_administrates(user_id: UUID) -> None:
    """Whoever changed the account may still do so; who has just changed his own was asked before."""
    if audit.actor().user_id != user_id:
        await accounts.still(TokenScope.ADMIN)


async def _keep_an_administrator(user_id: UUID, columns: dict[str, Any]) -> None:
    """Refuses what would leave the installation without an administrator, however many change at once."""
    is_demoted = columns.get("role", UserRole.ADMIN.value) != UserRole.ADMIN.value
    if not is_demoted and not columns.get("disabled_at"):
        return
    rows = await DB.fetch(
        "SELECT id FROM app_user WHERE role = 'ADMIN' AND disabled_at IS NULL ORDER BY id FOR NO KEY UPDATE"
    )
    if {row["id"] for row in rows} == {user_id}:
        field = "role" if is_demoted else "disabled"
        raise Conflict("this is the last administrator; make another one first", field)


def checked_email(text: str) -> str:
    """An address as it is kept. Whether mail arrives there is not asked: none is sent."""
    text = words.line(text, "email", accounts.MAX_EMAIL)
    local, at, domain = text.rpartition("@")
    is_plain = text.isascii() and not any(character.isspace() for character in text)
    if not at or not local or not domain or not is_plain:
        # Letters beyond ASCII have capitals that the database and we might fold differently.
        raise Invalid("email must read like `name@example.com`, in ASCII (a domain in its `xn--` form)", "email")
    return text


def _sought(email: str) -> str:
    """What an address is looked up by; texts that no address can be find nobody."""
    text = email.strip()
    try:
        return checked_email(text)
    except Refusal:
        return ""


async def _tell_refused(user_id: UUID | None, email: str) -> None:
    subject = audit.Subject("User", user_id) if user_id else None
    await audit.note("signIn", subject, refusal=SignInRefused.code, email=_masked(email))


def _masked(email: str) -> str:
    """Enough to see a typing error by; people type passwords into the wrong field."""
    local, _, domain = email.rpartition("@")
    return f"{local[:1]}…@{domain}" if local else "…"


def _known(email: str | None, name: str) -> tuple[str, ...]:
    return tuple(filter(None, (email, email and email.partition("@")[0], name)))
