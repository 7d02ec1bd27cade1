"""A picture of a QR code as lines of half blocks, for terminals. Reads PNG with the standard library."""

import base64
import binascii
import struct
import zlib
from collections.abc import Iterator

from app.domain.errors import GatewayFailed

#: Most pixels of a picture's side, and most bytes of all: codes have fewer, and so many take Python a second.
MAX_SIDE, MAX_BYTES = 1024, 1024 * 1024
#: Bits of a sample that PNG and this module know.
_DEPTHS = (1, 2, 4, 8)
#: Modules of white that a phone needs around a code.
QUIET = 2
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Samples of a pixel by PNG's colour type: grey, RGB, palette, grey with alpha, RGB with alpha.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
#: Modules along a corner's mark.
_MARK = 7
#: Upper and lower half: is it light? What is light is printed, and the colours see to the rest.
_BLOCKS = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
_COLOURS, _PLAIN = "\x1b[97;40m", "\x1b[0m"
#: A module each, for terminals that have no blocks; two blanks are about a square.
_LIGHT, _DARK = "\x1b[107m  ", "\x1b[40m  "


def lines(url: str, encoding: str = "utf-8") -> list[str]:
    """The code of a `data:image/png;base64,` URL, white on black whatever the terminal's colours are.

    Args:
        encoding: The terminal's; one that cannot show half blocks gets blanks on colours, four times as large.

    Raises:
        GatewayFailed: It is no picture of a code.
    """
    try:
        rows = _modules(_dark_pixels(base64.b64decode(url.partition(",")[2], validate=True)))
    except (ValueError, IndexError, KeyError, StopIteration, struct.error, binascii.Error, zlib.error) as error:
        raise GatewayFailed("the code that the gateway gave cannot be shown here; use the API for it") from error
    if not _has_blocks(encoding):
        return [f"{line}{_PLAIN}" for line in blanks(rows)]
    return [f"{_COLOURS}{line}{_PLAIN}" for line in half_blocks(rows)]


def _has_blocks(encoding: str) -> bool:
    try:
        "".join(_BLOCKS.values()).encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def blanks(rows: list[list[bool]]) -> Iterator[str]:
    """One row of modules a line, in ASCII, with white around them; True is dark."""
    for row in _padded(rows):
        yield "".join(_DARK if it else _LIGHT for it in row)


def half_blocks(rows: list[list[bool]]) -> Iterator[str]:
    """Two rows of modules a line, with white around them; True is dark."""
    padded = _padded(rows)
    if len(padded) % 2:
        padded.append([False] * len(padded[0]))
    for upper, lower in zip(padded[::2], padded[1::2], strict=True):
        yield "".join(_BLOCKS[not a, not b] for a, b in zip(upper, lower, strict=True))


def _padded(rows: list[list[bool]]) -> list[list[bool]]:
    around = [[False] * (len(rows[0]) + 2 * QUIET)] * QUIET
    return [*around, *([False] * QUIET + row + [False] * QUIET for row in rows), *around]


def _modules(pixels: list[list[bool]]) -> list[list[bool]]:
    """The code's modules: what is dark bounds it, and its first corner's mark says how large one is."""
    dark = [y for y, row in enumerate(pixels) if any(row)]
    columns = [x for x in range(len(pixels[0])) if any(row[x] for row in pixels)]
    top, bottom, left, right = dark[0], dark[-1] + 1, columns[0], columns[-1] + 1
    mark = next(x for x in range(left, right) if not pixels[top][x]) - left
    size = mark / _MARK
    count = round((right - left) / size)
    if size < 1 or count < 3 * _MARK or round((bottom - top) / size) != count:
        raise ValueError("it has not the form of a code")
    middles = [int((n + 0.5) * size) for n in range(count)]
    return [[pixels[top + y][left + x] for x in middles] for y in middles]


def _dark_pixels(png: bytes) -> list[list[bool]]:
    chunks = dict[bytes, bytes]()
    for name, data in _chunks(png):
        chunks[name] = chunks.get(name, b"") + data
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE) or interlaced or depth not in _DEPTHS:
        raise ValueError("it is no picture that is understood")
    stride = (width * depth * _SAMPLES[colour] + 7) // 8
    if (depth != 8 and _SAMPLES[colour] != 1) or (stride + 1) * height > MAX_BYTES:
        raise ValueError("it is no picture that is understood")
    raw = zlib.decompressobj().decompress(chunks[b"IDAT"], (stride + 1) * height)
    rows = _unfiltered(raw, height, stride, max(1, depth * _SAMPLES[colour] // 8))
    palette = chunks.get(b"PLTE", b"")
    return [_dark(row, width, depth, colour, palette) for row in rows]


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not png.startswith(_SIGNATURE):
        raise ValueError("it is no PNG")
    at = len(_SIGNATURE)
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        yield name, png[at + 8 : at + 8 + length]
        at += 12 + length


def _unfiltered(raw: bytes, height: int, stride: int, step: int) -> list[bytearray]:
    """The rows as they were before PNG made them easier to compress."""
    rows: list[bytearray] = []
    above = bytearray(stride)
    for y in range(height):
        start = y * (stride + 1)
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        if len(row) != stride:
            raise ValueError("it ends too early")
        for x in range(stride) if kind else ():
            left = row[x - step] if x >= step else 0
            corner = above[x - step] if x >= step else 0
            row[x] = (row[x] + _predicted(kind, left, above[x], corner)) & 0xFF
        rows.append(row)
        above = row
    return rows


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    match kind:
        case 0:
            return 0
        case 1:
            return left
        case 2:
            return up
        case 3:
            return (left + up) // 2
        case 4:
            guess = left + up - corner
            return min((abs(guess - left), 0, left), (abs(guess - up), 1, up), (abs(guess - corner), 2, corner))[2]
        case _:
            raise ValueError("it is filtered in a way that is not known")


def _dark(row: bytearray, width: int, depth: int, colour: int, palette: bytes) -> list[bool]:
    if depth == 8 and colour != _PALETTE:
        samples = _SAMPLES[colour]
        return [row[x * samples] < 128 for x in range(width)]
    top = (1 << depth) - 1
    values = [(row[x * depth // 8] >> (8 - depth - x * depth % 8)) & top for x in range(width)]
    if colour == _PALETTE:
        return [palette[value * 3] < 128 for value in values]
    return [value * 2 <= top for value in values]
