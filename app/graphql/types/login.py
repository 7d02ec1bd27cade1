"""The linking of a channel, as the API shows it."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import strawberry

from app.domain.errors import Refusal
from app.domain.ports import LoginStep
from app.domain.states import ChannelLoginState
from app.graphql.types.error import UserError

if TYPE_CHECKING:
    from app.graphql.types.channel import Channel


@strawberry.type(description="How far the linking of a channel to an account has come.")
class ChannelLogin:
    state: ChannelLoginState = strawberry.field(description="Where it stands.")
    code: str | None = strawberry.field(
        description="Picture of the code, as a `data:image/png;base64,` URL; null unless the state is CODE. "
        "A secret: whoever scans it links an account."
    )
    code_ends_at: datetime | None = strawberry.field(
        description="When the code ends, by the clock of the server; null without a code, and where nobody knows."
    )
    user_errors: list[UserError] = strawberry.field(description="Why the state is FAILED; empty otherwise.")
    channel: Annotated["Channel", strawberry.lazy("app.graphql.types.channel")] = strawberry.field(
        description="The channel as it is now."
    )

    def __repr__(self) -> str:
        return f"ChannelLogin(state={self.state!r}, code=<secret>)"

    @classmethod
    def of(cls, step: LoginStep, channel: "Channel") -> "ChannelLogin":
        return cls(state=step.state, code=step.code, code_ends_at=step.code_ends_at, user_errors=[], channel=channel)

    @classmethod
    def failed(cls, refusal: Refusal, channel: "Channel") -> "ChannelLogin":
        errors = [UserError.of(refusal)]
        return cls(state=ChannelLoginState.FAILED, code=None, code_ends_at=None, user_errors=errors, channel=channel)
