"""What mutations and lists of bots take."""

import strawberry
from strawberry.scalars import JSON

from app.domain.states import BotStatus, RestartMode
from app.graphql.inputs import any_text
from app.graphql.types.enums import BotControlAction, BotOrderField, OrderDirection
from app.services.bot_settings import RestartPolicy


@strawberry.input(one_of=True, description="How to find one bot: exactly one of the fields.")
class BotBy:
    id: strawberry.Maybe[strawberry.ID] = strawberry.field(description="Identity.")
    agent_id: strawberry.Maybe[str] = strawberry.field(description="Short name of the agent.")


@strawberry.input(description="Which bots: all conditions hold at once.")
class BotFilter:
    status: list[BotStatus] | None = strawberry.field(default=None, description="Status is one of these.")
    owner_id: list[strawberry.ID] | None = strawberry.field(default=None, description="Owner is one of these.")
    tags: list[str] | None = strawberry.field(default=None, description="Has all of these labels.")
    search: str | None = strawberry.field(default=None, description="Name, agent or description contains this text.")


@strawberry.input(description="Order of bots.")
class BotOrder:
    field: BotOrderField = strawberry.field(description="What to order by.")
    direction: OrderDirection = strawberry.field(default=OrderDirection.ASC, description="Which way.")


@strawberry.input(description="What is done after a crash.")
class RestartPolicyInput:
    mode: RestartMode = strawberry.field(description="When to start again.")
    max_restarts: int = strawberry.field(
        default=5, description="Restarts within the window before the bot is left in ERROR."
    )
    window_seconds: int = strawberry.field(default=600, description="Length of the window in seconds.")
    backoff_seconds: float = strawberry.field(
        default=1.0, description="First pause in seconds; it doubles with each restart."
    )

    def policy(self) -> RestartPolicy:
        return RestartPolicy(self.mode, self.max_restarts, self.window_seconds, self.backoff_seconds)


@strawberry.input(description="What `botCreate` takes.")
class BotCreateInput:
    name: str = strawberry.field(description="Name shown to people.")
    model: str = strawberry.field(description="Model the bot speaks with, as `provider/model`.")
    system_prompt: str | None = strawberry.field(
        default=None, description="Instruction every conversation starts with."
    )
    description: str | None = strawberry.field(default=None, description="What the bot is for.")
    tags: list[str] | None = strawberry.field(default=None, description="Labels.")
    restart_policy: RestartPolicyInput | None = strawberry.field(
        default=None, description="What is done after a crash."
    )
    config_overrides: JSON | None = strawberry.field(
        default=None, description="Settings laid over the generated ones. OpenClaw's own rules are asked about them."
    )
    agent_id: str | None = strawberry.field(
        default=None, description="Short name of the agent; made from the name when absent."
    )
    start: bool = strawberry.field(default=False, description="Start it at once.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botUpdate` takes.")
class BotUpdateInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    name: str | None = strawberry.field(default=strawberry.UNSET, description="Name shown to people.")
    model: str | None = strawberry.field(
        default=strawberry.UNSET, description="Model the bot speaks with, as `provider/model`."
    )
    system_prompt: str | None = strawberry.field(
        default=strawberry.UNSET, description="Instruction every conversation starts with."
    )
    description: str | None = strawberry.field(default=strawberry.UNSET, description="What the bot is for.")
    tags: list[str] | None = strawberry.field(default=strawberry.UNSET, description="Labels.")
    restart_policy: RestartPolicyInput | None = strawberry.field(
        default=strawberry.UNSET, description="What is done after a crash."
    )
    config_overrides: JSON | None = strawberry.field(
        default=strawberry.UNSET,
        description="Settings laid over the generated ones. OpenClaw's own rules are asked about them.",
    )
    expected_revision: int | None = strawberry.field(
        default=None, description="Refuse with STALE unless the configuration has this revision."
    )
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botDelete` takes.")
class BotDeleteInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botTransfer` takes.")
class BotTransferInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    owner_id: strawberry.ID = strawberry.field(description="The person who gets it.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botStart` takes.")
class BotStartInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    wait: bool = strawberry.field(default=True, description="Answer only when the process listens or failed.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botStop` takes.")
class BotStopInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    wait: bool = strawberry.field(default=True, description="Answer only when it has ended, or after 60 s.")
    grace_seconds: float | None = strawberry.field(default=None, description="Seconds before it is ended by force.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botRestart` takes.")
class BotRestartInput:
    bot_id: strawberry.ID = strawberry.field(description="The bot.")
    wait: bool = strawberry.field(default=True, description="Answer only when the process listens or failed.")
    client_mutation_id: str | None = any_text()


@strawberry.input(description="What `botsControl` takes.")
class BotsControlInput:
    bot_ids: list[strawberry.ID] = strawberry.field(description="The bots, at most 100; one named twice counts once.")
    action: BotControlAction = strawberry.field(description="What to do.")
    client_mutation_id: str | None = any_text()
