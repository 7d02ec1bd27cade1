"""What nobody can move or remove for a while, be it root who tries."""

import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: Of Linux: reads a file's attributes, writes them, and the one that keeps it as and where it is.
_GET, _SET, _IMMUTABLE = 0x80086601, 0x40086602, 0x10

#: Others own everything in a home, so there is nothing in it that they cannot remove.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@contextmanager
def stuck(path: Path) -> Iterator[None]:
    """Root is kept off it by an attribute of the file system, everybody else by its folder's mode."""
    if os.geteuid() != 0:
        path.parent.chmod(0o500)
        try:
            yield
        finally:
            path.parent.chmod(0o700)
        return
    # Held open, for it may be moved with what it lies in.
    held = os.open(path, os.O_RDONLY)
    try:
        _set(held, is_stuck=True)
        try:
            yield
        finally:
            _set(held, is_stuck=False)
    finally:
        os.close(held)


def _set(held: int, *, is_stuck: bool) -> None:
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(held, _GET, struct.pack("l", 0)))
        fcntl.ioctl(held, _SET, struct.pack("l", flags | _IMMUTABLE if is_stuck else flags & ~_IMMUTABLE))
    except OSError as error:
        if not is_stuck:
            raise
        pytest.skip(f"needs a file system that can keep a file from root: {error.strerror}")
