"""The domain's enums as the schema shows them: the same words, described for readers."""

from enum import Enum

import strawberry

from app.domain import states
from app.domain.events import BotEventKind


def _described(enum: type[Enum], description: str, values: dict[str, str]) -> None:
    """Publishes an enum of the domain. A value without a description fails the import."""
    published = strawberry.enum(enum, description=description)
    for value in published.__strawberry_definition__.values:  # pyright: ignore
        value.description = values[value.name]


_described(
    states.BotStatus,
    "What a bot's process is doing.",
    {
        "INACTIVE": "No process, and none is wanted. `inactive` in room messages.",
        "STARTING": "The process is up but does not listen yet.",
        "ACTIVE": "The process listens. `active` in room messages.",
        "STOPPING": "The process was told to end.",
        "BACKOFF": "The process ended unasked and is started again after a pause. `error` in room messages.",
        "ERROR": "The process failed and needs a person, or is tried again only now and then. "
        "`error` in room messages.",
    },
)


@strawberry.enum(description="What a bot's process should be doing.")
class BotDesiredState(Enum):
    RUNNING = strawberry.enum_value("RUNNING", description="Run, also after a restart of the server.")
    STOPPED = strawberry.enum_value("STOPPED", description="Stay down.")


_described(
    states.RestartMode,
    "When a crashed process is started again.",
    {
        "NEVER": "Never: the bot is left in ERROR, as the first ClawNet did.",
        "ON_FAILURE": "When the process ended with a fault.",
        "ALWAYS": "Whenever the process ends unasked.",
    },
)

_described(
    states.FleetHostState,
    "Whether a machine takes part.",
    {
        "READY": "Takes new bots.",
        "DRAINING": "Keeps its bots, takes no new ones.",
        "LOST": "Gave no sign of life in time.",
    },
)

_described(
    states.UserRole,
    "What a person may do.",
    {
        "ADMIN": "Everything, including keys, machines and other people's bots.",
        "MEMBER": "Own bots, profiles and posts.",
        "OBSERVER": "Read only.",
    },
)

_described(
    states.TokenScope,
    "What an access token may do.",
    {
        "FLEET_READ": "Read bots, channels, sessions, logs and metrics.",
        "FLEET_WRITE": "Create, change, start, stop and delete bots.",
        "CREDENTIALS_WRITE": "Write channel credentials.",
        "SOCIAL_READ": "Read posts, comments, profiles and notifications.",
        "SOCIAL_WRITE": "Write posts, comments, likes and follows.",
        "ADMIN": "Keys, machines, people and the audit trail.",
    },
)

_described(
    states.ModelProviderApi,
    "How a provider of models is spoken to.",
    {
        "OPENAI_COMPLETIONS": "OpenAI's chat completions, as many others serve them.",
        "OPENAI_RESPONSES": "OpenAI's responses.",
        "ANTHROPIC_MESSAGES": "Anthropic's messages.",
        "GOOGLE_GENERATIVE_AI": "Google's generative AI.",
    },
)

_described(
    states.ChannelLoginState,
    "How far the linking of a channel by a code has come.",
    {
        "WAITING": "There is no code that can be scanned right now.",
        "CODE": "There is one; its holder's phone links the account.",
        "LINKED": "The channel is linked, and opens.",
        "FAILED": "It was refused or broke off.",
    },
)
_described(
    states.ChannelStatus,
    "Whether a channel is connected.",
    {
        "DISCONNECTED": "Not connected, and not meant to be.",
        "CONNECTING": "On its way.",
        "CONNECTED": "Connected.",
        "ERROR": "Refused or broken.",
    },
)

_described(
    states.KeyRotationState,
    "Where a change of keys stands.",
    {
        "RUNNING": "Under way.",
        "SUCCEEDED": "All secrets use the new key.",
        "FAILED": "Some secrets still use an old key.",
    },
)

