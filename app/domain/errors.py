"""Every refusal ClawNet makes, in one tree.

ClawNetError
  Refusal                what the caller can mend: becomes a `userError` of a mutation
    Blank Invalid TooLong Taken NotFound Conflict Stale LimitReached GatewayFailed CredentialsRefused
      SignInRefused
  Denied                 what no input can mend: becomes a GraphQL error with `extensions.code`
    Unauthenticated Forbidden Missing Unavailable BadInput RateLimited
  StartFailure           why a bot's process could not be started; ends in its `errorMessage`
    BinaryMissing PluginMissing ConfigInvalid PortInUse SpawnFailed CredentialsUnreadable StartTimeout
  SecretError            a stored secret could not be read
    UnsupportedCiphertext KeyUnavailable CiphertextTampered
  BackupFailed           a backup could not be made or restored; nothing was changed
    ArchiveDamaged WrongPassphrase
  SettingsError          a setting is missing or wrong; the server does not start
    KeyMismatch
"""

from app.domain.states import Reason


class ClawNetError(Exception):
    """Anything ClawNet raises on purpose."""


class Refusal(ClawNetError):
    """A mutation was refused for a reason that another input would mend.

    Args:
        message: One sentence for people.
        field: Path from the mutation's `input` to the value at fault.
    """

    code = "INVALID"
    #: It stands in the audit trail already.
    is_told = False

    def __init__(self, message: str, *field: str) -> None:
        super().__init__(message)
        self.message = message
        self.field: list[str] | None = list(field) or None


class Blank(Refusal):
    """A required value is empty."""

    code = "BLANK"


class Invalid(Refusal):
    """The value has a form that is not accepted."""

    code = "INVALID"


class TooLong(Refusal):
    """The value is longer or larger than allowed."""

    code = "TOO_LONG"


class Taken(Refusal):
    """Another object already has this value."""

    code = "TAKEN"


class NotFound(Refusal):
    """No object with this identity is visible to the caller."""

    code = "NOT_FOUND"


class Conflict(Refusal):
    """The object is in a state that does not allow this."""

    code = "CONFLICT"


class Stale(Refusal):
    """The object changed since the caller read it."""

    code = "STALE"


class LimitReached(Refusal):
    """A limit of the account or of the fleet is reached."""

    code = "LIMIT_REACHED"


class GatewayFailed(Refusal):
    """The bot's process did not do what was asked in time."""

    code = "GATEWAY_FAILED"


class CredentialsRefused(Refusal):
    """The credentials were refused."""

    code = "CREDENTIALS_REFUSED"


class SignInRefused(CredentialsRefused):
    """Somebody did not get in; told by who refused it, because nobody is known to have asked."""

    is_told = True


class Denied(ClawNetError):
    """A request that no other input of the caller's would mend."""

    code = "INTERNAL"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Unauthenticated(Denied):
    """Nobody is signed in, or the token does not count any more."""

    code = "UNAUTHENTICATED"


class Forbidden(Denied):
    """The caller is known and may not do this."""

    code = "FORBIDDEN"


class Missing(Denied):
    """No such thing, or the caller may not see it; the two are told apart by nothing."""

    code = "NOT_FOUND"


class Unavailable(Denied):
    """Something the answer stands on is away for the moment."""

    code = "UNAVAILABLE"


class BadInput(Denied):
    """An argument of a query or a subscription has a form that is not accepted."""

    code = "BAD_USER_INPUT"


class RateLimited(Denied):
    """Too much was asked for in too short a time.

    Args:
        wait: Seconds until the same would be let through.
    """

    code = "RATE_LIMITED"

    def __init__(self, message: str, wait: float) -> None:
        super().__init__(message)
        self.wait = wait


class StartFailure(ClawNetError):
    """A bot's process could not be started. The message says to its owner what to do."""

    reason = Reason.SPAWN_FAILED
    #: Whether trying again without any change can help.
    is_retried = True


class BinaryMissing(StartFailure):
    """There is no OpenClaw here, or it does not accept the Node it would run on."""

    reason = Reason.BINARY_MISSING


class PluginMissing(StartFailure):
    """The plugin of a channel cannot be installed in the bot's home."""

    reason = Reason.PLUGIN_MISSING

    def __init__(self, message: str, provider: str) -> None:
        super().__init__(message)
        self.provider = provider


class ConfigInvalid(StartFailure):
    """OpenClaw's own rules refuse the configuration."""

    reason = Reason.CONFIG_INVALID
    is_retried = False


class PortInUse(StartFailure):
    """Somebody else listens on every port the bot could have."""

    reason = Reason.PORT_IN_USE


class SpawnFailed(StartFailure):
    """The operating system did not let the process begin."""

    reason = Reason.SPAWN_FAILED


class AlreadyRunning(SpawnFailed):
    """The home's lock is held: a process of this bot is alive."""


class CredentialsUnreadable(StartFailure):
    """A secret the configuration needs could not be read with the keys there are."""

    reason = Reason.CREDENTIALS_UNREADABLE
    is_retried = False


class StartTimeout(StartFailure):
    """The process did not become ready within its budget."""

    reason = Reason.START_TIMEOUT


class SecretError(ClawNetError):
    """A stored secret could not be read."""


class UnsupportedCiphertext(SecretError):
    """The text is no ciphertext of a format known here."""


class KeyUnavailable(SecretError):
    """The keyring holds no key with the number the ciphertext names."""

    def __init__(self, key_id: int) -> None:
        super().__init__(f"the keyring holds no key {key_id}")
        self.key_id = key_id


class CiphertextTampered(SecretError):
    """The ciphertext was changed, or belongs to another place."""


class BackupFailed(ClawNetError):
    """A backup could not be made or restored, and nothing was changed."""


class ArchiveDamaged(BackupFailed):
    """The file is no archive, or it was changed or cut short."""


class WrongPassphrase(BackupFailed):
    """The archive was made with another passphrase."""


class SettingsError(ClawNetError):
    """A setting is missing or wrong: names the variable, what was found and what is expected."""


class KeyMismatch(SettingsError):
    """The encryption key is not the one this database was made with."""
