"""A stand-in for Telegram's Bot API, and an old OpenClaw that talks to it instead of to Telegram.

    with fake_telegram.running() as telegram:
        telegram.says("6881:right", "Hello", user=42)    # somebody writes to the bot
        telegram.sent("6881:right")                      # what the bot said

Tokens that begin with `999:` are refused. New OpenClaw is led here by `apiRoot`, old by `wrapper`.
"""

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Telegram:
    """The running program."""

    url: str
    client: httpx.Client

    def says(self, token: str, text: str, user: int = 4200001, name: str = "Ada") -> None:
        """Somebody writes to the bot, one to one."""
        said = {"token": token, "text": text, "user": user, "name": name}
        self.client.post(f"{self.url}/_say", json=said).raise_for_status()

    def refuse(self, token: str) -> None:
        """The token is revoked, from now on."""
        self.client.post(f"{self.url}/_refuse", json={"token": token}).raise_for_status()

    @contextmanager
    def somebody_else_polls(self, token: str) -> Iterator[None]:
        """With the same token, again and again, until the block ends: whoever polls besides is told 409."""
        is_over = threading.Event()

        def poll() -> None:
            while not is_over.is_set():
                self.client.post(f"{self.url}/bot{token}/getUpdates", json={"timeout": 1})

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def sent(self, token: str) -> list[dict[str, Any]]:
        """What the bot sent, oldest first."""
        sent: list[dict[str, Any]] = self.client.get(f"{self.url}/_sent").json()
        return [each for each in sent if each["token"] == token]

    def tokens(self) -> set[str]:
        """Every token that somebody came with."""
        return set(self.client.get(f"{self.url}/_tokens").json())


@contextmanager
def running() -> Iterator[Telegram]:
    """The program on a free port, until the block ends."""
    command = [sys.executable, str(HERE / "program.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            with httpx.Client(trust_env=False, timeout=10) as client:
                yield Telegram(f"http://127.0.0.1:{port}", client)
        finally:
            process.terminate()


def wrapper(folder: Path, package: Path, node: Path, telegram: Telegram) -> Path:
    """An OPENCLAW_BINARY_PATH of an installed OpenClaw whose calls to Telegram go to the stand-in."""
    folder.mkdir(parents=True)
    # What ClawNet reads of a package: its version, its Node, and its rules.
    said = json.loads((package / "package.json").read_text())
    kept = {name: said[name] for name in ("name", "version", "engines", "type") if name in said}
    (folder / "package.json").write_text(json.dumps(kept))
    (folder / "dist").symlink_to(package / "dist")
    redirect, entry = HERE / "redirect.mjs", package / "openclaw.mjs"
    command = shlex.join([str(node), "--import", str(redirect), str(entry)])
    file = folder / "openclaw"
    file.write_text(f'#!/bin/sh\nTELEGRAM_STANDIN={shlex.quote(telegram.url)} exec {command} "$@"\n')
    file.chmod(0o755)
    return file
