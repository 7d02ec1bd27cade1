"""`clawnet users` and `clawnet tokens`: for who sits at the machine, with no account needed."""

import argparse
import getpass
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from app import settings
from app.db.engine import DB
from app.domain.errors import Invalid, NotFound, Refusal
from app.domain.states import TokenScope, UserRole
from app.domain.viewer import Viewer
from app.foundations import database, protect
from app.services import accounts, audit, passwords, tokens
from app.services.accounts import User
from app.services.people import SCOPES, People

#: How long the token works that lets a lost administrator in again.
RESET_LIFE = timedelta(days=1)


async def run(arguments: argparse.Namespace) -> int:
    """Does one deed on the database, whether a server runs on it or not."""
    protect()
    async with database(settings.take(os.environ), _say):
        try:
            with audit.acting(audit.Actor(address=f"command line, uid {os.geteuid()}")):
                await (_users(arguments) if arguments.command == "users" else _tokens(arguments))
        except Refusal as refusal:
            print(f"clawnet: {refusal.message}", file=sys.stderr)
            return 1
    return 0


class _NoLimits:
    """Who sits at the machine is not counted."""

    def sign_in(self, email: str, address: str | None) -> None: ...


def _wake(names: Iterable[str]) -> None:
    """Servers hear of it with their next look at the rooms."""


async def _users(arguments: argparse.Namespace) -> None:
    people = People(_wake, _NoLimits())
    match arguments.deed:
        case "list":
            await _list_users()
        case "add":
            await _add(people, arguments)
        case "reset":
            await _reset(people, arguments.who)
        case deed:
            user = await _find(arguments.who)
            await people.update(user.id, _changes(deed, arguments, user))
            print(f"{user.email or user.name}: done")


def _changes(deed: str, arguments: argparse.Namespace, user: User) -> dict[str, object]:
    match deed:
        case "password":
            return {"password": _new_password(user.email, user.name)}
        case "email":
            return {"email": arguments.email}
        case "role":
            return {"role": UserRole(arguments.role.upper())}
        case _:
            return {"disabled": deed == "disable"}


async def _list_users() -> None:
    rows = await DB.fetch(f"SELECT {accounts.USER} FROM app_user ORDER BY created_at, id")
    found = [accounts.user(row) for row in rows]
    _table(
        ("id", "e-mail", "name", "role", "state"),
        [(str(u.id), u.email or "-", u.name, u.role.lower(), "disabled" if u.disabled_at else "") for u in found],
    )


async def _add(people: People, arguments: argparse.Namespace) -> None:
    name, role = arguments.name or arguments.email.partition("@")[0], UserRole(arguments.role.upper())
    password = None if arguments.no_password else _new_password(arguments.email, name)
    user_id = await people.create(name, arguments.email, password, role)
    print(f"{arguments.email}: {role.lower()}, id {user_id}")
    if password is None:
        await _show_token(user_id, role, "first sign-in", accounts.TOKEN_LIFE)


async def _reset(people: People, who: str | None) -> None:
    user = await _find(who) if who else await _first_administrator()
    await people.update(user.id, {"role": UserRole.ADMIN, "disabled": False})
    print(f"{user.email or user.name}: administrator, id {user.id}")
    await _show_token(user.id, UserRole.ADMIN, "reset", RESET_LIFE)
    print(f"It works for a day. Set a password with: clawnet users password {user.email or user.id}")
    if user.email is None:
        print(f"To sign in with it the person needs an address: clawnet users email {user.id} NAME@EXAMPLE.COM")


async def _first_administrator() -> User:
    rows = await DB.fetch(f"SELECT {accounts.USER} FROM app_user WHERE role = 'ADMIN' ORDER BY created_at LIMIT 1")
    if not rows:
        raise NotFound("there is no administrator; name a person who shall be one (`clawnet users list`)")
    return accounts.user(rows[0])


async def _show_token(user_id: UUID, role: UserRole, name: str, life: timedelta | None) -> None:
    async with DB.transaction():
        text = await accounts.add_token(user_id, name, SCOPES[role], life)
        await audit.note("accessTokenCreate", audit.Subject("User", user_id), name=name)
    print(f"this token is shown only once, keep it:\n\n    {text}\n")


