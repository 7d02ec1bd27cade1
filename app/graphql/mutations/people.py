"""Signing in and out, tokens for programs, and accounts."""

from typing import Annotated

import strawberry

from app.domain.states import TokenScope
from app.graphql.context import Info
from app.graphql.inputs import people as inputs
from app.graphql.mutations.input import INPUT
from app.graphql.payloads import people as payloads
from app.graphql.permissions import Rule, mutation
from app.graphql.types import node
from app.graphql.types.access_token import AccessToken
from app.graphql.types.user import User
from app.services import accounts, tokens


@strawberry.type
class PeopleMutations:
    @mutation(Rule.PUBLIC, None, "Trades name and password for a short-lived token.")
    async def sign_in(self, info: Info, input: Annotated[inputs.SignInInput, INPUT]) -> payloads.SignInPayload:
        signed = await info.context.services.people.sign_in(input.email, input.password)
        user = (await accounts.users([signed.viewer.user_id]))[signed.viewer.user_id]
        return payloads.SignInPayload(
            access_token=signed.token, expires_at=signed.expires_at, viewer=User.from_row(user, signed.viewer)
        )

    @mutation(Rule.SELF, None, "Ends the token the caller signed in with, and closes its sockets.")
    async def sign_out(self, info: Info, input: Annotated[inputs.SignOutInput, INPUT]) -> payloads.SignOutPayload:
        user = await _viewer(info)
        await info.context.services.people.sign_out(info.context.caller)
        return payloads.SignOutPayload(viewer=user)

    @mutation(Rule.SELF, None, "Changes the caller's own password, and ends the caller's other sign-ins.")
    async def password_change(
        self, info: Info, input: Annotated[inputs.PasswordChangeInput, INPUT]
    ) -> payloads.PasswordChangePayload:
        people, viewer = info.context.services.people, info.context.caller
        await people.change_password(viewer, input.current_password, input.new_password)
        return payloads.PasswordChangePayload(viewer=await _viewer(info))

    @mutation(Rule.SELF, None, "Makes a token for programs. The secret is shown only here.")
    async def access_token_create(
        self, info: Info, input: Annotated[inputs.AccessTokenCreateInput, INPUT]
    ) -> payloads.AccessTokenCreatePayload:
        life = accounts.TOKEN_LIFE
        if input.expires_at is not strawberry.UNSET:
            life = input.expires_at and tokens.life_until(input.expires_at)
        token, secret = await tokens.create(info.context.caller, input.name, input.scopes, life)
        return payloads.AccessTokenCreatePayload(access_token=AccessToken.from_row(token), secret=secret)

    @mutation(Rule.SELF, None, "Ends a token and closes the sockets opened with it.")
    async def access_token_revoke(
        self, info: Info, input: Annotated[inputs.AccessTokenRevokeInput, INPUT]
    ) -> payloads.AccessTokenRevokePayload:
        identity = node.require(input.access_token_id, "AccessToken", "accessTokenId")
        await tokens.revoke(info.context.services.hub.wake, info.context.caller, identity)
        return payloads.AccessTokenRevokePayload(revoked_access_token_id=input.access_token_id)

    @mutation(Rule.OWNED, TokenScope.ADMIN, "Makes an account.")
    async def user_create(
        self, info: Info, input: Annotated[inputs.UserCreateInput, INPUT]
    ) -> payloads.UserCreatePayload:
        user_id = await info.context.services.people.create(input.name, input.email, input.password, input.role)
        user = (await accounts.users([user_id]))[user_id]
        return payloads.UserCreatePayload(user=User.from_row(user, info.context.caller))

    @mutation(Rule.OWNED, TokenScope.ADMIN, "Changes an account; what is absent stays.")
    async def user_update(
        self, info: Info, input: Annotated[inputs.UserUpdateInput, INPUT]
    ) -> payloads.UserUpdatePayload:
        given = {
            "name": input.name,
            "email": input.email,
            "role": input.role,
            "password": input.password,
            "disabled": input.disabled,
        }
        changes = {name: value for name, value in given.items() if value is not strawberry.UNSET}
        user_id = node.require(input.user_id, "User", "userId")
        user = await info.context.services.people.update(user_id, changes)
        return payloads.UserUpdatePayload(user=User.from_row(user, info.context.caller))


async def _viewer(info: Info) -> User:
    viewer = info.context.caller
    return User.from_row((await accounts.users([viewer.user_id]))[viewer.user_id], viewer)
