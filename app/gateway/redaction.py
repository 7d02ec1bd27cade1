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
import time

from app.gateway import files

# `typing` costs half a megabyte in each shim; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, Literal

MASK = b"***"
#: Shorter secrets, in bytes, are hidden where they stand only: "a1b2" would be found in words that are none of it.
SHORTEST = 5
#: Characters; a longer secret is looked for in parts of this length, each of them in all spellings.
PART = 1024
#: Spellings that are remembered, and their bytes; those that no configuration had for longest go first. Half of each is
#: what one configuration may have; it has first its secrets as they are, then their other spellings.
MOST, MOST_BYTES = 16_000, 2 * 1024 * 1024
#: A block in which more spellings may stand than this is not searched, but masked as a whole.
MOST_CANDIDATES = 2_000
#: Bytes; more is no configuration of ours.
CONFIG_MAX = 512 * 1024
#: A look at a changed configuration that took so many seconds of a core is followed by none for so many seconds.
COSTLY, PAUSE = 0.05, 1.0

#: A value under a name that ends so is a secret.
_SECRET = re.compile(
    r"""(?ix) .*(?: (?:api|private|access|encrypt|encryption|signing)_?keys? | tokens? | secrets? | secretref
    | passwords? | passwd | passphrase | credentials? | authorization | cookies? | bearer | serviceaccount | authtag
    | incomingurl | headers )"""
)
#: A text under just this name is one too (a TLS key, Tlon's access code).
_SECRET_NAMES = frozenset(("code", "key"))
#: Objects in these have names that people chose: `groups: {"token": {…}}` says nothing of what is in it.
_NAMED = frozenset(
    (
        *("accounts", "channels", "entries", "groups", "guilds", "models", "peers", "providers", "rooms", "teams"),
        "topics",
    )
)
#: What OpenClaw replaces from its environment; a `$` before it makes it plain text (both versions).
_ESCAPED = re.compile(r"\$(?=\$\{[A-Z_][A-Z0-9_]*\})", re.ASCII)
#: User and password in an address; a quote or a bracket would be the end of the address.
_USERINFO = re.compile(rb'://[^/@\s"<>]+@')
#: What is left as it is in addresses: by encodeURIComponent, by encodeURI, by RFC 3986, by URLSearchParams.
_QUOTED = tuple(
    re.compile(rb"[^A-Za-z0-9%s]" % kept) for kept in (rb"_.!~*'()-", rb"_.!~*'();/?:@&=+$,#-", rb"_.~-", rb" _.*-")
)
_HEX = tuple((b"%%%02X" % code, b"%%%02x" % code) for code in range(256))
#: What the shim takes out of lines, so that no terminal acts upon it, and a configuration may have in a secret.
CONTROLS = dict.fromkeys((*(code for code in (*range(32), *range(127, 160)) if code not in (9, 10)), 0x2028, 0x2029))


def is_secret(name: str, value: object, above: str = "") -> bool:
    """Whether the value under this name is to be shown to nobody. Numbers and switches are not: `maxTokens: 4096`.

    Args:
        above: The name of the object that it stands in.
    """
    if above in _NAMED and isinstance(value, dict):
        return False
    if value is None or isinstance(value, (bool, int, float)) or value == "":
        return False
    return bool(_SECRET.fullmatch(name)) or (isinstance(value, str) and name.lower() in _SECRET_NAMES)


def secrets_in(config: Any) -> Iterator[str]:
    """Every secret text of the configuration as it stands there, some more than once."""
    yield from _secrets(config, inside=False)


def spellings_in(config: Any) -> list[bytes]:
    """Its secrets in each of their spellings, as many as are remembered: whoever keeps them out of a text needs all."""
    found: dict[bytes, None] = {}
    most, room = MOST // 2, MOST_BYTES // 2
    parts = dict.fromkeys(part for secret in _first(secrets_in(config), most) for part in _parts_of(secret))
    for spell in (_plainly, _otherwise):
        for part in parts:
            for each in spell(part):
                raw = each.encode("utf-8", "surrogatepass") if isinstance(each, str) else each
                if len(raw) < SHORTEST or b"\n" in raw or raw in found:
                    continue
                room -= len(raw)
                if room < 0 or len(found) >= most:
                    return list(found)
                found[raw] = None
    return list(found)


def _first(texts: Iterable[str], most: int) -> Iterable[str]:
    """The first different ones."""
    found: dict[str, None] = {}
    for text in texts:
        found[text] = None
        if len(found) >= most:
            break
    return found


def _parts_of(secret: str) -> Iterator[str]:
    for start in range(0, len(secret), PART):
        if len(part := secret[start : start + PART]) >= SHORTEST or len(part.encode("utf-8", "replace")) >= SHORTEST:
            yield part


