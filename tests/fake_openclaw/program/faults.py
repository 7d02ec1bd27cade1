"""What a test wants to go wrong: `faults.json` beside the wrapper, with an overlay for each bot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: Every fault with the value that means "behave".
DEFAULTS: dict[str, Any] = {
    # Starting
    "start_delay_s": 0.0,  # from the start to ready; also before an old era refuses its config
    "first_start_delay_s": 0.0,  # more of it, when the start cache in TMPDIR is missing
    "port_delay_s": 0.0,  # how long a taken port is tried again
    "lock_delay_s": 0.0,  # how long a taken home is tried again
    "never_ready": False,  # new: /readyz stays 503; old: the handshake is never answered
    "exit_at_start": None,  # exit with this code before listening
    "exit_78": False,  # refuse the config, whatever it says
    # Running
    "crash_after_s": None,  # after being ready, with crash_signal, or else crash_code
    "crash_code": 1,
    "crash_signal": None,  # a number
    "hang_after_s": None,  # after being ready
    "hang_how": "mute",  # "mute": sockets open, nothing is answered; "stop": SIGSTOP
    "restart_s": 0.2,  # without health during an in-process restart
    "leak_mb_per_s": 0.0,
    "leak_limit_mb": 1024,  # the leak ends here, so that a failing test does not take the machine along
    "fork_grandchildren": 0,  # processes in sessions of their own that outlive us
    "grandchild_life_s": 120,
    "grandchildren_hold_output": True,  # they keep our stdout open
    # Printing
    "flood_bytes": 0,  # printed as fast as they are taken, once ready
    "flood_lines_per_s": 0,
    "flood_every_byte": False,  # each of the 256 byte values
    "print_secret": False,  # every secret of the config, once ready and at each reload
    "echo_secrets": False,  # every text of the config, in each spelling, wherever something can be said
    # Stopping
    "ignore_sigterm": False,
    "drain_s": 0.0,  # from SIGTERM to the exit
    # Conversations
    "first_turn_delay_s": 0.0,
    "model_attempts": 4,
    "model_retry_s": 0.05,
    "offline_echo": True,  # answer in the model's stead while its baseUrl refuses connections
    "zstd_from_bytes": 1024,  # new: events this long are stored compressed; 0: never
    # Channels
    "channels": {},  # laid over channels.status: {"telegram": {"running": false, "lastError": "…"}}
    "channels_unloadable": [],  # their plugin is there and cannot be run
    "channels_held": False,  # new: its crash breaker holds them back until channels.start
    "channel_starts_fail": 0,  # new: how many channels.start fail, refused and unsuccessful in turn
    "whatsapp_unreachable": False,  # no code can be had
    "login_hurries": "",  # a wait for the scan is answered at once: `still` waiting, or with a `fresh` code
    # The npm that comes with it
    "registry": "up",  # or "refused", "lacks" (it has no such package), "silent" (it never answers)
    "plugin_installs_fail": False,  # `plugins install`, whatever the registry has
    "npm_download_s": 0.0,  # how long `npm install` takes elsewhere
    "npm_install_s": 0.0,  # how long `npm install` takes in a bot's home
    "tick_s": 30.0,
    # Which era's traits this version mixes (eras.TRAITS)
    "traits": {},
}


def check(names: dict[str, Any]) -> None:
    """A misspelt fault would be a test that proves nothing."""
    if unknown := sorted(set(names) - set(DEFAULTS)):
        raise TypeError(f"no such fault: {', '.join(unknown)}; there are {', '.join(sorted(DEFAULTS))}")


class Faults:
    """The faults of one start, read by attribute: `faults.drain_s`."""

    def __init__(self, install: Path) -> None:
        try:
            self._file = json.loads((install / "faults.json").read_text())
        except FileNotFoundError:
            self._file = {}
        self.values = DEFAULTS | {name: value for name, value in self._file.items() if name != "bots"}

    def overlay(self, agent_id: str) -> None:
        self.values = self.values | self._file.get("bots", {}).get(agent_id, {})

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None
