"""Channels: the places a bot can be talked to, as people set them. What machines see of them is in `channel_states`."""

import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from app import vault
from app.db.engine import DB
from app.domain.errors import (
    Conflict,
    CredentialsRefused,
    CredentialsUnreadable,
    Invalid,
    LimitReached,
    NotFound,
    Refusal,
    SecretError,
    Taken,
)
from app.domain.ports import ChannelProvider, ChannelRules
from app.domain.states import ChannelStatus
from app.domain.viewer import Viewer
from app.services import audit, keys, roster, words
from app.services.parts import Parts
from app.services.revisions import Revisions
from app.vault import Sealed, Vault

#: Channels that one bot may have.
MAX_CHANNELS = 50

#: A key of a JSON object in OpenClaw's configuration, so nothing that JavaScript reads in a way of its own.
ACCOUNT_ID = re.compile(r"(?!(?:constructor|prototype)\Z)[a-z0-9][a-z0-9_-]{0,63}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel with what machines say of it, as one row. Of its secrets it has the names."""

    id: UUID
    bot: UUID
    provider: str
    account_id: str
    name: str
    enabled: bool
    settings: dict[str, Any]
    credential_keys: list[str]
    credentials_key_id: int | None
    credentials_updated_at: datetime | None
    created_at: datetime
    updated_at: datetime
    status: ChannelStatus
    error: str | None
    last_connected_at: datetime | None
    #: What is stored of its secrets is no object of texts.
    is_damaged: bool
    #: Sealed; read where the bot does not run because one of its secrets cannot be read, None otherwise.
    suspects: dict[str, str] | None = field(repr=False)
    #: Its bot at the moment the channel was written; None where it was read.
    on: roster.Bot | None = field(default=None, repr=False)

    def unreadable(self, opened: Vault) -> str | None:
        """Why the bot cannot be started with this channel; None where it is not this channel's fault."""
        if self.is_damaged and self.suspects is not None:
            return "the credentials cannot be read; set them anew"
        for key, sealed in sorted((self.suspects or {}).items()):
            try:
                opened.unseal(sealed, keys.channel_place(self.id, self.provider, key))
            except SecretError:
                return f"the credential {key!r} cannot be read with this server's keys; set it anew"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Secrets that are to be set, sealed, by name; None removes one.

    Args:
        exclusive: Name of the secret that one enabled channel alone may use.
        fingerprint: Of that secret, where it is among them.
    """

    sealed: Mapping[str, Sealed | None] = field(default_factory=dict[str, Sealed | None])
    exclusive: str | None = None
    fingerprint: bytes | None = None

    @property
    def changes_fingerprint(self) -> bool:
        return self.exclusive is not None and self.exclusive in self.sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A channel to be made. Its id is known before, because its secrets are sealed for it."""

    id: UUID
    bot: UUID
    provider: str
    account_id: str
    name: str
    enabled: bool
    settings: Any


def missing() -> NotFound:
    return NotFound("there is no such channel", "channelId")


_COLUMNS = """
  x.id, x.bot, x.provider, x.account_id, x.name, x.enabled, x.settings,
  ARRAY(SELECT jsonb_object_keys(CASE WHEN jsonb_typeof(x.credentials) = 'object' THEN x.credentials ELSE '{}' END)
    ORDER BY 1) AS credential_keys, x.credentials_key_id, jsonb_typeof(x.credentials) <> 'object' AS is_damaged,
  x.credentials_updated_at, x.created_at, x.updated_at, s.status, s.error, s.last_connected_at,
  CASE WHEN x.enabled AND p.status = 'ERROR' AND p.reason = 'CREDENTIALS_UNREADABLE' THEN
    CASE WHEN jsonb_typeof(x.credentials) = 'object' THEN x.credentials ELSE '{}' END END AS suspects
"""
_SOURCE = (
    "channel x JOIN channel_state s ON s.channel = x.id JOIN bot b ON b.id = x.bot JOIN bot_process p ON p.bot = b.id"
)


def _channel(row: dict[str, Any]) -> Channel:
    typed: dict[str, Any] = {"status": ChannelStatus(row["status"])}
    return Channel(**row | typed)


#: Reads them: by identity, or page by page of one bot.
READ = Parts(_COLUMNS, _SOURCE, "channels.createdAt", _channel, missing)


async def _written(viewer: Viewer, channel_id: UUID) -> Channel:
    """The channel on its bot as the caller's transaction leaves them; the next one may delete both."""
    row = await READ.require(viewer, channel_id)
    return replace(row, on=await roster.get(viewer, row.bot))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A channel as the bot's configuration takes it in; its secrets are sealed still."""

    id: UUID
    provider: str
    account_id: str
    name: str
    enabled: bool
    settings: dict[str, Any]
    credentials: dict[str, str] = field(repr=False)


async def rendered(bot_id: UUID) -> list[Rendered]:
    """What the bot's configuration is rendered from: a channel that is switched off comes without its secrets.

    Raises:
        CredentialsUnreadable: What is stored of a channel's secrets is damaged.
    """
    rows = await DB.fetch(
        "SELECT id, provider, account_id, name, enabled, settings, "
        "CASE WHEN enabled THEN credentials ELSE '{}' END AS credentials "
        "FROM channel WHERE bot = $1 ORDER BY provider, account_id",
        bot_id,
    )
    for row in rows:
        if not isinstance(row["credentials"], dict):
            raise CredentialsUnreadable(
                f"the credentials of the channel {row['name']!r} ({row['provider']}) cannot be read; set them anew"
            )
    return [Rendered(**row) for row in rows]


async def give_up(bot_id: UUID) -> int:
    """Switches the bot's channels off and forgets their secrets, for its next owner; how many it has.

    Inside the transaction of a caller that holds the bot's row and raises its revision.
    """
    rows = await DB.fetch(
        "UPDATE channel SET enabled = false, credentials = '{}'::jsonb, credentials_key_id = NULL, "
        "credentials_updated_at = NULL, fingerprint = NULL, row_version = row_version + 1, updated_at = now() "
        "WHERE bot = $1 RETURNING id",
        bot_id,
    )
    return len(rows)


class Channels:
    """Writes what people want of channels."""

    def __init__(self, revisions: Revisions, rules: ChannelRules) -> None:
        self._revisions = revisions
        self._rules = rules

    def catalogue(self) -> Mapping[str, ChannelProvider]:
        """What the installed OpenClaw can open, by name."""
        return self._rules.catalogue()

    def provider(self, name: str) -> ChannelProvider:
        """Raises `Invalid` for what the installed OpenClaw cannot open."""
        found = self._rules.catalogue().get(name)
        if found is None:
            raise Invalid(
                "the installed OpenClaw opens no channel of this kind; `channelProviders` lists those it opens",
                "provider",
            )
        return found

    def check(self, provider: ChannelProvider, settings: Any, credentials: Mapping[str, str]) -> None:
        """Raises `Invalid` for what has not the provider's form; the message holds no secret."""
        _refuse(self._rules.refused(provider, _object(settings), credentials))

    def _check_whole(
        self, provider: ChannelProvider, settings: Any, secrets: Collection[str], *, are_all: bool
    ) -> None:
        """Raises `Invalid` for what an open channel lacks. Secrets may come later, unless these are all there are."""
        lacks = self._rules.missing(provider, _object(settings), secrets)
        _refuse((path, why) for path, why in lacks if are_all or path[0] != "credentials")

    def _check_new(self, draft: Draft, credentials: Credentials) -> None:
        provider = self.provider(draft.provider)
        self.check(provider, draft.settings, {})
        if why := self._rules.account_refused(provider, account_id(draft.account_id)):
            raise Invalid(why, "accountId")
        if draft.enabled:
            secrets = _merged({}, credentials)
            self._check_whole(provider, draft.settings, secrets, are_all=bool(secrets))

    def _check_fit(self, old: dict[str, Any], secrets: Collection[str]) -> None:
        """Raises `Invalid` for secrets that need settings which the channel does not have."""
        lacks = self._rules.missing(self.provider(old["provider"]), old["settings"], secrets)
        for path, why in lacks:
            if path[0] != "credentials":
                raise Invalid(f"{'.'.join(path)}: {why}; change the settings first", "credentials")

    def lacks(self, channel: Channel) -> str | None:
        """What an open channel lacks to be in its bot's configuration; None where nothing."""
        provider = self._rules.catalogue().get(channel.provider)
        if provider is None:
            return "the installed OpenClaw has no channel of this kind"
        found = self._rules.missing(provider, channel.settings, channel.credential_keys)
        return f"{'.'.join(found[0][0])}: {found[0][1]}" if found else None

    async def provider_of(self, viewer: Viewer, channel_id: UUID) -> str:
        """The provider of a channel that the viewer may change."""
        row = await DB.fetch_one(
            "SELECT c.provider FROM channel c JOIN bot b ON b.id = c.bot "
            "WHERE c.id = $1 AND b.desired <> 'DELETED' AND ($2 OR b.owner = $3)",
            channel_id, viewer.writes_all, viewer.user_id,
        )  # fmt: skip
        if row is None:
            raise missing()
        return row["provider"]

    async def create(self, viewer: Viewer, draft: Draft, credentials: Credentials) -> Channel:
        """Opens a channel on a bot.

        Args:
            credentials: Sealed for the draft's id.
        """
        self._check_new(draft, credentials)
        name = words.line(draft.name, "name", words.MAX_NAME)
        settings = words.json_text(_object(draft.settings), "settings")
        leaves = _merged({}, credentials)
        try:
            async with DB.transaction():
                await self._revisions.hold(viewer, draft.bot, NotFound("there is no such bot", "botId"))
                await _claim_place(draft.bot)
                await DB.fetch(
                    "INSERT INTO channel (id, bot, provider, account_id, name, enabled, settings, credentials, "
                    "credentials_key_id, credentials_updated_at, fingerprint, created_at, updated_at) VALUES "
                    "($1, $2, $3, $4, $5, $6, $7::jsonb, $8::jsonb, $9, CASE WHEN $10 THEN now() END, $11, now(), "
                    "now())",
                    draft.id, draft.bot, draft.provider, draft.account_id, name, draft.enabled, settings,
                    words.json_text(leaves, "credentials"), _key_id(leaves), bool(leaves), credentials.fingerprint,
                )  # fmt: skip
                await DB.fetch("INSERT INTO channel_state (channel, changed_at) VALUES ($1, now())", draft.id)
                await self._revisions.changed(draft.bot)
                await audit.note(
                    "channelCreate", audit.Subject("Channel", draft.id), bot=str(draft.bot), provider=draft.provider,
                    accountId=draft.account_id, credentialKeys=sorted(leaves),
                )  # fmt: skip
                return await _written(viewer, draft.id)
        except asyncpg.UniqueViolationError as error:
            raise _unique(error, "credentials", *filter(None, [credentials.exclusive])) from error

    async def update(self, viewer: Viewer, channel_id: UUID, changes: Mapping[str, Any]) -> Channel:
        """Changes a channel; what is not among `changes` stays, and without any nothing happens.

        Args:
            changes: By name of the input's field: name, enabled, settings.
        """
        try:
            async with DB.transaction():
                old = await self._hold(viewer, channel_id)
                columns = self._columns(old, changes)
                if columns:
                    await self._change(channel_id, old, columns)
                return await _written(viewer, channel_id)
        except asyncpg.UniqueViolationError as error:
            raise _unique(error, "enabled") from error

    def _columns(self, old: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that differ from what is there."""
        found: dict[str, Any] = {}
        if "name" in changes:
            found["name"] = words.line(changes["name"] or "", "name", words.MAX_NAME)
        if changes.get("enabled") is not None:
            found["enabled"] = changes["enabled"]
        if "settings" in changes:
            self.check(self.provider(old["provider"]), changes["settings"], {})
            found["settings"] = _object(changes["settings"])
        found = {column: value for column, value in found.items() if value != old[column]}
        if "settings" in found:
            self._check_destination(old, found["settings"])
        if {"enabled": old["enabled"], **found}["enabled"] and found.keys() & {"enabled", "settings"}:
            settings = found.get("settings", old["settings"])
            self._check_whole(self.provider(old["provider"]), settings, old["credentials"], are_all=False)
        return found

    def _check_destination(self, old: dict[str, Any], settings: dict[str, Any]) -> None:
        """Raises `Conflict` where secrets would be sent elsewhere: who changes settings may not know them."""
        name = self._rules.led_elsewhere(old["settings"], settings, old["credentials"])
        if name is not None:
            raise Conflict(
                f"{name} says where the stored credentials are sent, so they have to be given anew: remove them with "
                "channelCredentialsSet, change the address, set them again",
                "settings", *name.split("."),
            )  # fmt: skip

    async def _change(self, channel_id: UUID, old: dict[str, Any], columns: dict[str, Any]) -> None:
        detail = {"enabled": columns["enabled"]} if "enabled" in columns else {}
        is_open = old["enabled"] or columns.get("enabled", False)
        is_configured = is_open and bool(columns.keys() & {"enabled", "settings"})
        changed = sorted(columns)
        if "settings" in columns:
            columns["settings"] = words.json_text(columns["settings"], "settings")
        texts = ", ".join(f"{column} = ${n}" for n, column in enumerate(columns, 2))
        await DB.fetch(f"UPDATE channel SET {texts}, updated_at = now() WHERE id = $1", channel_id, *columns.values())
        await self._revisions.changed(old["bot"], is_configured=is_configured)
        await audit.note("channelUpdate", audit.Subject("Channel", channel_id), changed=changed, **detail)

    async def set_credentials(self, viewer: Viewer, channel_id: UUID, credentials: Credentials) -> Channel:
        """Sets the secrets that are named and leaves the others; to remove what is not there changes nothing."""
        try:
            async with DB.transaction():
                old = await self._hold(viewer, channel_id)
                if any(sealed is not None or key in old["credentials"] for key, sealed in credentials.sealed.items()):
                    await self._write_credentials(channel_id, old, credentials)
                return await _written(viewer, channel_id)
        except asyncpg.UniqueViolationError as error:
            raise _unique(error, "credentials", *filter(None, [credentials.exclusive])) from error

    async def _write_credentials(self, channel_id: UUID, old: dict[str, Any], credentials: Credentials) -> None:
        leaves = _merged(old["credentials"], credentials)
        if old["enabled"] and any(credentials.sealed.values()):
            self._check_fit(old, leaves)
        fingerprint = credentials.fingerprint if credentials.changes_fingerprint else old["fingerprint"]
        await DB.fetch(
            "UPDATE channel SET credentials = $2::jsonb, credentials_key_id = $3, fingerprint = $4, "
            "row_version = row_version + 1, updated_at = now(), "
            "credentials_updated_at = CASE WHEN $5 THEN now() END WHERE id = $1",
            channel_id, words.json_text(leaves, "credentials"), _key_id(leaves), fingerprint, bool(leaves),
        )  # fmt: skip
        await self._revisions.changed(old["bot"], is_configured=old["enabled"])
        await audit.note(
            "channelCredentialsSet", audit.Subject("Channel", channel_id),
            set=sorted(key for key, value in credentials.sealed.items() if value is not None),
            removed=sorted(key for key in old["credentials"] if credentials.sealed.get(key, "") is None),
        )  # fmt: skip

    async def delete(self, viewer: Viewer, channel_id: UUID) -> UUID:
        """Closes a channel and forgets it with its secrets and its bindings; the bot it was on."""
        async with DB.transaction():
            old = await self._hold(viewer, channel_id)
            row = await DB.fetch_one("SELECT count(*) AS n FROM binding WHERE channel = $1", channel_id)
            await DB.fetch("DELETE FROM channel WHERE id = $1", channel_id)
            await self._revisions.changed(old["bot"])
            await audit.note(
                "channelDelete", audit.Subject("Channel", channel_id), bot=str(old["bot"]), provider=old["provider"],
                accountId=old["account_id"], bindings=row["n"] if row else 0,
            )  # fmt: skip
        return old["bot"]

    async def _hold(self, viewer: Viewer, channel_id: UUID) -> dict[str, Any]:
        """The row, locked after its bot's, if the viewer may change it; a foreign channel looks like a missing one."""
        row = await DB.fetch_one("SELECT bot FROM channel WHERE id = $1", channel_id)
        await self._revisions.hold(viewer, row["bot"] if row else None, missing())
        row = await DB.fetch_one(
            "SELECT bot, provider, account_id, name, enabled, settings, credentials, fingerprint FROM channel "
            "WHERE id = $1 FOR UPDATE",
            channel_id,
        )
        if row is None:
            raise missing()
        # Damaged ones can be set anew, as if there were none.
        return row if isinstance(row["credentials"], dict) else {**row, "credentials": {}}


def account_id(text: str, field: str = "accountId") -> str:
    if not ACCOUNT_ID.match(text):
        raise Invalid(
            f"{field} must be 1 to 64 small letters, digits, hyphens or underscores, "
            "and begin with a letter or a digit",
            field,
        )
    return text


def _refuse(found: Iterable[tuple[list[str], str]]) -> None:
    for path, why in found:
        raise Invalid(f"{'.'.join(path)}: {why}", *path)


def _object(settings: Any) -> dict[str, Any]:
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise Invalid("settings must be a JSON object", "settings")
    return settings  # pyright: ignore[reportUnknownVariableType]


async def _claim_place(bot_id: UUID) -> None:
    row = await DB.fetch_one("SELECT count(*) AS n FROM channel WHERE bot = $1", bot_id)
    if row and row["n"] >= MAX_CHANNELS:
        raise LimitReached(f"a bot has at most {MAX_CHANNELS} channels", "botId")


def _merged(old: Mapping[str, str], credentials: Credentials) -> dict[str, str]:
    leaves: dict[str, Sealed | str | None] = {**old, **credentials.sealed}
    return {key: str(value) for key, value in leaves.items() if value is not None}


def _key_id(leaves: Mapping[str, str]) -> int | None:
    """The oldest data key that is needed, so that a change of keys does not pass the row by."""
    found: list[int] = []
    for sealed in leaves.values():
        with suppress(SecretError):
            found.append(vault.key_id(sealed))
    return min(found, default=None)


def _unique(error: asyncpg.UniqueViolationError, *field: str) -> Refusal:
    """In words that say nothing of the other channel: it may be somebody else's."""
    if getattr(error, "constraint_name", None) == "channel_fingerprint":
        return CredentialsRefused(
            "this credential is in use: it can serve one enabled channel at a time; "
            "give this channel another one, or switch off the channel that has it",
            *field,
        )
    return Taken("the bot has a channel of this provider and account already", "accountId")
