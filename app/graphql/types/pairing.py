"""Somebody who waits to be let in at a channel, as the API shows them."""

from datetime import datetime

import strawberry
from strawberry.scalars import JSON

from app.domain.ports import Asking


@strawberry.type(description="Somebody who wants to talk to a bot and waits to be let in.")
class ChannelPairing:
    code: str = strawberry.field(description="Code that the channel showed them.")
    peer: JSON = strawberry.field(description="Who they say they are.")
    requested_at: datetime = strawberry.field(description="When they asked.")

    @classmethod
    def of(cls, asking: Asking) -> "ChannelPairing":
        return cls(code=asking.code, peer=JSON(dict(asking.peer)), requested_at=asking.requested_at)