def _as(user_id: UUID, role: UserRole) -> Viewer:
    return Viewer(user_id, "", role, frozenset(TokenScope))


async def _tokens(arguments: argparse.Namespace) -> None:
    match arguments.deed:
        case "list":
            await _list_tokens(await _find(arguments.who) if arguments.who else None)
        case "create":
            user = await _find(arguments.who)
            life = None if arguments.never_ends else timedelta(days=arguments.days)
            viewer = _as(user.id, user.role)
            token, text = await tokens.create(viewer, arguments.name, _scopes(arguments.scope, user.role), life)
            print(
                f"{token.hint} for {user.email or user.name}; this token is shown only once, keep it:\n\n    {text}\n"
            )
        case _:
            await _revoke(arguments.token)


def _scopes(names: list[str], role: UserRole) -> list[TokenScope]:
    known = {scope.value for scope in TokenScope}
    for name in names:
        if name.upper() not in known:
            raise Invalid(f"there is no scope {name!r}; there are {', '.join(sorted(known)).lower()}")
        if not _as(UUID(int=0), role).may(TokenScope(name.upper())):
            raise Invalid(f"the scope {name.lower()} is not for {_article(role)}")
    return [TokenScope(name.upper()) for name in names]


def _article(role: UserRole) -> str:
    return f"an {role.lower()}" if role is not UserRole.MEMBER else "a member"


async def _list_tokens(user: User | None) -> None:
    rows = await DB.fetch(
        f'SELECT {tokens.COLUMNS} FROM access_token WHERE {tokens.WORKS} AND ($1::uuid IS NULL OR "user" = $1) '
        "ORDER BY created_at",
        user and user.id,
    )
    found = [tokens.token(row) for row in rows]
    people = await accounts.users([token.owner for token in found])
    _table(
        ("id", "person", "name", "scopes", "last used", "ends"),
        [
            (
                token.key,
                people[token.owner].email or people[token.owner].name,
                token.name,
                "all" if len(token.scopes) == len(TokenScope) else ",".join(scope.lower() for scope in token.scopes),
                _day(token.last_used_at),
                _day(token.expires_at),
            )
            for token in found
        ],
    )


async def _revoke(key: str) -> None:
    # The whole token is what people have at hand when they want to be rid of it; it is not said again.
    if found := re.search(r"cn_[spi]_([a-z2-7]{12})", key):
        key = found[1]
    elif not re.fullmatch(r"[a-z2-7]{12}", key):
        raise NotFound("that is no id of a token (`clawnet tokens list`)")
    row = await DB.fetch_one(f'SELECT public_id, "user" FROM access_token WHERE id = $1 AND {tokens.WORKS}', key)
    if row is None:
        raise NotFound(f"there is no token {key!r} that works (`clawnet tokens list`)")
    await tokens.revoke(_wake, _as(row["user"], UserRole.MEMBER), row["public_id"])
    print(f"{key}: revoked")


async def _find(who: str) -> User:
    if not who.isascii() or not who.isprintable():
        raise NotFound("nobody has such an address (`clawnet users list`)")
    try:
        condition, value = "id = $1", UUID(who)
    except ValueError:
        condition, value = "lower(email) = lower($1)", who
    row = await DB.fetch_one(f"SELECT {accounts.USER} FROM app_user WHERE {condition}", value)
    if row is None:
        raise NotFound(f"there is nobody {who!r} (`clawnet users list`)")
    return accounts.user(row)


def _new_password(email: str | None, name: str) -> str:
    """Asked for twice at a terminal; else the first line of standard input, so that scripts can set one."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison] -- it is closed
        raise Invalid("a password is needed: at a terminal, or as a line of standard input")
    if not sys.stdin.isatty():
        return passwords.checked(sys.stdin.readline().rstrip("\n"), "the password", email, name)
    password = passwords.checked(getpass.getpass("New password: "), "the password", email, name)
    if getpass.getpass("Again: ") != password:
        raise Invalid("the two passwords differ; nothing was changed")
    return password


def _table(head: Sequence[str], rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _day(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M") if at else "never"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
