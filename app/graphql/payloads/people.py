"""What mutations of people and their tokens answer."""

from datetime import datetime

import strawberry

from app.graphql.payloads import errors, text
from app.graphql.types.access_token import AccessToken
from app.graphql.types.error import UserError
from app.graphql.types.user import User


@strawberry.type(description="What `signIn` answers.")
class SignInPayload:
    access_token: str | None = strawberry.field(
        default=None,
        description="Send it as `Authorization: Bearer` or in `connection_init`; null if it was refused.",
    )
    expires_at: datetime | None = strawberry.field(
        default=None,
        description="When it stops working: 12 hours after its last use, 30 days after the sign-in at the latest.",
    )
    viewer: User | None = strawberry.field(default=None, description="Who signed in.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `signOut` answers.")
class SignOutPayload:
    viewer: User | None = strawberry.field(default=None, description="Who signed out.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `passwordChange` answers.")
class PasswordChangePayload:
    viewer: User | None = strawberry.field(default=None, description="Whose password it is; null if it was refused.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `accessTokenCreate` answers.")
class AccessTokenCreatePayload:
    access_token: AccessToken | None = strawberry.field(default=None, description="The token; null if it was refused.")
    secret: str | None = strawberry.field(default=None, description="What programs send.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `accessTokenRevoke` answers.")
class AccessTokenRevokePayload:
    revoked_access_token_id: strawberry.ID | None = strawberry.field(
        default=None, description="Identity of the ended token; null if it was refused."
    )
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `userCreate` answers.")
class UserCreatePayload:
    user: User | None = strawberry.field(default=None, description="The person; null if it was refused.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()


@strawberry.type(description="What `userUpdate` answers.")
class UserUpdatePayload:
    user: User | None = strawberry.field(default=None, description="The person; null if it was refused.")
    user_errors: list[UserError] = errors()
    client_mutation_id: str | None = text()
