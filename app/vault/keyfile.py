"""The master key in a file of its own, which nobody but its owner may read."""

import os
import secrets
import stat
from pathlib import Path

from app.domain.errors import SettingsError


def key_file(path: Path) -> str:
    """The master key in the file at `path`, which is made (mode 0600) when there is none.

    Raises:
        SettingsError: The file is readable for others, is no file, or cannot be read or made.
    """
    try:
        if not path.exists():
            _make_key_file(path)
        return _read_key_file(path)
    except OSError as error:
        raise SettingsError(f"the key file {path} cannot be used: {error.strerror}") from error


def write_key_file(path: Path, key: str) -> None:
    """Keeps a key in a new file (mode 0600). Raises OSError, also where the path is taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        file.write(key + "\n")
        file.flush()
        os.fsync(fd)
    _sync_folder(path.parent)


def _make_key_file(path: Path) -> None:
    """Writes a whole key beside `path` and then links it there, so nobody ever reads half a key or loses one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(fd)
        _link(draft, path)
    finally:
        draft.unlink()
    _sync_folder(path.parent)


def _link(draft: Path, path: Path) -> None:
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return  # Another process was faster; its key counts.


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_key_file(path: Path) -> str:
    # O_NONBLOCK: a FIFO in the key's place is refused below and does not hold up the start.
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, encoding="utf-8", errors="replace") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SettingsError(f"the key file {path} is not a regular file")
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise SettingsError(
                f"the key file {path} has mode {mode:04o} and others can reach it; expected 0600 "
                f"(`chmod 600 {path}`, and think about whether the key has been read)"
            )
        return file.read(10_000).strip()
