"""Homes on their way out: moved aside at once, removed afterwards, and nothing outside is touched by that.

The agent could write everywhere in its home, and something may write there still: links are removed and never
followed, folders are opened before they are looked at, and a tree may be deeper than a path or a stack can be.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

#: Where a home is moved to, beside the folder of homes.
FOLDER = ".trash"
#: Seconds until a home is left for later in which others write as fast as we remove.
BUDGET = 600.0

#: It is not any more what it was when it was listed; the next look sees to it.
_CHANGED = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def take(base: Path, home: Path) -> str | None:
    """Moves a home into the trash, at once and for good; the name it has there, None where there is no home.

    From then on a bot of the same name finds nothing of this one, and whoever comes back after a kill finds what is
    left to be removed. Where homes lie on a disk of their own there is no such place, and it is removed on the spot.

    Raises:
        OSError: It cannot be moved; it stays where it is.
    """
    if not os.path.lexists(home):
        return None
    grave = str(uuid4())
    with _opened(base) as bin_, _folder(home.parent) as homes:
        _unlock(homes, home.name)
        try:
            os.rename(home.name, grave, src_dir_fd=homes, dst_dir_fd=bin_)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _remove(homes, home.name)
            return None
        os.fsync(bin_)
        os.fsync(homes)
    return grave


def remove(base: Path, grave: str, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Removes what `take` moved; again changes nothing.

    Args:
        goes_on: Is asked now and then; once it says no, the rest is left for later.

    Raises:
        OSError: Something in it cannot be removed, others are still writing there, or the rest is left for later.
    """
    with _opened(base) as bin_:
        _remove(bin_, grave, goes_on)


def graves(base: Path) -> list[str]:
    """What interrupted removals left. What we did not put there is not ours to remove."""
    if not (base / FOLDER).exists():
        return []
    with _opened(base) as bin_, os.scandir(bin_) as entries:
        return [entry.name for entry in entries if _is_grave(entry.name)]


def _is_grave(name: str) -> bool:
    with suppress(ValueError):
        return str(UUID(name)) == name
    return False


@contextmanager
def _opened(base: Path) -> Generator[int]:
    """The trash, made where there is none. A link in its place is nothing of ours."""
    with _folder(base) as folder:
        with suppress(FileExistsError):
            os.mkdir(FOLDER, 0o700, dir_fd=folder)
        bin_ = os.open(FOLDER, _OPEN, dir_fd=folder)
        try:
            yield bin_
        finally:
            os.close(bin_)


@contextmanager
def _folder(path: Path) -> Generator[int]:
    # The operator may have made a link of these, to another disk, say.
    folder = os.open(path, _OPEN & ~os.O_NOFOLLOW)
    try:
        yield folder
    finally:
        os.close(folder)


def _remove(within: int, name: str, goes_on: Callable[[], bool] = lambda: True) -> None:
    _unlock(within, name)
    try:
        folder = os.open(name, _OPEN, dir_fd=within)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        os.unlink(name, dir_fd=within)
        return
    try:
        _Emptying(folder, goes_on).run()
        with suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=within)
    finally:
        os.close(folder)


class _Emptying:
    """Removes everything in a folder. Folders in it are taken apart one level at a time, so no tree is too deep."""

    def __init__(self, root: int, goes_on: Callable[[], bool]) -> None:
        self._root = root
        self._device = os.fstat(root).st_dev
        self._goes_on = goes_on
        self._until = time.monotonic() + BUDGET

    def run(self) -> None:
        while self._round():
            pass

    def _round(self) -> bool:
        """Removes what lies in the folder now; whether that was anything."""
        was_anything = False
        for entry in self._entries(self._root):
            was_anything = True
            if entry.is_dir(follow_symlinks=False):
                self._take_apart(entry.name)
            else:
                with suppress(*_CHANGED):
                    os.unlink(entry.name, dir_fd=self._root)
        return was_anything

    def _entries(self, folder: int) -> Generator["os.DirEntry[str]"]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if time.monotonic() > self._until or not self._goes_on():
                    raise OSError(errno.EBUSY, "the rest of it is left for later")
                yield entry

    def _take_apart(self, name: str) -> None:
        """Removes a folder; the folders in it come to lie beside it, and are the next round's."""
        _unlock(self._root, name)
        try:
            folder = os.open(name, _OPEN, dir_fd=self._root)
        except _CHANGED:
            return
        try:
            if os.fstat(folder).st_dev != self._device:
                raise OSError(errno.EXDEV, f"another file system is mounted at {name!r} in a deleted home")
            for entry in self._entries(folder):
                _bring_up(self._root, folder, entry)
            with suppress(OSError):
                os.rmdir(name, dir_fd=self._root)  # Somebody may have written there since.
        finally:
            os.close(folder)


def _bring_up(root: int, folder: int, entry: "os.DirEntry[str]") -> None:
    with suppress(*_CHANGED):
        if entry.is_dir(follow_symlinks=False):
            _unlock(folder, entry.name)
            os.rename(entry.name, str(uuid4()), src_dir_fd=folder, dst_dir_fd=root)
        else:
            os.unlink(entry.name, dir_fd=folder)


def _unlock(within: int, name: str) -> None:
    """Lets us into a folder that was closed to its own owner. What is no folder stays as it is."""
    try:
        held = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if stat.S_IMODE(os.fstat(held).st_mode) & 0o700 != 0o700:
            Path(f"/proc/self/fd/{held}").chmod(0o700)
    finally:
        os.close(held)