_described(
    BotEventKind,
    "What happened to a bot's process.",
    {
        "CURRENT": "How things stand now: what every listener gets first.",
        "RESYNC": "Events were missed because the cursor is too old or the reader too slow: how things stand now.",
        "CREATED": "The bot was made.",
        "STARTING": "The process was started.",
        "STARTED": "The process listens: `bot:started`.",
        "STOPPING": "The process was asked to end.",
        "STOPPED": "The process ended as asked: `bot:stopped`.",
        "CHANNEL_CHANGED": "A channel was connected, lost or refused; `bot.channels` says which.",
        "CONFIG_ROLLED_BACK": "New settings were refused and the last good ones are back.",
        "ERROR": "The process failed: `bot:error`.",
        "BACKOFF": "The process failed and is started again after a pause: `bot:error`.",
        "ADOPTED": "A running process was taken over by a server that was started anew.",
        "UPDATED": "Settings changed.",
        "TRANSFERRED": "The bot belongs to somebody else now.",
        "DELETED": "The bot is gone.",
    },
)


@strawberry.enum(description="What the caller may do with a bot.")
class BotAction(Enum):
    START = strawberry.enum_value("START", description="Start the process.")
    STOP = strawberry.enum_value("STOP", description="Stop the process.")
    UPDATE = strawberry.enum_value("UPDATE", description="Change settings, channels and bindings.")
    DELETE = strawberry.enum_value("DELETE", description="Delete the bot with everything on it.")
    WRITE_CREDENTIALS = strawberry.enum_value("WRITE_CREDENTIALS", description="Write credentials.")
    MESSAGE = strawberry.enum_value("MESSAGE", description="Speak with the bot.")


@strawberry.enum(description="What can be asked of a bot's process.")
class BotControlAction(Enum):
    START = strawberry.enum_value("START", description="Start.")
    STOP = strawberry.enum_value("STOP", description="Stop.")
    RESTART = strawberry.enum_value("RESTART", description="Restart.")


@strawberry.enum(description="Direction of an ordering.")
class OrderDirection(Enum):
    ASC = strawberry.enum_value("ASC", description="Smallest, oldest or first in the alphabet first.")
    DESC = strawberry.enum_value("DESC", description="Largest, newest or last in the alphabet first.")


@strawberry.enum(description="What bots can be ordered by.")
class BotOrderField(Enum):
    CREATED_AT = strawberry.enum_value("CREATED_AT", description="When the bot was made.")
    LAST_SEEN_AT = strawberry.enum_value("LAST_SEEN_AT", description="When it last gave a sign of life.")
    NAME = strawberry.enum_value("NAME", description="Its name.")
    STATUS = strawberry.enum_value("STATUS", description="Its status.")


@strawberry.enum(description="Reasons a mutation was refused.")
class UserErrorCode(Enum):
    BLANK = strawberry.enum_value("BLANK", description="A required value is empty.")
    INVALID = strawberry.enum_value("INVALID", description="The value has a form that is not accepted.")
    TOO_LONG = strawberry.enum_value("TOO_LONG", description="The value is longer or larger than allowed.")
    TAKEN = strawberry.enum_value("TAKEN", description="Another object already has this value.")
    NOT_FOUND = strawberry.enum_value("NOT_FOUND", description="No object with this identity is visible to the caller.")
    CONFLICT = strawberry.enum_value("CONFLICT", description="The object is in a state that does not allow this.")
    STALE = strawberry.enum_value("STALE", description="The object changed since the caller read it.")
    LIMIT_REACHED = strawberry.enum_value(
        "LIMIT_REACHED", description="A limit of the account or of the fleet is reached."
    )
    GATEWAY_FAILED = strawberry.enum_value(
        "GATEWAY_FAILED", description="The bot's process did not do what was asked in time."
    )
    CREDENTIALS_REFUSED = strawberry.enum_value("CREDENTIALS_REFUSED", description="The credentials were refused.")


@strawberry.enum(description="Who said a message.")
class MessageRole(Enum):
    USER = strawberry.enum_value("USER", description="The peer.")
    ASSISTANT = strawberry.enum_value("ASSISTANT", description="The bot.")
