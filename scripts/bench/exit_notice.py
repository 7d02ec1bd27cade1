"""From `kill -9` of a gateway to the event at a WebSocket subscriber, beside the least that could tell of it.

The peer is a bare Python program that waits on a process's pidfd and sends one line over a raw socket. In between,
ClawNet has the shim write down how the gateway ended, writes it into the database, and asks who may hear of it.
"""

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from anyio import to_thread
from rows import Row, quantile
from serving import folder, serving

from tests import fake_openclaw
from tests.journeys import documents as docs
from tests.journeys import story

SAMPLES = 200
#: Milliseconds.
TARGET_P99 = 250

WATCHER = """
import os, select, socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as us, us.makefile() as asked:
    for pid in asked:
        fd = os.pidfd_open(int(pid))
        us.sendall(b"watching\\n")
        select.select([fd], [], [])
        us.sendall(b"ended\\n")
        os.close(fd)
"""
VICTIM = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]


async def measure() -> list[Row]:
    with folder() as where, watcher() as peer:
        openclaw = fake_openclaw.install(where / "openclaw")
        async with serving(where, openclaw, CLAWNET_BACKOFF_SCALE="0", CLAWNET_LOG_LEVEL="warning") as (_, api):
            await story.make_provider(api, "http://127.0.0.1:9/v1")
            bot = await story.make_bot(api, restartPolicy={"mode": "ALWAYS", "maxRestarts": 100})
            ours, bare = [], []
            async with api.listen(docs.BOT_STATUS, ids=[bot["id"]]) as heard:
                for _ in range(SAMPLES):
                    # By hand each time, so that no pause grows and nothing is given up.
                    await api.run(docs.BOT_START, input={"botId": bot["id"], "wait": False})
                    active = await heard.until(lambda event: event["status"] == "ACTIVE")
                    ours.append(await time_ours(heard, active["pid"]))
                    bare.append(await to_thread.run_sync(time_bare, peer))
    return [
        row("p50", ours, bare, 0.5),
        row("p99", ours, bare, 0.99, f"<= {TARGET_P99} ms"),
        row("max", ours, bare, 1.0),
        Row(f"exit_notice mean of {SAMPLES}", f"{statistics.mean(ours):.1f} ms", "", f"{ratio(ours, bare):.0f} x"),
    ]


def row(name: str, ours: list[float], bare: list[float], share: float, wanted: str = "") -> Row:
    mine, theirs = quantile(ours, share), quantile(bare, share)
    return Row(f"exit_notice {name}", f"{mine:.1f} ms", wanted, f"{mine / theirs:.0f} x bare watcher ({theirs:.2f} ms)")


def ratio(ours: list[float], bare: list[float]) -> float:
    return statistics.mean(ours) / statistics.mean(bare)


async def time_ours(heard: Any, pid: int) -> float:
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await heard.until(lambda event: event["event"] == "bot:error")
    return (time.perf_counter() - began) * 1000


@contextmanager
def watcher() -> Generator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = subprocess.Popen([sys.executable, "-I", "-S", "-c", WATCHER, str(listener.getsockname()[1])])
        peer, _ = listener.accept()
    with peer, process:
        yield peer
        process.kill()


def time_bare(peer: socket.socket) -> float:
    with subprocess.Popen(VICTIM) as victim:
        peer.sendall(f"{victim.pid}\n".encode())
        assert peer.recv(64) == b"watching\n"
        began = time.perf_counter()
        victim.kill()
        assert peer.recv(64) == b"ended\n"
        return (time.perf_counter() - began) * 1000
