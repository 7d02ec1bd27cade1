"""From the command to a ready server, with an embedded database that was made before, beside Python's imports alone."""

import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from socket import create_connection, create_server

from anyio import to_thread
from rows import Row
from serving import folder, serving

from tests.harness import REPO, environ

RUNS = 7
#: Seconds.
TARGET = 2.0
PATIENCE = 60
IMPORTS = "import strawberry, litestar, piccolo, uvicorn"


async def measure() -> list[Row]:
    with folder() as where:
        async with serving(where, None):
            pass  # makes the database, and everything that Python compiles once
        return await to_thread.run_sync(compare, where)


def compare(where: Path) -> list[Row]:
    ours, imports = [], []
    for _ in range(RUNS):
        ours.append(time_start(where))
        imports.append(time_imports())
    mine, theirs = statistics.median(ours), statistics.median(imports)
    return [
        Row(
            f"server_start median of {RUNS}",
            f"{mine:.2f} s",
            f"<= {TARGET:g} s",
            f"{mine / theirs:.2f} x its imports ({theirs:.2f} s)",
        ),
        Row("server_start least, most", f"{min(ours):.2f} s, {max(ours):.2f} s"),
    ]


def time_start(where: Path) -> float:
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = plain() | environ(where, None, None, CLAWNET_PORT=str(port))
    command = [sys.executable, "-m", "app", "serve", "--no-openclaw"]
    began = time.perf_counter()
    with subprocess.Popen(
        command, cwd=REPO, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as it:
        wait_until_listening(port, began + PATIENCE)
        while not is_ready(port):
            time.sleep(0.005)
        took = time.perf_counter() - began
        it.send_signal(signal.SIGTERM)
    return took


def wait_until_listening(port: int, deadline: float) -> None:
    while time.perf_counter() < deadline:
        try:
            create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.005)
        else:
            return
    raise TimeoutError("the server does not listen")


def is_ready(port: int) -> bool:
    # It listens before it is up, and answers when it is.
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE).status == 200
    except urllib.error.HTTPError:
        return False


def time_imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], env=plain(), check=True)
    return time.perf_counter() - began


def plain() -> dict[str, str]:
    """Little of the caller's environment: some of it changes what Python does at its start."""
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
