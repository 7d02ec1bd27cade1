"""Reads files in a bot's home, where the agent may have put anything in their place: a link, a pipe, a huge file.

The shim uses this as well, so it is standard library only, and little of it.
"""

from __future__ import annotations

import errno
import os
import stat

# `typing` costs half a megabyte in each shim; type checkers know this name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


def opened(path: str | os.PathLike[str], within: int | None = None) -> BinaryIO:
    """A regular file, open for reading; never waits for one.

    Args:
        within: The folder, held open, that the path begins in.

    Raises:
        OSError: There is none, or something else is in its place.
    """
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=within)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return os.fdopen(file, "rb")


def read(path: str | os.PathLike[str], most: int, within: int | None = None) -> bytes | None:
    """What a regular file holds; None where it has more than `most` bytes.

    Raises:
        OSError: There is none, or something else is in its place.
    """
    with opened(path, within) as file:
        # One more, because a file may have grown since anybody looked at its size.
        found = file.read(most + 1) if os.fstat(file.fileno()).st_size <= most else None
    return found if found is not None and len(found) <= most else None


def end_of(path: str | os.PathLike[str], most: int, within: int | None = None) -> bytes:
    """The last bytes of a regular file, `most` at most.

    Raises:
        OSError: There is none, or something else is in its place.
    """
    with opened(path, within) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)
