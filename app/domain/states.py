"""The states a bot and its parts can be in; the same words in tables, schema, events and logs."""

from enum import StrEnum


class BotStatus(StrEnum):
    """What a bot's process is doing."""

    INACTIVE = "INACTIVE"
    STARTING = "STARTING"
    ACTIVE = "ACTIVE"
    STOPPING = "STOPPING"
    BACKOFF = "BACKOFF"
    ERROR = "ERROR"

    @property
    def has_process(self) -> bool:
        """A process belongs to this status (or is about to)."""
        return self in (BotStatus.STARTING, BotStatus.ACTIVE, BotStatus.STOPPING)

    @property
    def public(self) -> str:
        """The word the first ClawNet sent in room messages: `active`, `inactive` or `error`."""
        if self in (BotStatus.BACKOFF, BotStatus.ERROR):
            return "error"
        return "active" if self is BotStatus.ACTIVE else self.value.lower()


class DesiredState(StrEnum):
    """What a bot's process should be doing."""

    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    DELETED = "DELETED"


class Reason(StrEnum):
    """Why a bot changed its status."""

    # Why it starts or stops.
    USER = "USER"
    AUTOSTART = "AUTOSTART"
    RETRY = "RETRY"
    RECONFIGURE = "RECONFIGURE"
    SHUTDOWN = "SHUTDOWN"
    DELETED = "DELETED"
    # How it went.
    READY = "READY"
    STOPPED = "STOPPED"
    KILLED = "KILLED"
    # What went wrong.
    START_TIMEOUT = "START_TIMEOUT"
    EXITED = "EXITED"
    PORT_IN_USE = "PORT_IN_USE"
    SPAWN_FAILED = "SPAWN_FAILED"
    BINARY_MISSING = "BINARY_MISSING"
    PLUGIN_MISSING = "PLUGIN_MISSING"
    CREDENTIALS_UNREADABLE = "CREDENTIALS_UNREADABLE"
    CONFIG_INVALID = "CONFIG_INVALID"
    CRASHED = "CRASHED"
    UNHEALTHY = "UNHEALTHY"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    HOST_RESTART = "HOST_RESTART"
    LOST = "LOST"
    CRASH_LOOP = "CRASH_LOOP"
    NOT_RESTARTED = "NOT_RESTARTED"


class Phase(StrEnum):
    """What a start is doing while its status stays STARTING."""

    WAITING = "waiting"
    PREPARING = "preparing"
    PLUGIN = "plugin"
    CHECKING = "checking"
    LAUNCHING = "launching"


class PluginStep(StrEnum):
    """What is being done about a channel's plugin."""

    WAITING = "waiting"
    ASKING = "asking"
    DOWNLOADING = "downloading"
    INSTALLING = "installing"


class RestartMode(StrEnum):
    """When a crashed process is started again."""

    NEVER = "NEVER"
    ON_FAILURE = "ON_FAILURE"
    ALWAYS = "ALWAYS"


class FleetHostState(StrEnum):
    """Whether a machine takes part."""

    READY = "READY"
    DRAINING = "DRAINING"
    LOST = "LOST"


class UserRole(StrEnum):
    """What a person may do."""

    ADMIN = "ADMIN"
    MEMBER = "MEMBER"
    OBSERVER = "OBSERVER"


class TokenScope(StrEnum):
    """What an access token may do."""

    FLEET_READ = "FLEET_READ"
    FLEET_WRITE = "FLEET_WRITE"
    CREDENTIALS_WRITE = "CREDENTIALS_WRITE"
    SOCIAL_READ = "SOCIAL_READ"
    SOCIAL_WRITE = "SOCIAL_WRITE"
    ADMIN = "ADMIN"


class TokenKind(StrEnum):
    """What a token was made for; its letter stands in the token itself (`cn_p_…`)."""

    SESSION = "s"
    PERSONAL = "p"
    INTERNAL = "i"


class ModelProviderApi(StrEnum):
    """How a provider of models is spoken to; the value is OpenClaw's word for it."""

    OPENAI_COMPLETIONS = "openai-completions"
    OPENAI_RESPONSES = "openai-responses"
    ANTHROPIC_MESSAGES = "anthropic-messages"
    GOOGLE_GENERATIVE_AI = "google-generative-ai"


class NotificationKind(StrEnum):
    """What a notification is about."""

    BOT_ERROR = "BOT_ERROR"
    BOT_STOPPED = "BOT_STOPPED"
    BOT_RECOVERED = "BOT_RECOVERED"
    KEY_ROTATION = "KEY_ROTATION"


class ChannelStatus(StrEnum):
    """Whether a channel is connected."""

    DISCONNECTED = "DISCONNECTED"
    CONNECTING = "CONNECTING"
    CONNECTED = "CONNECTED"
    ERROR = "ERROR"


class ChannelLoginState(StrEnum):
    """How far the linking of a channel by a code has come."""

    WAITING = "WAITING"
    CODE = "CODE"
    LINKED = "LINKED"
    FAILED = "FAILED"


class KeyRotationState(StrEnum):
    """Where a change of keys stands."""

    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
