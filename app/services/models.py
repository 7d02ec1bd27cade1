"""Providers of models: where they are, how they are spoken to, and the key that opens them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg

from app.db.engine import DB
from app.domain.errors import Conflict, Invalid, NotFound, Taken
from app.domain.ports import ModelsTried, Wake
from app.domain.states import ModelProviderApi
from app.domain.viewer import Viewer
from app.services import audit, words
from app.vault import Sealed

#: Longest name and address of a provider.
MAX_NAME, MAX_URL = 50, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProvider:
    """A provider as its row holds it; the key stays sealed."""

    id: UUID
    owner: UUID | None
    name: str
    api: ModelProviderApi
    base_url: str | None
    models: list[dict[str, Any]]
    api_key: Sealed | None
    api_key_updated_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a caller wants kept. `api_key` is None to remove it; `keeps_key` leaves it as it is."""

    id: UUID | None
    name: str
    api: ModelProviderApi
    base_url: str | None
    models: list[Any]
    shared: bool | None
    keeps_key: bool


_COLUMNS = "id, owner, name, api, base_url, models, api_key, api_key_updated_at"


def _provider(row: dict[str, Any]) -> ModelProvider:
    sealed = row["api_key"]
    row = row | {"api": ModelProviderApi(row["api"]), "api_key": Sealed(sealed) if sealed else None}
    return ModelProvider(**row)


async def visible(viewer: Viewer) -> list[ModelProvider]:
    """The viewer's own providers and those of the installation; every one for who sees all."""
    rows = await DB.fetch(
        f"SELECT {_COLUMNS} FROM model_provider WHERE $1 OR owner IS NULL OR owner = $2 ORDER BY name, id",
        viewer.sees_all, viewer.user_id,
    )  # fmt: skip
    return [_provider(row) for row in rows]


async def get(viewer: Viewer, identity: UUID) -> ModelProvider | None:
    rows = await by_ids(viewer, [identity])
    return rows.get(identity)


async def by_ids(viewer: Viewer, ids: list[UUID]) -> dict[UUID, ModelProvider]:
    rows = await DB.fetch(
        f"SELECT {_COLUMNS} FROM model_provider WHERE id = ANY($1::uuid[]) AND ($2 OR owner IS NULL OR owner = $3)",
        ids, viewer.sees_all, viewer.user_id,
    )  # fmt: skip
    return {row["id"]: _provider(row) for row in rows}


async def for_owner(owner: UUID, name: str) -> ModelProvider | None:
    """The provider a bot of this owner means by the name: the owner's own before the installation's."""
    row = await DB.fetch_one(
        f"SELECT {_COLUMNS} FROM model_provider WHERE name = $1 AND (owner = $2 OR owner IS NULL) "
        "ORDER BY owner NULLS LAST LIMIT 1",
        name, owner,
    )  # fmt: skip
    return None if row is None else _provider(row)


async def require(owner: UUID, model: str) -> str:
    """The model as it is kept. Refuses one whose provider this owner does not have.

    Inside the caller's transaction the provider can neither be deleted nor renamed until that ends.
    """
    model = words.line(model, "model", words.MAX_MODEL)
    provider, slash, name = model.partition("/")
    if not slash or not provider or not name:
        raise Invalid("model must read `provider/model`, for example `openai/gpt-5`", "model")
    held = "SELECT id FROM model_provider WHERE name = $1 AND (owner = $2 OR owner IS NULL) FOR KEY SHARE"
    if not await DB.fetch(held, provider, owner):
        raise Invalid(f"there is no model provider {provider!r}; make it with modelProviderSave first", "model")
    return model


async def try_models(viewer: Viewer, draft: Draft, tried: ModelsTried) -> None:
    """Raises `Invalid` for models that the installed OpenClaw would refuse; those that are kept are not asked about.

    It may take seconds: outside of any transaction.
    """
    _checked(draft)
    kept = await get(viewer, draft.id) if draft.id else None
    if not draft.models or (kept and kept.models == draft.models):
        return
    for path, why in await tried(viewer.user_id, draft.models):
        raise Invalid(f"{'.'.join(('models', *path))}: {why}", "models", *path)


