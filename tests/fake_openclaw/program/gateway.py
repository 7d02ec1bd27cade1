"""A running gateway: ports, health, readiness, reloads and the end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from . import completions, ids, process
from .channels import Channels
from .clients import Clients
from .http import Request, Server
from .login import Logins
from .pairing import Files, Store
from .rpc import Rpc
from .runs import Runs
from .sessions import Sessions
from .voices import NewVoice, OldVoice

if TYPE_CHECKING:
    from .config import Config
    from .eras import Era
    from .faults import Faults
    from .output import Output

#: How long new waits for runs in progress when it is asked to end.
DRAIN_S = 315


class Gateway:
    """What `gateway run` keeps alive."""

    def __init__(
        self, config: Config, config_path: Path, home: Path, port: int, era: Era, faults: Faults, output: Output
    ) -> None:
        self.config, self.config_path, self.home, self.port = config, config_path, home, port
        self.era, self.faults, self.output = era, faults, output
        self.boot_id = ids.uuid4()
        self.token = config.get("gateway.auth.token") or ids.uuid4()
        self.clients = Clients()
        self.voice = NewVoice(self.clients) if era.subscribes else OldVoice(self.clients)
        self.sessions = Sessions(era, home, faults.zstd_from_bytes)
        self.channels = Channels(self)
        self.pairings = Store(home) if era.subscribes else Files(home)
        self.logins = Logins(home, "new" if era.is_new else "old", faults)
        self.runs = Runs(self)
        self._rpc = Rpc(self)
        self._server = Server(self._handle)
        self._began = time.monotonic()
        self._ready = self._stopping = self._talked = False
        self._hung = Event()

    @property
    def uptime_ms(self) -> int:
        return round((time.monotonic() - self._began) * 1000)

    def listen(self) -> None:
        """Raises: OSError when the port is taken."""
        self._server.listen("0.0.0.0" if self.config.get("gateway.bind") == "lan" else "127.0.0.1", self.port)
        if not self.era.is_new:
            try:
                self._server.listen("::1", self.port)
            except OSError:
                return  # a machine without IPv6

    def become_ready(self) -> None:
        self._ready = not self.faults.never_ready
        if self.era.is_new and self._ready:
            self.output.log("gateway", "ready")
        self.channels.start()
        self.tell_secrets()
        self._start_faults()
        Thread(target=self._tick, daemon=True).start()

    def stop(self) -> None:
        """The orderly end: work drained, sockets told, files closed."""
        self._stopping = True
        if self.era.is_new:
            self.output.log("admission", "closed: stop (SIGTERM)")
        else:
            self.output.log("gateway", "signal SIGTERM received")
        self.output.log("gateway", "received SIGTERM; shutting down")
        time.sleep(self.faults.drain_s)
        deadline = time.monotonic() + (DRAIN_S if self.era.is_new else 0)
        while self.runs.busy and time.monotonic() < deadline:
            time.sleep(0.02)
        if self.era.is_new:
            self.output.log("gateway", "active-work drain settled; beginning server close")
        self.runs.abort_all()
        self._server.close()
        self._bid_farewell(None)
        self.output.log("gmail-watcher", "gmail watcher stopped")
        self.sessions.close()
        if self.era.is_new:
            self.output.log("shutdown", f"completed cleanly in {round(self.faults.drain_s * 1000) + 1}ms")

    def restart_inside(self, why: str) -> None:
        """Same process, a moment without health; --port still wins over the file."""
        self.output.log("gateway", f"restarting in process: {why}")
        self._ready = False
        self._server.close()
        self._bid_farewell(round(self.faults.restart_s * 1000))
        time.sleep(self.faults.restart_s)
        self.token = self.config.get("gateway.auth.token") or self.token
        self.listen()
        self._ready = not self.faults.never_ready
        if self.era.is_new:
            self.output.log("gateway", "ready")
        else:
            self.output.log("gateway", f"listening on ws://127.0.0.1:{self.port} (PID {os.getpid()})")

    def tell_secrets(self) -> None:
        if self.faults.print_secret:
            for secret in [self.token, *self.config.secrets()]:
                self.output.log("gateway", f"a secret slipped out: {secret}")
        if self.faults.echo_secrets:
            for echo in self.config.echoes():
                self.output.log("gateway", f"a secret slipped out: {echo}")
                self.output.error(f"and here as well: {echo}")
            said = f"in pieces: {' '.join(self.config.echoes()[:50])}\n".encode()
            for start in range(0, len(said), 7):
                self.output.raw(said[start : start + 7])

    def gossip(self) -> str:
        """What is said besides, where something went wrong."""
        return f" {' '.join(self.config.echoes())}" if self.faults.echo_secrets else ""

    def workspace(self, agent_id: str) -> str:
        folder = Path(self.config.agent(agent_id).get("workspace") or self.home / "workspace")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder)

    def persona(self, agent_id: str) -> list[dict]:
        """The system message, made of the workspace's files."""
        files = [Path(self.workspace(agent_id)) / name for name in ("AGENTS.md", "SOUL.md", "IDENTITY.md", "USER.md")]
        texts = [f"## {file.name}\n{file.read_text(errors='replace')}" for file in files if file.is_file()]
        return [{"role": "system", "content": "\n\n".join(["You are a personal assistant.", *texts])}]

    def pause_before_first_turn(self) -> None:
        if not self._talked:
            self._talked = True
            time.sleep(self.faults.first_turn_delay_s)

    def wait_while_hung(self) -> None:
        """A hung gateway keeps its sockets and answers nothing."""
        while self._hung.is_set():
            time.sleep(3600)

    def _handle(self, request: Request) -> bool:
        self.wait_while_hung()
        if request.headers.get("upgrade", "").lower() == "websocket":
            while not (self._ready or self.era.health):
                time.sleep(0.02)  # old's readiness is that it answers the handshake
            self._rpc.serve(request.upgrade())
            return True
        if self.era.health and request.path in {"/health", "/healthz"}:
            request.reply(200, {"ok": True, "status": "live"})
        elif self.era.health and request.path in {"/ready", "/readyz"}:
            self._tell_readiness(request)
        elif self.era.health and request.path == "/startupz":
            started = self._ready and not self._stopping
            request.reply(200 if started else 503, {"ok": started, "status": "started" if started else "starting"})
        elif request.path == "/v1/chat/completions" and self._completes:
            completions.serve(self, request)
        elif request.path == "/__fake/inbound" and request.bearer == self.token:
            run = self.runs.perform(self.channels.receive(json.loads(request.body)))
            request.reply(200, {"sessionKey": run.session.key, "reply": run.reply, "error": run.error})
        elif request.path == "/__fake/login" and request.bearer == self.token:
            self.logins.happens(json.loads(request.body)["event"])
            request.reply(200, {"waits": self.logins.waits})
        elif request.path == "/__fake/pairing" and request.bearer == self.token:
            # Somebody asks to be let in: {channel, account?, peer, name?}.
            said = json.loads(request.body)
            meta = {"firstName": said["name"]} if "name" in said else {}
            account = said.get("account", "default")
            request.reply(200, {"code": self.pairings.ask(said["channel"], account, str(said["peer"]), meta)})
        else:
            request.reply(404, "Not Found")
        return False

    @property
    def _completes(self) -> bool:
        return bool(self.config.get("gateway.http.endpoints.chatCompletions.enabled"))

    def _tell_readiness(self, request: Request) -> None:
        ready = self._ready and not self._stopping
        failing = [] if ready else ["gateway-draining" if self._stopping else "startup-sidecars"]
        if ready and (failing := self.channels.failing()):
            ready = False  # a channel that is down takes readiness along, for as long as it is
        loop = {"degraded": False, "reasons": [], "intervalMs": 1000, "delayP99Ms": 1.0}
        answer = {"ready": ready, "failing": failing, "uptimeMs": self.uptime_ms, "eventLoop": loop}
        request.reply(200 if ready else 503, answer)

    def _bid_farewell(self, back_in_ms: int | None) -> None:
        reason = "gateway stopping" if back_in_ms is None else "gateway restarting"
        self.clients.tell("shutdown", {"reason": reason, "restartExpectedMs": back_in_ms})
        self.clients.close(1012, "service restart")

    def _tick(self) -> None:
        while True:
            time.sleep(self.faults.tick_s)
            self.clients.tell("tick", {"ts": ids.now_ms()})

    def _start_faults(self) -> None:
        faults = self.faults
        if faults.crash_after_s is not None:
            process.later(faults.crash_after_s, self._crash)
        if faults.hang_after_s is not None:
            process.later(faults.hang_after_s, self._hang)
        if faults.leak_mb_per_s:
            Thread(target=process.leak, args=(faults,), daemon=True).start()
        if faults.flood_bytes or faults.flood_lines_per_s or faults.flood_every_byte:
            Thread(target=process.flood, args=(faults, self.output), daemon=True).start()

    def _crash(self) -> None:
        if self.faults.crash_signal is None:
            self.output.error(f"Error: the fault crash_after_s{self.gossip()}")
            if self.faults.echo_secrets:
                self.output.error(json.dumps(self.config.data, indent=2))
            os._exit(self.faults.crash_code)
        os.kill(os.getpid(), self.faults.crash_signal)

    def _hang(self) -> None:
        if self.faults.hang_how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        else:
            self._hung.set()
