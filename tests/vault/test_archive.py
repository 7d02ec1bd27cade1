"""The encrypted archive: what comes back, and everything that must not open."""

import base64
import io
from collections.abc import Callable

import pytest

from app.domain.errors import ArchiveDamaged, WrongPassphrase
from app.vault.archive import CHUNK, Reader, Writer

PASSPHRASE = "correct horse battery"
HEADER, SEALED = 105, CHUNK + 16
PLAIN = bytes(range(256)) * (CHUNK // 256) * 3 + b"the end"

#: Made by the first version; the passphrase is the one above. Formats that were released are read for ever.
FIRST = (
    "Q0xBV05FVEIB83jeo51YjNWI4vJ/awkddDlhv8jX8oUqVwj0De5IRd/uXgrPTkfg9ciBhBSAaXqeVVZpDG+uv9dMDdhO7CMnVgfK"
    "xh6umCgsxOVPw3s4OjjCzh8OKke3f27BVN2SBbfmkBF2FPjRTtgihA9luHkEy1BgkZ2cRfiVrnYmDW6zpVbwLnL8K3KaviubW0Y="
)


def sealed(plain: bytes, passphrase: str = PASSPHRASE) -> bytes:
    file = io.BytesIO()
    writer = Writer(file, passphrase)
    # In pieces that have nothing to do with the chunks.
    for start in range(0, len(plain), 50_001):
        writer.write(plain[start : start + 50_001])
    writer.finish()
    return file.getvalue()


def opened(data: bytes, passphrase: str = PASSPHRASE) -> bytes:
    return b"".join(Reader(io.BytesIO(data), passphrase).chunks())


@pytest.fixture(scope="module")
def archive() -> bytes:
    return sealed(PLAIN)


@pytest.fixture(scope="module")
def damaged(archive: bytes) -> Callable[[bytes], None]:
    """Fails unless the archive with another body is refused. The key is derived once, since it takes half a second."""
    file = io.BytesIO(archive)
    reader = Reader(file, PASSPHRASE)

    def refuses(body: bytes) -> None:
        file.seek(0)
        file.truncate()
        file.write(archive[:HEADER] + body)
        with pytest.raises(ArchiveDamaged):
            reader.verify()

    return refuses


def chunks_of(archive: bytes) -> list[bytes]:
    body = archive[HEADER:]
    return [body[start : start + SEALED] for start in range(0, len(body), SEALED)]


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_what_was_written_comes_back(length: int) -> None:
    plain = PLAIN[:length]
    data = sealed(plain)
    assert opened(data) == plain
    assert len(data) == HEADER + length + 16 * max(1, -(-length // CHUNK))


def test_an_archive_of_the_first_version_opens() -> None:
    assert opened(base64.b64decode(FIRST)) == b"what the first version wrote"


def test_it_can_be_read_again(archive: bytes) -> None:
    reader = Reader(io.BytesIO(archive), PASSPHRASE)
    reader.verify()
    assert b"".join(reader.chunks()) == PLAIN
    assert b"".join(reader.chunks()) == PLAIN


def test_no_two_archives_have_anything_in_common(archive: bytes) -> None:
    other = sealed(PLAIN)
    assert not {chunk[:32] for chunk in chunks_of(archive)} & {chunk[:32] for chunk in chunks_of(other)}
    assert bytes(range(256)) not in archive
    assert b"the end" not in archive


def test_another_passphrase_is_told_from_damage(archive: bytes) -> None:
    for wrong in ("correct horse batterx", PASSPHRASE + " ", ""):
        with pytest.raises(WrongPassphrase):
            Reader(io.BytesIO(archive), wrong)


def test_every_flipped_byte_of_the_head_is_damage(archive: bytes) -> None:
    for place in range(HEADER):
        for bit in (1, 128):
            changed = bytearray(archive)
            changed[place] ^= bit
            with pytest.raises(ArchiveDamaged):
                Reader(io.BytesIO(changed), PASSPHRASE)


def test_a_flipped_bit_anywhere_in_a_chunk_is_damage(archive: bytes, damaged: Callable[[bytes], None]) -> None:
    body = archive[HEADER:]
    borders = range(0, len(body), SEALED)
    places = {
        place % len(body) for start in borders for place in (start - 16, start - 1, start, start + 1, start + 999)
    }
    for place in sorted(places):
        changed = bytearray(body)
        changed[place] ^= 1
        damaged(bytes(changed))


def test_what_is_cut_short_is_damage_also_between_chunks(archive: bytes, damaged: Callable[[bytes], None]) -> None:
    body = archive[HEADER:]
    for border in range(0, len(body), SEALED):
        for length in (border - 1, border, border + 1, border + 16):
            if 0 <= length < len(body):
                damaged(body[:length])
    damaged(body[:-1])


@pytest.mark.parametrize("length", [0, 1, 8, 9, 41, HEADER - 1])
def test_a_head_that_is_cut_short_is_damage(archive: bytes, length: int) -> None:
    with pytest.raises(ArchiveDamaged):
        Reader(io.BytesIO(archive[:length]), PASSPHRASE)


def test_chunks_do_not_open_in_another_s_place(archive: bytes, damaged: Callable[[bytes], None]) -> None:
    first, second, third, last = chunks_of(archive)
    for body in (
        (second, first, third, last),
        (first, third, second, last),
        (first, second, last),
        (first, first, second, third, last),
        (first, second, third, last, last),
        (first, second, third, last + b"\0"),
        (last, second, third, first),
    ):
        damaged(b"".join(body))


def test_a_chunk_of_another_archive_with_the_same_passphrase_is_damage(
    archive: bytes, damaged: Callable[[bytes], None]
) -> None:
    first, *rest = chunks_of(archive)
    other, *_ = chunks_of(sealed(PLAIN))
    assert first != other
    damaged(b"".join((other, *rest)))


@pytest.mark.parametrize("data", [b"", b"PGDMP", b"\x1f\x8b\x08", b"{}\n" * 100])
def test_another_kind_of_file_is_called_that(data: bytes) -> None:
    with pytest.raises(ArchiveDamaged, match="no backup of ClawNet"):
        Reader(io.BytesIO(data), PASSPHRASE)


def test_a_later_format_is_not_called_damage_only() -> None:
    with pytest.raises(ArchiveDamaged, match="a newer one made it"):
        Reader(io.BytesIO(b"CLAWNETB\x02" + bytes(200)), PASSPHRASE)
