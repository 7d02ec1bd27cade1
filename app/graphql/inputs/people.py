"""What mutations of people and their tokens take."""

from datetime import datetime

import strawberry

from app.domain.states import TokenScope, UserRole
from app.graphql.inputs import any_text


@strawberry.input(description="What `signIn` takes.")
class SignInInput:
    email: str = strawberry.field(description="Address.")
    password: str = strawberry.field(description="Password.")
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return "SignInInput(<secret>)"


@strawberry.input(description="What `signOut` takes.")
class SignOutInput:
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `passwordChange` takes.")
class PasswordChangeInput:
    current_password: str = strawberry.field(description="The password so far.")
    new_password: str = strawberry.field(description="The password from now on: at least 12 characters.")
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return "PasswordChangeInput(<secret>)"


@strawberry.input(description="What `accessTokenCreate` takes.")
class AccessTokenCreateInput:
    name: str = strawberry.field(description="Name.")
    scopes: list[TokenScope] = strawberry.field(description="What it may do: no more than the token that makes it.")
    expires_at: datetime | None = strawberry.field(
        default=strawberry.UNSET, description="When it stops working; in 90 days when absent, never when null."
    )
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `accessTokenRevoke` takes.")
class AccessTokenRevokeInput:
    access_token_id: strawberry.ID = strawberry.field(description="The token.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `userCreate` takes.")
class UserCreateInput:
    name: str = strawberry.field(description="Name shown to people.")
    email: str = strawberry.field(description="Address for signing in.")
    password: str = strawberry.field(description="First password: at least 12 characters.")
    role: UserRole = strawberry.field(default=UserRole.MEMBER, description="What the person may do.")
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return "UserCreateInput(<secret>)"


@strawberry.input(description="What `userUpdate` takes.")
class UserUpdateInput:
    user_id: strawberry.ID = strawberry.field(description="The person.")
    name: str | None = strawberry.field(default=strawberry.UNSET, description="Name shown to people.")
    email: str | None = strawberry.field(default=strawberry.UNSET, description="Address for signing in.")
    role: UserRole | None = strawberry.field(default=strawberry.UNSET, description="What the person may do.")
    password: str | None = strawberry.field(
        default=strawberry.UNSET, description="New password: at least 12 characters. It ends the person's sign-ins."
    )
    disabled: bool | None = strawberry.field(
        default=strawberry.UNSET,
        description="Shut the person out, tokens and open sockets included, or let them in again. Bots run on.",
    )
    client_mutation_id: str | None = any_text()

    def __repr__(self) -> str:
        return "UserUpdateInput(<secret>)"


@strawberry.input(description="Which entries of the audit trail: all conditions hold at once.")
class AuditFilter:
    actor_id: list[strawberry.ID] | None = strawberry.field(default=None, description="Done by one of these people.")
    subject_id: list[strawberry.ID] | None = strawberry.field(default=None, description="Done to one of these objects.")
    action: list[str] | None = strawberry.field(default=None, description="One of these deeds.")