async def save(viewer: Viewer, wake: Wake, draft: Draft, sealed: Sealed | None, key_id: int, identity: UUID) -> UUID:
    """Makes or changes a provider; bots that use it read the change.

    Args:
        sealed: The API key, sealed for `identity`; None removes it unless `draft.keeps_key`.
        identity: The provider's id, also for a new one (the seal is bound to it).
    """
    name, base_url, models = _checked(draft)
    try:
        async with DB.transaction():
            old = await _lock(viewer, draft.id) if draft.id else None
            owner = _owner(viewer, draft.shared, old)
            if old is None:
                await DB.fetch(
                    "INSERT INTO model_provider (id, owner, name, api, base_url, models, created_at) "
                    "VALUES ($1, $2, $3, $4, $5, $6, now())",
                    identity, owner, name, draft.api.value, base_url, models,
                )  # fmt: skip
            else:
                _refuse_elsewhere(old, draft, base_url)
                await _refuse_while_used(old, name, owner)
                await DB.fetch(
                    "UPDATE model_provider SET owner = $2, name = $3, api = $4, base_url = $5, models = $6 "
                    "WHERE id = $1",
                    identity, owner, name, draft.api.value, base_url, models,
                )  # fmt: skip
            if not draft.keeps_key:
                await DB.fetch(
                    "UPDATE model_provider SET api_key = $2, api_key_key_id = $3, row_version = row_version + 1, "
                    "api_key_updated_at = CASE WHEN $2::text IS NULL THEN NULL ELSE now() END WHERE id = $1",
                    identity, sealed and str(sealed), key_id if sealed else None,
                )  # fmt: skip
            await _touch_bots(wake, name, owner)
            await audit.note(
                "modelProviderSave", audit.Subject("ModelProvider", identity),
                name=name, shared=owner is None, keyChanged=not draft.keeps_key,
            )  # fmt: skip
    except asyncpg.UniqueViolationError as error:
        raise Taken(f"there is a model provider {name!r} already", "name") from error
    return identity


def _checked(draft: Draft) -> tuple[str, str | None, str]:
    name = words.line(draft.name, "name", MAX_NAME)
    if not words.AGENT_ID.match(name):
        raise Invalid("name must be small letters, digits or hyphens: it is the part before `/` of a model", "name")
    base_url = words.line(draft.base_url, "baseUrl", MAX_URL) if draft.base_url else None
    if base_url and not _is_http(base_url):
        raise Invalid("baseUrl must be an http or https address without a user or a password in it", "baseUrl")
    for model in draft.models:
        if not isinstance(model, dict) or not isinstance(model.get("id"), str) or not model["id"]:  # pyright: ignore[reportUnknownMemberType]
            raise Invalid('models must be a list of objects that have at least an "id"', "models")
    return name, base_url, words.json_text(draft.models, "models")


def _is_http(address: str) -> bool:
    try:
        parts = urlsplit(address)
        is_plain = not any(character.isspace() for character in address) and parts.port != 0
        return is_plain and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
    except ValueError:
        return False


async def _lock(viewer: Viewer, identity: UUID) -> ModelProvider:
    row = await DB.fetch_one(f"SELECT {_COLUMNS} FROM model_provider WHERE id = $1 FOR NO KEY UPDATE", identity)
    is_visible = row is not None and (row["owner"] is None or row["owner"] == viewer.user_id or viewer.sees_all)
    if row is None or not is_visible:
        raise NotFound("there is no such model provider", "id")
    if not viewer.writes_all and row["owner"] is None:
        raise Conflict("this provider is the installation's; only administrators change it", "id")
    return _provider(row)


def _refuse_elsewhere(old: ModelProvider, draft: Draft, base_url: str | None) -> None:
    """Who changes an address may not know the key that is kept, and could have it sent to a place of their own."""
    if draft.keeps_key and old.api_key is not None and base_url != old.base_url:
        raise Conflict("the stored key is not sent to another address: give apiKey with it, anew or null", "baseUrl")


def _owner(viewer: Viewer, shared: bool | None, old: ModelProvider | None) -> UUID | None:
    if shared and not viewer.writes_all:
        raise Invalid("only administrators share a provider with everybody", "shared")
    if shared is None and old is not None:
        return old.owner
    return None if shared else (old.owner if old and old.owner else viewer.user_id)


async def delete(viewer: Viewer, identity: UUID) -> UUID:
    """Forgets a provider. Refused while a bot uses it."""
    async with DB.transaction():
        provider = await _lock(viewer, identity)
        await _refuse_while_used(provider, None, provider.owner)
        await DB.fetch("DELETE FROM model_provider WHERE id = $1", identity)
        await audit.note("modelProviderDelete", audit.Subject("ModelProvider", identity), name=provider.name)
    return identity


async def _refuse_while_used(old: ModelProvider, name: str | None, owner: UUID | None) -> None:
    if name == old.name and (owner == old.owner or owner is None):
        return
    # Waits for bots that are just coming to it (`require`), so that the count is right.
    await DB.fetch("SELECT id FROM model_provider WHERE id = $1 FOR UPDATE", old.id)
    row = await DB.fetch_one(
        "SELECT count(*) AS n, min(agent_id) AS first FROM bot b WHERE desired <> 'DELETED' "
        "AND split_part(model, '/', 1) = $1 AND ($2::uuid IS NULL OR b.owner = $2)",
        old.name, old.owner,
    )  # fmt: skip
    if row and row["n"]:
        raise Conflict(f"{row['n']} bot(s) use this provider, {row['first']} among them", "id")


async def _touch_bots(wake: Wake, name: str, owner: UUID | None) -> None:
    rows = await DB.fetch(
        "UPDATE bot SET config_revision = config_revision + 1 WHERE desired <> 'DELETED' "
        "AND split_part(model, '/', 1) = $1 AND ($2::uuid IS NULL OR owner = $2) RETURNING id",
        name, owner,
    )  # fmt: skip

    def ring() -> None:
        for row in rows:
            wake(row["id"])

    DB.after_commit(ring)