def _secrets(value: Any, *, inside: bool, above: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, part in _items(value):
            yield from _secrets(part, inside=inside or is_secret(name, part, above), above=name)
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


def _plainly(secret: str) -> Iterator[str]:
    """As in the file, as OpenClaw reads that, and as lines of a log have it."""
    for plain in _plain(secret):
        yield from (line.strip() for line in plain.splitlines())
        yield " ".join(plain.split())


def _otherwise(secret: str) -> Iterator[str | bytes]:
    """Quoted and encoded, as programs print it."""
    for plain in _plain(secret):
        for is_ascii in (True, False):
            quoted = _json(plain, is_ascii=is_ascii)
            yield quoted
            yield _json(quoted, is_ascii=is_ascii)
        # As Node's util.inspect and Python's repr.
        yield quoted.replace('\\"', '"')
        yield quoted.replace('\\"', '"').replace("'", "\\'")
        raw = plain.encode("utf-8", "surrogatepass")
        yield from _in_addresses(raw)
        yield from _base64(raw)


def _plain(secret: str) -> dict[str, None]:
    meant = _ESCAPED.sub("", secret)
    return dict.fromkeys((secret, meant, meant.translate(CONTROLS)))


def _json(text: str, *, is_ascii: bool) -> str:
    return json.dumps(text, ensure_ascii=is_ascii)[1:-1]


def _in_addresses(raw: bytes) -> Iterator[bytes]:
    for unsafe in _QUOTED:
        for case in (0, 1):
            yield unsafe.sub(lambda found, case=case: _HEX[found[0][0]][case], raw).replace(b" ", b"+")


def _base64(raw: bytes) -> Iterator[bytes]:
    """What base64 makes of it wherever it begins in the text that was encoded: the characters that are its alone."""
    if len(raw) < SHORTEST:
        return
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
        text = binascii.b2a_base64(bytes(before) + raw, newline=False)[first:last]
        yield text
        yield text.replace(b"+", b"-").replace(b"/", b"_")


class Pieces:
    """Finds which spellings may stand in a block, by whole pieces of it at places that are multiples of their width.

    Args:
        is_dense: Pieces at every place are looked up, which finds what is shorter and costs more.
    """

    def __init__(self, width: int, code: Literal["I", "Q"], *, is_dense: bool = False) -> None:
        self._width = width
        self._code: Literal["I", "Q"] = code
        self._shifts = range(width if is_dense else 1)
        #: What has this many bytes covers such a piece wherever it stands.
        self.least = width if is_dense else 2 * width - 1
        self._owners: dict[int, list[bytes]] = {}

    def add(self, spelling: bytes) -> None:
        # The middle, because tokens of one kind begin alike.
        middle = (len(spelling) - self.least) // 2
        for start in range(middle, middle + self.least - self._width + 1):
            piece = memoryview(spelling[start : start + self._width]).cast(self._code)[0]
            self._owners.setdefault(piece, []).append(spelling)

    def candidates(self, block: bytes) -> set[bytes]:
        """Those that may stand in the block; nearly always none."""
        found: set[bytes] = set()
        for shift in self._shifts if self._owners else ():
            whole = (len(block) - shift) // self._width * self._width
            pieces = memoryview(block)[shift : shift + max(0, whole)].cast(self._code)
            if not self._owners.keys().isdisjoint(pieces):
                found.update(each for piece in self._owners.keys() & set(pieces) for each in self._owners[piece])
        return found


class Mask:
    """Puts `***` in the place of each of these spellings, and of user and password in addresses."""

    def __init__(self, spellings: Iterable[bytes] = ()) -> None:
        self._pieces = (Pieces(8, "Q"), Pieces(4, "I"), Pieces(4, "I", is_dense=True))
        #: Bytes of the longest spelling: so much of a cut line's end may be a part of one.
        self.longest = 0
        for each in spellings:
            self.longest = max(self.longest, len(each))
            next(pieces for pieces in self._pieces if len(each) >= pieces.least).add(each)

    def clean(self, block: bytes) -> bytes:
        """The block with the mask in the place of each secret."""
        found = set[bytes]().union(*(pieces.candidates(block) for pieces in self._pieces))
        if len(found) > MOST_CANDIDATES:
            return MASK
        for spelling in sorted(found, key=len, reverse=True):
            block = block.replace(spelling, MASK)
        return _USERINFO.sub(b"://***@", block) if b"://" in block else block


class Redactor:
    """Takes secrets out of blocks of a stream: those of each configuration that lay in the home in its time.

    What it learned stays: a gateway may print what it read an hour ago, and its bot can write where we read. What it
    learned first stays for ever, because that was written before there was a process of the bot's.
    """

    def __init__(self, home: int, name: str = "config.json5") -> None:
        self._home, self._name = home, name
        self._seen: tuple[int, ...] = ()
        self._next_look = 0.0
        self._first: dict[bytes, None] | None = None
        self._known: dict[bytes, None] = {}
        self._mask = Mask()

    @property
    def longest(self) -> int:
        """Bytes of the longest spelling: so much of a cut line's end may be a part of one."""
        return self._mask.longest

    def learn(self) -> None:
        """Looks whether another configuration lies there: it did before its gateway could print anything of it."""
        try:
            found = os.stat(self._name, dir_fd=self._home, follow_symlinks=False)
            mark = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if mark != self._seen and time.monotonic() >= self._next_look:
                self._seen, began = mark, time.thread_time()
                try:
                    self._remember(dict.fromkeys(spellings_in(self._read())))
                finally:
                    if time.thread_time() - began > COSTLY:
                        self._next_look = time.monotonic() + PAUSE
        except (OSError, ValueError, RecursionError, MemoryError):
            return  # Half written, or the bot's own work; the next one counts again.

    def clean(self, block: bytes) -> bytes:
        """The block with the mask in the place of each secret."""
        return self._mask.clean(block)

    def _read(self) -> Any:
        return json.loads(files.read(self._name, CONFIG_MAX, self._home) or b"null")

    def _remember(self, fresh: dict[bytes, None]) -> None:
        if self._first is None:
            self._first = fresh
        present = {**self._first, **fresh}
        if present.keys() <= self._known.keys():
            return
        older = [each for each in self._known if each not in present]
        count, size = len(present), sum(map(len, present))
        kept: list[bytes] = []
        for each in reversed(older):
            count, size = count + 1, size + len(each)
            if count > MOST or size > MOST_BYTES:
                break
            kept.append(each)
        self._known = {**dict.fromkeys(reversed(kept)), **present}
        self._mask = Mask(self._known)
