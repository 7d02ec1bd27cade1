"""The command line: `gateway run`, `config validate`, `plugins install`, `--version`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from . import config, dotenv, ledger, process
from .eras import Era
from .errors import Planned
from .faults import Faults
from .lock import HomeLock
from .output import Output

#: What our threads need; the usual 8 MiB of address space each would count against a limit.
STACK_BYTES = 512 * 1024
BINDS = {"loopback", "lan", "tailnet", "auto", "custom"}


class Exit(Planned):
    """End with this code, after saying why."""

    def __init__(self, code: int, *lines: str, heard: str = "stdout") -> None:
        super().__init__(*lines)
        self.code, self.lines, self.heard = code, lines, heard


class Program:
    """One run of the command."""

    def __init__(self, install: Path) -> None:
        self.install = install
        version = json.loads((install / "package.json").read_text())["version"]
        self.faults = Faults(install)
        self.era = Era(version, self.faults.traits)
        self.output = Output(self.era, colour=not os.environ.get("NO_COLOR"))
        self.home = Path(os.environ.get("OPENCLAW_STATE_DIR") or Path.home() / ".openclaw")
        self.config_path = Path(os.environ.get("OPENCLAW_CONFIG_PATH") or self.home / "openclaw.json")

    def command(self, words: list[str]) -> int:
        if words == ["--version"]:
            return self.tell_version()
        if words[:2] == ["gateway", "run"]:
            return self.run_gateway(self.options(words[2:]))
        if words[:2] == ["config", "validate"] and self.era.validates:
            return self.validate()
        if words[:2] == ["plugins", "install"] and self.era.is_new:
            return self.install_plugin(words[2:])
        raise Exit(1, f"error: unknown command '{' '.join(words[:2])}'", heard="stderr")

    def options(self, words: list[str]) -> dict[str, str]:
        found, words = {}, list(words)
        while words:
            name, _, value = words.pop(0).partition("=")
            if name not in {"--port", "--bind"}:
                raise Exit(1, f'OpenClaw does not recognize option "{name}".', heard="stderr")
            found[name] = value or (words.pop(0) if words else "")
        if not found.get("--port", "1").isdigit() or found.get("--bind", "auto") not in BINDS:
            raise Exit(1, "Invalid --port or --bind", heard="stderr")
        return found

    def tell_version(self) -> int:
        if self.era.is_new:
            self.output.plain(f"OpenClaw {self.era.version} (eb377ac)")
            return 0
        try:
            config.load(self.config_path, self.era)
        except (config.Missing, config.Refused) as error:
            if isinstance(error, config.Refused):
                self.output.plain(self.invalid(error))
        self.output.plain(self.era.version)
        return 0

    def validate(self) -> int:
        dotenv.load(self.home)
        path = str(self.config_path)
        try:
            accepted = config.load(self.config_path, self.era)
        except config.Missing:
            issues = [{"path": "", "message": f"Config file not found: {path}"}]
        except config.Refused as refused:
            issues = [{"path": at, "message": why} for at, why in refused.issues]
        else:
            warnings = [{"path": at, "message": why} for at, why in accepted.warnings]
            self.output.plain(json.dumps({"valid": True, "path": path, "warnings": warnings}))
            return 0
        self.output.plain(json.dumps({"ok": False, "valid": False, "path": path, "issues": issues}))
        return 1

    def install_plugin(self, words: list[str]) -> int:
        """`plugins install npm:@openclaw/discord@2026.9.6 --force`."""
        from . import plugins

        dotenv.load(self.home)
        ledger.note(self.install / "plugins.log", home=str(self.home), words=words, environ=dict(os.environ))
        try:
            if self.faults.plugin_installs_fail:
                raise plugins.Failed("npm error code ENOTCACHED")
            config.load(self.config_path, self.era)
            self.output.plain(plugins.install(self.home, self.config_path, words[0]))
        except (config.Missing, config.Refused, plugins.Failed) as error:
            raise Exit(1, str(error), heard="stderr") from None
        return 0

    def run_gateway(self, options: dict[str, str]) -> int:
        """From the first line to the last; what must be undone is undone on every way out."""
        if not self.era.is_new and os.environ.get("OPENCLAW_NO_RESPAWN") != "1":
            return process.rerun_as_child([sys.executable, "-IS", *sys.argv])
        agent_id = config.agent_id(config.peek(self.config_path)) or self.home.name
        self.faults.overlay(agent_id)
        self.era = Era(self.era.version, self.faults.traits)
        books, lock = ledger.Ledger(self.install, self.home), HomeLock(self.config_path)
        books.open(agent_id, os.environ.get("CLAWNET_NONCE", ""))
        process.mind_signals(self.era)
        process.take_title()
        process.fork_grandchildren(self.faults)
        try:
            return self.keep_running(options, lock)
        except process.Stopped:
            return 0
        finally:
            lock.release()
            books.close()

    def keep_running(self, options: dict[str, str], lock: HomeLock) -> int:
        began = time.monotonic()
        delay = self.faults.start_delay_s + self.warm_up()
        accepted = self.accept_config(began + delay)
        self.take_home(lock)
        if self.faults.exit_at_start is not None:
            raise Exit(self.faults.exit_at_start, "Error: the fault exit_at_start", heard="stderr")
        from .gateway import Gateway

        port = int(options.get("--port") or accepted.get("gateway.port", 18789))
        gateway = Gateway(accepted, self.config_path, self.home, port, self.era, self.faults, self.output)
        broker = self.open_doors(gateway, began, delay)
        gateway.become_ready()
        if accepted.get("gateway.reload.mode") != "off":
            from . import reload

            threading.Thread(target=reload.watch, args=(gateway,), daemon=True).start()
        while process.wait(None, self.era, self.output) and self.faults.ignore_sigterm:
            self.output.log("gateway", "signal ignored (fault ignore_sigterm)")
        gateway.stop()
        if broker is not None:
            os.close(broker)
        return 0

    def warm_up(self) -> float:
        """Fill the start cache; the seconds it costs when there was none."""
        name = "node-compile-cache" if self.era.is_new else "jiti"
        cache = Path(os.environ.get("TMPDIR") or "/tmp") / name
        if cache.is_dir() and any(cache.iterdir()):
            return 0.0
        cache.mkdir(parents=True, exist_ok=True)
        for number in range(3):
            (cache / f"{number:08x}.{'cache' if self.era.is_new else 'cjs'}").write_bytes(b"compiled " * 64)
        return self.faults.first_start_delay_s

    def accept_config(self, ready_at: float) -> config.Config:
        """Old refuses after its whole start-up, new at once."""
        try:
            if self.faults.exit_78:
                raise config.Refused([("gateway", 'Unrecognized key: "fault"')], code=78)
            accepted = config.load(self.config_path, self.era)
        except (config.Missing, config.Refused) as error:
            if not self.era.is_new:
                self.pause(ready_at - time.monotonic())
            raise self.refusal(error) from None
        if not self.era.is_new:
            config.add_entries(self.config_path, accepted, self.era.version)
        if path := accepted.get("logging.file"):
            self.output.keep_file(path)
        return accepted

    def refusal(self, error: config.Missing | config.Refused) -> Exit:
        heard = "stdout" if self.era.is_new else "stderr"
        if isinstance(error, config.Missing):
            why = "Missing config. Run `openclaw setup` or set gateway.mode=local (or pass --allow-unconfigured)."
            return Exit(self.era.refused, why, heard=heard)
        if error.plain:
            return Exit(self.era.refused, error.plain, heard=heard)
        only_bind = {path for path, _ in error.issues} == {"gateway.bind"}
        code = error.code or (1 if only_bind else self.era.refused)
        return Exit(code, self.invalid(error), heard=heard)

    def invalid(self, refused: config.Refused) -> str:
        lines = [f"- {path or '<root>'}: {why}" for path, why in refused.issues]
        if self.era.is_new:
            return "\n".join([f"Invalid config at {self.config_path}:", *lines, "Gateway aborted: config is invalid."])
        problem = "\n".join(f"  {line}" for line in lines)
        head = f"Invalid config at {self.config_path}:\n" + "\n".join(lines)
        return f"{head}\nConfig invalid\nFile: {self.config_path}\nProblem:\n{problem}\n\nRun: openclaw doctor --fix"

    def take_home(self, lock: HomeLock) -> None:
        deadline = time.monotonic() + self.faults.lock_delay_s
        while owner := lock.take():
            if time.monotonic() < deadline:
                self.pause(0.1)
                continue
            if self.era.is_new:
                raise Exit(78, f"GatewayLockError: gateway lock has a live or unverified owner (PID {owner})")
            why = f"Gateway failed to start: gateway already running (pid {owner}); lock timeout after 5000ms"
            raise Exit(1, why, f"Gateway already running locally (PID {owner}).", heard="stderr")

    def open_doors(self, gateway, began: float, delay: float) -> int | None:
        """Listen and become ready, each when its time has come; what keeps the broker alive."""
        broker, new = None, self.era.is_new
        if new:
            self.tell_warnings(gateway.config)
            self.output.log("gateway", "loading configuration…")
            self.output.log("gateway", "starting...")
        if self.era.broker:
            pid, broker = process.start_broker()
            self.output.log("gateway", f"spawn broker ready pid={pid}")
        # New opens its port well before it is ready, old when all is done.
        self.pause(began + delay * (0.6 if new else 1.0) - time.monotonic())
        self.listen(gateway)
        named = config_model(gateway.config)
        if new:
            self.output.log("gateway", f"agent model: {named} (thinking=off, fast=off)")
            took = f"{time.monotonic() - began:.1f}s"
            self.output.log("gateway", f"http server listening (3 plugins: memory-core, openai, telegram; {took})")
        else:
            self.output.log("heartbeat", "disabled")
            self.output.log("gateway", f"agent model: {named}")
            self.output.log("gateway", f"listening on ws://127.0.0.1:{gateway.port} (PID {os.getpid()})")
            self.output.log("gateway", f"listening on ws://[::1]:{gateway.port}")
        if path := gateway.config.get("logging.file"):
            self.output.log("gateway", f"log file: {path}")
        if new:
            self.output.log("gateway", "starting channels and sidecars...")
        self.pause(began + delay - time.monotonic())
        return broker

    def listen(self, gateway) -> None:
        deadline = time.monotonic() + self.faults.port_delay_s
        while True:
            try:
                return gateway.listen()
            except OSError:
                if time.monotonic() >= deadline:
                    why = f"another gateway instance is already listening on ws://127.0.0.1:{gateway.port}"
                    raise Exit(1, f"Gateway failed to start: {why}", heard="stderr") from None
                self.pause(0.1)

    def tell_warnings(self, accepted: config.Config) -> None:
        if accepted.warnings:
            told = "; ".join(f"{path}: {why}" for path, why in accepted.warnings)
            self.output.plain(f"[config] warnings: {told}")

    def pause(self, seconds: float) -> None:
        """Raises: Stopped when a signal asks for the end meanwhile."""
        ignores = self.faults.ignore_sigterm
        until = time.monotonic() + seconds
        while process.wait(max(0.0, until - time.monotonic()), self.era, self.output):
            if not ignores:
                raise process.Stopped


def config_model(accepted: config.Config) -> str:
    named = accepted.agent(accepted.agent_id).get("model") or accepted.get("agents.defaults.model", "none")
    return named.get("primary", "none") if isinstance(named, dict) else named


def run(install: Path) -> None:
    """Never returns: threads that still talk must not hold the end up."""
    threading.stack_size(STACK_BYTES)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = Program(install)
    try:
        code = program.command(sys.argv[1:])
    except Exit as end:
        for line in end.lines:
            (program.output.plain if end.heard == "stdout" else program.output.error)(line)
        code = end.code
    sys.stdout.flush()
    os._exit(code)
