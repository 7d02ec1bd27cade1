"""What lies in a bot's home is read only where it is a plain file of a fit size, and never waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app.gateway import files


def outside(path: Path) -> Path:
    path.with_name("outside").write_text("not for us")
    return path.with_name("outside")


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a socket": listen,
    "a link": lambda path: path.symlink_to(outside(path)),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_only_a_plain_file_is_opened(tmp_path: Path, what: str) -> None:
    IN_ITS_PLACE[what](tmp_path / "file")
    before = len(list(Path("/proc/self/fd").iterdir()))
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        for read in (files.read, files.end_of):
            with pytest.raises(OSError, match=r".*"):
                read(tmp_path / "file", 100)
            with pytest.raises(OSError, match=r".*"):
                read("file", 100, folder)
    finally:
        os.close(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert files.read(tmp_path / "file", 5) == b"12345"
    assert files.read(tmp_path / "file", 4) is None
    assert files.end_of(tmp_path / "file", 4) == b"2345"
    os.truncate(tmp_path / "file", 1 << 40)
    assert files.read(tmp_path / "file", 1 << 20) is None
    assert files.end_of(tmp_path / "file", 2) == b"\0\0"
