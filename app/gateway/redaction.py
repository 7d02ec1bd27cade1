"""Takes secrets out of texts: which values of a configuration are secret, how they are spelled, and where they stand.

The shim uses this as well, so it is standard library only, and little of it. A bot may print at any speed, so a block
is not searched for each spelling: its aligned pieces are looked up in a set first, which costs the same for one secret
and for a thousand.
"""

from __future__ import annotations

import binascii
import json
import os
import re
import stat

# `typing` costs half a megabyte in each shim; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal

MASK = b"***"
#: Shorter secrets are left in a stream: "a1b2c" would be found in words that are none of it.
SHORTEST = 6
#: A spelling is looked for up to here; what is longer has its lines looked for, and this much of its beginning.
LONGEST = 16 * 1024
#: Spellings that are remembered; those that no configuration had for longest go first.
MOST = 20_000
#: Bytes; more is no configuration of ours.
CONFIG_MAX = 8 * 1024 * 1024

#: A value under a name that ends so is a secret.
_SECRET = re.compile(
    r"""(?ix) .*(?: (?:api|private|access|encrypt|encryption|signing)_?keys? | tokens? | secrets? | secretref
    | passwords? | passwd | passphrase | credentials? | authorization | cookies? | bearer | serviceaccount | authtag
    | incomingurl | headers )"""
)
#: A text under just this name is one too (a TLS key, Tlon's access code).
_SECRET_NAMES = frozenset(("code", "key"))
#: What OpenClaw replaces from its environment; a `$` before it makes it plain text (both versions).
_ESCAPED = re.compile(r"\$(?=\$\{[A-Z_][A-Z0-9_]*\})", re.ASCII)
_PERCENT = re.compile(rb"%[0-9A-F]{2}")
#: What JavaScript's encodeURIComponent leaves as it is.
_UNQUOTED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")


def is_secret(name: str, value: object) -> bool:
    """Whether the value under this name is to be shown to nobody. Numbers and switches are not: `maxTokens: 4096`."""
    if value is None or isinstance(value, (bool, int, float)) or value == "":
        return False
    return bool(_SECRET.fullmatch(name)) or (isinstance(value, str) and name.lower() in _SECRET_NAMES)


def secrets_in(config: Any) -> set[str]:
    """Every secret text of the configuration in each of its spellings: who keeps them out of a message needs all."""
    return {spelling for secret in _secrets(config, inside=False) for spelling in _spellings(secret)}


def _secrets(value: Any, *, inside: bool) -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in _items(value):
            yield from _secrets(part, inside=inside or is_secret(name, part))
    elif isinstance(value, list):
        for part in _parts(value):
            yield from _secrets(part, inside=inside)
    elif inside and isinstance(value, str) and value:
        yield value
        yield from _secrets(_parsed(value), inside=True)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    return value.items()


def _parts(value: Any) -> list[Any]:
    return value


def _parsed(secret: str) -> Any:
    """What a secret that is JSON holds (a service account's private key, say), which may be quoted without the rest."""
    if secret.lstrip()[:1] not in ("{", "[", '"'):
        return None
    try:
        return json.loads(secret)
    except (ValueError, RecursionError):
        return None


def _spellings(secret: str) -> Iterator[str]:
    """How a secret may stand in a text: as in the file and as OpenClaw reads that, quoted, encoded, line by line."""
    for plain in {secret, _ESCAPED.sub("", secret)}:
        yield plain
        yield json.dumps(plain)[1:-1]
        yield json.dumps(plain, ensure_ascii=False)[1:-1]
        raw = plain.encode("utf-8", "replace")
        quoted = b"".join(bytes((code,)) if code in _UNQUOTED else b"%%%02X" % code for code in raw)
        yield quoted.decode()
        yield _PERCENT.sub(lambda found: found[0].lower(), quoted).decode()
        yield from _base64(raw)
        yield from (line.strip() for line in plain.splitlines())


