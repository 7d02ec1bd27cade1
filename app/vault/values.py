"""What is sealed and where it stands: the secret in plain text, its ciphertext, and its place."""

import hmac
from dataclasses import dataclass
from typing import NoReturn
from uuid import UUID


class Sealed(str):
    """A secret's ciphertext, safe to store and to show to people who may see the row."""

    __slots__ = ()


class Secret:
    """A secret in plain text, which shows itself only to who calls `reveal`."""

    __slots__ = ("_value",)

    def __init__(self, value: str | bytes) -> None:
        self._value = value.encode() if isinstance(value, str) else value

    def reveal(self) -> str:
        """The secret as text."""
        return self._value.decode()

    def reveal_bytes(self) -> bytes:
        """The secret as it was sealed."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not copied, pickled or encoded; call reveal() where it is needed")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sealed value stands. Opening it anywhere else fails.

    Args:
        table: `bot_channel` for a channel's credentials, `bot_secret` for a bot's own secrets, `model_provider` for
            model keys; these labels stay the same when a table is renamed.
        row_id: The row's immutable id.
        path: `<provider>.<key>` inside a JSON column, nested keys joined with dots.
    """

    table: str
    row_id: str | UUID
    column: str
    path: str

    def encode(self) -> bytes:
        """Each part with its length before it, so that no two places read the same."""
        return b"".join(map(counted, (self.table, str(self.row_id), self.column, self.path)))


def counted(text: str) -> bytes:
    """UTF-8 with its length before it in two bytes, as it stands in what is authenticated."""
    data = text.encode()
    return len(data).to_bytes(2, "big") + data
