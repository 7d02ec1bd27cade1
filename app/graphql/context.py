"""What a resolver can reach: who asks, the services, and the loaders of this operation."""

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from litestar.connection import ASGIConnection
from strawberry.dataloader import DataLoader
from strawberry.litestar import BaseContext
from strawberry.types import Info as StrawberryInfo

from app.domain.errors import Unauthenticated
from app.domain.ports import ModelsTried, Wake
from app.domain.viewer import Viewer
from app.graphql.transport.connections import Connections, Peer
from app.pubsub.hub import Hub
from app.services import accounts, audit
from app.services.accounts import User
from app.services.bindings import Bindings
from app.services.bots import Bots
from app.services.channels import Channels
from app.services.fleet import Fleet
from app.services.limits import Limits
from app.services.logins import Logins
from app.services.messages import Messages
from app.services.pairings import Pairings
from app.services.people import People
from app.services.rotation import Rotations
from app.vault import Vault

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Services:
    """Everything the API speaks through; `main` puts it together."""

    bots: Bots
    channels: Channels
    bindings: Bindings
    messages: Messages
    people: People
    connections: Connections
    vault: Vault
    hub: Hub
    wake: Wake
    #: Runs work that nobody waits for, in a task group that the server owns.
    background: Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
    #: What callers of this server may use in a minute.
    limits: Limits
    fleet: Fleet
    rotations: Rotations
    pairings: Pairings
    logins: Logins
    models_tried: ModelsTried


class Context(BaseContext, kw_only=True):
    """Made anew for each HTTP request and each socket; `connection_params` are a socket's."""

    services: Services
    #: Reads objects by their identities, under the caller's rights.
    find: Callable[["Context", list[str]], Awaitable[list[Any]]] | None = None
    schema_hash: str = ""
    token: str | None = None
    request_id: str = ""
    #: The caller's address; behind a trusted proxy, the one it names.
    address: str | None = None
    #: Bytes of the request's body; 0 on a socket, whose frames are small.
    body_size: int = 0
    is_socket: bool = False
    #: The socket, where it is one.
    peer: Peer | None = None
    connection_params: dict[str, object] | None = None
    known: Viewer | None = None
    is_looked_up: bool = False
    loaders: dict[str, DataLoader[Any, Any]] = msgspec.field(default_factory=dict[str, DataLoader[Any, Any]])

    async def viewer(self) -> Viewer | None:
        """Who asks. A socket's token is looked up at each operation, so that a revoked one stops at once."""
        if self.is_socket or not self.is_looked_up:
            self.known = await accounts.viewer_of(self.token) if self.token else None
            self.is_looked_up = True
        return self.known

    async def signed_in(self) -> Viewer:
        viewer = await self.viewer()
        if viewer is None:
            raise Unauthenticated("sign in first: send the header `Authorization: Bearer <token>`")
        return viewer

    async def renewed(self) -> Viewer:
        """Who asks, looked up again: after a wait, and before each mutation of a document, rights may be others."""
        self.is_looked_up = False
        return await self.signed_in()

    def loader(self, name: str, make: Callable[[], DataLoader[K, V]]) -> DataLoader[K, V]:
        """The loader of this name, made when it is first asked for."""
        if name not in self.loaders:
            self.loaders[name] = make()
        return self.loaders[name]

    @property
    def caller(self) -> Viewer:
        """Who asks, behind a field whose guard has seen to it that somebody does."""
        if self.known is None:
            raise Unauthenticated("sign in first")
        return self.known

    @property
    def actor(self) -> audit.Actor:
        """Who acts, for the audit trail."""
        viewer = self.known
        return audit.Actor(viewer and viewer.user_id, viewer and viewer.token_id, self.address)


Info = StrawberryInfo[Context, None]


def bearer(text: str | None) -> str | None:
    """The token of an `Authorization` value; None where it carries none."""
    scheme, _, token = (text or "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def token_of(connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
    return bearer(connection.headers.get("authorization"))


async def _load_users(ids: list[UUID]) -> list[User | None]:
    found = await accounts.users(ids)
    return [found.get(identity) for identity in ids]


def user_loader() -> DataLoader[UUID, User | None]:
    # Without a cache: a socket's context outlives many changes.
    return DataLoader(load_fn=_load_users, cache=False)


def node_loader(context: Context) -> DataLoader[str, Any]:
    """Objects by their identities, read together; None for what the caller may not see."""

    async def load(ids: list[str]) -> list[Any]:
        assert context.find is not None  # The transport hands it in.
        return await context.find(context, ids)

    return context.loader("nodes", lambda: DataLoader(load_fn=load, cache=False))