def _base64(raw: bytes) -> Iterator[str]:
    """What base64 makes of it wherever it begins in the text that was encoded: the characters that are its alone."""
    if len(raw) < SHORTEST:
        return
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        text = binascii.b2a_base64(bytes(before) + raw, newline=False)[first:last].decode()
        yield text
        yield text.replace("+", "-").replace("/", "_")


def without_secrets(home: str, text: str) -> str:
    """What a gateway said, fit to be shown; nothing where its configuration cannot be read, and nobody knows.

    Blocks for a look into the home.
    """
    try:
        folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        redactor = Redactor(folder)
        redactor.learn()
        raw = text.encode("utf-8", "replace")
        return redactor.clean(raw).decode("utf-8", "replace") if redactor.longest else ""
    finally:
        os.close(folder)


class Pieces:
    """Finds which spellings may stand in a block, by whole pieces of it at places that are multiples of their width."""

    def __init__(self, width: int, code: Literal["I", "Q"]) -> None:
        self._width = width
        self._code: Literal["I", "Q"] = code
        #: What has this many bytes covers such a piece wherever it stands.
        self.least = 2 * width - 1
        self._owners: dict[int, list[bytes]] = {}

    def add(self, spelling: bytes) -> None:
        # The middle, because tokens of one kind begin alike.
        middle = (len(spelling) - self.least) // 2
        for start in range(middle, middle + self._width):
            piece = memoryview(spelling[start : start + self._width]).cast(self._code)[0]
            self._owners.setdefault(piece, []).append(spelling)

    def candidates(self, block: bytes) -> set[bytes]:
        """Those that may stand in the block; nearly always none."""
        if not self._owners:
            return set()
        whole = len(block) - len(block) % self._width
        pieces = memoryview(block)[:whole].cast(self._code)
        if self._owners.keys().isdisjoint(pieces):
            return set()
        return {each for piece in set(pieces).intersection(self._owners) for each in self._owners[piece]}


class Redactor:
    """Takes secrets out of blocks of a stream: those of each configuration that lay in the home in its time.

    What it learned stays: a gateway may print what it read an hour ago, and its bot can write where we read.
    """

    def __init__(self, home: int, name: str = "config.json5") -> None:
        self._home, self._name = home, name
        self._seen: tuple[int, ...] = ()
        self._known: dict[bytes, None] = {}
        self._sort()

    def learn(self) -> None:
        """Looks whether another configuration lies there: it did before its gateway could print anything of it."""
        try:
            found = os.stat(self._name, dir_fd=self._home, follow_symlinks=False)
            mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if mark != self._seen:
                self._seen = mark
                self._remember(secrets_in(self._read()))
        except (OSError, ValueError, RecursionError, MemoryError):
            return  # Half written, or the bot's own work; the next one counts again.

    def clean(self, block: bytes) -> bytes:
        """The block with the mask in the place of each secret."""
        found = self._long.candidates(block) | self._middle.candidates(block)
        found.update(self._short)
        for spelling in sorted(found, key=len, reverse=True):
            block = block.replace(spelling, MASK)
        return block

    def _read(self) -> Any:
        fd = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._home)
        with os.fdopen(fd, "rb") as file:
            return json.loads(file.read(CONFIG_MAX)) if stat.S_ISREG(os.fstat(fd).st_mode) else None

    def _remember(self, spellings: set[str]) -> None:
        raw = sorted(each.encode("utf-8", "replace")[:LONGEST] for each in spellings)
        fresh = {each: None for each in raw if len(each) >= SHORTEST and b"\n" not in each}
        if not fresh.keys() <= self._known.keys():
            older = {each: None for each in self._known if each not in fresh}
            self._known = dict(list({**older, **fresh}.items())[-MOST:])
            self._sort()

    def _sort(self) -> None:
        self._long, self._middle = Pieces(8, "Q"), Pieces(4, "I")
        self._short: list[bytes] = []
        #: Bytes of the longest spelling: so much of a cut line's end may be a part of one.
        self.longest = max(map(len, self._known), default=0)
        for each in self._known:
            if len(each) >= self._long.least:
                self._long.add(each)
            elif len(each) >= self._middle.least:
                self._middle.add(each)
            else:
                self._short.append(each)
