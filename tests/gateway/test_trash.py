"""Homes of deleted bots go, whatever was made of them, and nothing else does."""

import ctypes
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.gateway import home, trash
from tests.stuck import needs_root, stuck


@pytest.fixture
def bot(tmp_path: Path) -> Path:
    made = tmp_path / "bots" / "hana"
    home.make(made)
    return made


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    made = tmp_path / "outside"
    made.mkdir()
    made.chmod(0o755)
    (made / "precious").write_text("precious")
    return made


def removed(base: Path, home: Path) -> None:
    grave = trash.take(base, home)
    assert not os.path.lexists(home)
    if grave is not None:
        trash.remove(grave)
    assert trash.graves(base, home.parent) == []


def is_untouched(outside: Path) -> bool:
    return (outside / "precious").read_text() == "precious" and stat.S_IMODE(outside.stat().st_mode) == 0o755


def test_links_out_of_a_home_lead_nobody_out(bot: Path, tmp_path: Path, outside: Path) -> None:
    (bot / "workspace" / "folder").symlink_to(outside)
    (bot / "workspace" / "file").symlink_to(outside / "precious")
    (bot / "workspace" / "dangling").symlink_to("/nowhere")
    (bot / "logs").rmdir()
    (bot / "logs").symlink_to(outside)
    os.link(outside / "precious", bot / "workspace" / "hard")
    os.mkfifo(bot / "workspace" / "pipe")
    removed(tmp_path, bot)
    assert is_untouched(outside)


def test_a_home_that_became_a_link_only_loses_the_link(tmp_path: Path, outside: Path) -> None:
    (tmp_path / "hana").symlink_to(outside)
    removed(tmp_path, tmp_path / "hana")
    assert is_untouched(outside)


def test_a_home_that_became_a_file_goes_as_well(tmp_path: Path) -> None:
    (tmp_path / "hana").write_text("")
    removed(tmp_path, tmp_path / "hana")


@pytest.mark.parametrize("mode", [0o000, 0o500, 0o300])
def test_folders_closed_to_their_owner_are_opened(bot: Path, tmp_path: Path, mode: int) -> None:
    (bot / "workspace" / "a" / "b").mkdir(parents=True)
    (bot / "workspace" / "a" / "file").write_text("")
    for folder in (bot / "workspace" / "a" / "b", bot / "workspace" / "a", bot / "workspace", bot):
        folder.chmod(mode)
    as_nobody(tmp_path, lambda: removed(Path(), Path("bots/hana")))


def as_nobody(folder: Path, act: Callable[[], None]) -> None:
    """Does it in the folder as somebody who may not write everywhere, as root may; undumpable as a server is."""
    for path in (folder, *folder.rglob("*")) if os.geteuid() == 0 else ():
        os.lchown(path, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.chdir(folder)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
            act()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture
def deep(bot: Path) -> int:
    """A tree deeper than a path may be long, than a stack is and than there are descriptors; how deep."""
    depth, here = 1200, os.open(bot / "workspace", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d" * 20, dir_fd=here)
        below = os.open("d" * 20, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    return depth


@pytest.mark.usefixtures("deep")
def test_no_tree_is_too_deep(bot: Path, tmp_path: Path) -> None:
    removed(tmp_path, bot)


def test_what_is_written_meanwhile_goes_as_well(bot: Path, tmp_path: Path) -> None:
    folder = os.open(bot / "workspace", os.O_RDONLY)
    for number in range(300):
        (bot / "workspace" / f"d{number}").mkdir()
        (bot / "workspace" / f"d{number}" / "file").write_text("")

    def write() -> None:
        for number in range(500):
            try:
                os.close(os.open(f"new{number}", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
                os.mkdir(f"newer{number}", dir_fd=folder)
            except OSError:
                return  # The folder is gone.

    writer = threading.Thread(target=write)
    writer.start()
    try:
        removed(tmp_path, bot)
    finally:
        writer.join()
        os.close(folder)


def test_a_removal_that_takes_too_long_or_is_broken_off_is_ended_later(
    bot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bot / "workspace" / "a" / "b" / "c").mkdir(parents=True)
    grave = trash.take(tmp_path, bot)
    assert grave is not None
    monkeypatch.setattr(trash, "BUDGET", -1.0)
    with pytest.raises(OSError, match="left for later"):
        trash.remove(grave)
    monkeypatch.undo()
    with pytest.raises(OSError, match="left for later"):
        trash.remove(grave, lambda: False)
    assert trash.graves(tmp_path, tmp_path / "bots") == [grave]
    trash.remove(grave)
    trash.remove(grave)
    assert trash.graves(tmp_path, tmp_path / "bots") == []


@needs_root
def test_what_cannot_be_removed_keeps_nothing_else_in_the_trash(bot: Path, tmp_path: Path) -> None:
    (bot / "workspace" / "a" / "b").mkdir(parents=True)
    for folder in (bot, bot / "workspace", bot / "workspace" / "a", bot / "workspace" / "a" / "b"):
        for name in ("one", "two", "three"):
            (folder / name).write_text("secret")
    with stuck(bot / "workspace" / "a" / "two"):
        grave = trash.take(tmp_path, bot)
        assert grave is not None
        for _ in range(2):
            with pytest.raises(PermissionError):
                trash.remove(grave)
            assert [path.name for path in grave.rglob("*") if path.is_file()] == ["two"]
    trash.remove(grave)
    assert trash.graves(tmp_path, tmp_path / "bots") == []


def test_what_we_did_not_put_into_the_trash_is_nobody_s_to_remove(tmp_path: Path, bot: Path) -> None:
    (tmp_path / ".trash" / "mine").mkdir(parents=True)
    grave = trash.take(tmp_path, bot)
    assert trash.graves(tmp_path, tmp_path / "bots") == [grave]


def test_a_link_in_the_trash_s_place_is_no_trash(tmp_path: Path, bot: Path, outside: Path) -> None:
    (outside / "8f14e45f-ceea-467f-a8f4-3f5a1b2c3d4e").mkdir()
    (tmp_path / ".trash").symlink_to(outside)
    with pytest.raises(OSError, match="directory"):
        trash.take(tmp_path, bot)
    with pytest.raises(OSError, match="directory"):
        trash.graves(tmp_path, tmp_path / "bots")
    assert bot.is_dir()
    assert is_untouched(outside)


def test_a_home_that_never_was_is_nothing(tmp_path: Path) -> None:
    assert trash.take(tmp_path, tmp_path / "bots" / "never-was") is None
    assert trash.graves(tmp_path, tmp_path / "bots") == []


def test_a_home_on_another_disk_is_moved_aside_there(tmp_path: Path, bot: Path) -> None:
    disk = Path("/dev/shm")
    if not os.access(disk, os.W_OK) or disk.stat().st_dev == tmp_path.stat().st_dev:
        disk = tmp_path  # There is only one; it is removed all the same.
    elsewhere = disk / f"clawnet-{os.getpid()}"
    shutil.copytree(bot, elsewhere / "hana")
    try:
        if disk != tmp_path:
            # It is as quick as elsewhere: what is in it is removed afterwards.
            grave = trash.take(tmp_path, elsewhere / "hana")
            assert grave is not None
            assert trash.graves(tmp_path, elsewhere) == [grave]
            assert (grave / "workspace").is_dir()
            trash.remove(grave)
            shutil.copytree(bot, elsewhere / "hana")
        removed(tmp_path, elsewhere / "hana")
    finally:
        shutil.rmtree(elsewhere)
