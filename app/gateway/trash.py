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
#: Seconds until the rest of a home is left for later, so that one which is large, or in which others write as fast as
#: we remove, keeps no other one waiting.
BUDGET = 20.0

#: It is not any more what it was when it was listed; the next look sees to it.
_CHANGED = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unfinished(OSError):
    """The rest of a home is left for later."""


def take(base: Path, home: Path) -> Path | None:
    """Moves a home into the trash, at once and for good; its place there, None where there is no home.

    From then on a bot of the same name finds nothing of this one, and whoever comes back after a kill finds what is
    left to be removed.

    Raises:
        OSError: It cannot be moved; it stays where it is.
    """
    if not os.path.lexists(home):
        return None
    try:
        return _moved(home, base)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    # Homes lie on a disk of their own, so that has a trash of its own.
    return _moved(home, home.parent)


def _moved(home: Path, beside: Path) -> Path | None:
    grave = str(uuid4())
    with _opened(beside) as bin_, _folder(home.parent) as homes:
        _unlock(homes, home.name)
        try:
            os.rename(home.name, grave, src_dir_fd=homes, dst_dir_fd=bin_)
        except FileNotFoundError:
            return None
        os.fsync(bin_)
        os.fsync(homes)
    return beside / FOLDER / grave


def remove(grave: Path, goes_on: Callable[[], bool] = lambda: True) -> None:
    """Removes what `take` moved; again changes nothing. What cannot be removed keeps nothing else in it.

    Args:
        goes_on: Is asked at each step; once it says no, the rest is left for later.

    Raises:
        Unfinished: It takes longer than `BUDGET`, or is not to go on.
        OSError: Something in it cannot be removed.
    """
    with _opened(grave.parent.parent) as bin_:
        _remove(bin_, grave.name, goes_on)


def graves(base: Path, homes: Path) -> list[Path]:
    """What waits to be removed. What we did not put there is not ours to remove."""
    return [grave for folder in (base, homes) for grave in _graves(folder)]


def _graves(folder: Path) -> list[Path]:
    if not (folder / FOLDER).exists():
        return []
    with _opened(folder) as bin_, os.scandir(bin_) as entries:
        return [folder / FOLDER / entry.name for entry in entries if _is_grave(entry.name)]


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


def remove_at(within: int, name: str, goes_on: Callable[[], bool]) -> None:
    """Removes what has this name in an open folder, if there is such a thing.

    Raises:
        OSError: As `remove`.
    """
    _remove(within, name, goes_on)


def _remove(within: int, name: str, goes_on: Callable[[], bool]) -> None:
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
        #: Met since the round began.
        self._trouble: OSError | None = None

    def run(self) -> None:
        while self._round():
            pass
        if self._trouble is not None:
            raise self._trouble

    def _round(self) -> bool:
        """Removes what lies in the folder now; whether that was anything."""
        self._trouble = None
        return self._each(self._root, self._take)

    def _each(self, folder: int, act: Callable[["os.DirEntry[str]"], bool]) -> bool:
        """Does it to each entry; whether that did anything. One that cannot be removed holds up no other one."""
        was_anything = False
        with os.scandir(folder) as entries:
            for entry in entries:
                if time.monotonic() > self._until or not self._goes_on():
                    raise Unfinished(errno.EBUSY, "the rest of it is left for later")
                try:
                    was_anything |= act(entry)
                except Unfinished:
                    raise
                except _CHANGED:
                    was_anything = True
                except OSError as error:
                    self._trouble = error
        return was_anything

    def _take(self, entry: "os.DirEntry[str]") -> bool:
        if entry.is_dir(follow_symlinks=False):
            return self._take_apart(entry.name)
        os.unlink(entry.name, dir_fd=self._root)
        return True

    def _take_apart(self, name: str) -> bool:
        """Removes a folder; the folders in it come to lie beside it, and are the next round's."""
        _unlock(self._root, name)
        folder = os.open(name, _OPEN, dir_fd=self._root)
        try:
            if os.fstat(folder).st_dev != self._device:
                raise OSError(errno.EXDEV, f"another file system is mounted at {name!r} in a deleted home")
            was_anything = self._each(folder, lambda entry: self._bring_up(folder, entry))
        finally:
            os.close(folder)
        try:
            os.rmdir(name, dir_fd=self._root)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            return was_anything  # Somebody may have written there since.
        return True

    def _bring_up(self, folder: int, entry: "os.DirEntry[str]") -> bool:
        _bring_up(self._root, folder, entry)
        return True


def _bring_up(root: int, folder: int, entry: "os.DirEntry[str]") -> None:
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
