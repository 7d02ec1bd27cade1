"""Every setting: its name, what it may be, and what it is when nobody says anything.

A setting comes from the environment or, after that, from `clawnet.toml` in the data folder, where its key is the
variable's name in lower case. Read once, in `main`; others are handed the value they need.
"""

import difflib
import ipaddress
import re
import socket
import sys
import tomllib
from collections.abc import Collection, Mapping, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from app import vault
from app.domain.errors import SettingsError
from app.vault import Secret

#: Ports a bot's gateway may use, counted from its own.
PORT_FAMILY = 120
#: The OpenClaw that bots run unless told otherwise.
OPENCLAW_VERSION = "2026.9.6"
#: Largest limit that can be asked for; who wants more wants none.
MOST = 100_000_000
#: Name of the settings file in the data folder.
FILE_NAME = "clawnet.toml"
#: Variables with secrets in them.
_SECRETS = ("ENCRYPTION_KEY", "ENCRYPTION_KEY_PREVIOUS", "DATABASE_URL")

_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?")
#: What browsers leave out of an origin.
_PORTS = {"http": 80, "https": 443}
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings a server runs with. A field's environment variable is its name in capitals."""

    #: None: the embedded server.
    database_url: Secret | None
    #: None: the key file beside the data, which is made when it is missing.
    encryption_key: Secret | None
    #: Where `encryption_key` was read from, if from a file.
    encryption_key_file: Path | None
    #: The master key before this one, for `clawnet keys rekey`.
    encryption_key_previous: Secret | None
    encryption_key_previous_file: Path | None

    #: An `openclaw` to run instead of an installation of our own.
    openclaw_binary_path: Path | None
    openclaw_base_path: Path
    openclaw_base_port: int
    openclaw_max_bots: int

    clawnet_data_dir: Path
    clawnet_cache_dir: Path
    clawnet_host: str
    #: 0: any free one.
    clawnet_port: int
    clawnet_openclaw_version: str
    #: What happens to bots when the server stops: `stop` or `keep`.
    clawnet_shutdown: str
    #: Seconds a bot has to end after SIGTERM.
    clawnet_stop_grace: float
    #: Seconds between two looks at a bot's health.
    clawnet_health_interval: float
    #: Seconds a bot has to become ready.
    clawnet_start_budget: float
    #: `on` or `off`: give each new home a copy of what OpenClaw compiles at a first start.
    clawnet_start_cache: str
    #: `console` or `json`.
    clawnet_log_format: str
    #: `debug`, `info`, `warning` or `error`.
    clawnet_log_level: str
    clawnet_node: str
    #: Open sockets one person, and one client's address, may have; 0: any number.
    clawnet_sockets_per_user: int
    clawnet_sockets_per_address: int
    #: What one caller may use in a minute: cost of queries, mutations, tries to sign in, new sockets; 0: no limit.
    clawnet_rate_query: int
    clawnet_rate_mutation: int
    clawnet_rate_sign_in: int
    clawnet_rate_connect: int
    #: Addresses and networks of reverse proxies whose word counts on who the client is.
    clawnet_trusted_proxies: tuple[str, ...]
    #: Origins of pages elsewhere that may ask.
    clawnet_allowed_origins: tuple[str, ...]
    #: What `clawnet backup` and `clawnet restore` encrypt with, in a file; None: asked for at a terminal.
    clawnet_backup_passphrase_file: Path | None
    #: For tests only: multiplies the waits between two starts of a failing bot.
    clawnet_backoff_scale: float
    #: For tests only: seconds after which a machine's lease that was not renewed may be taken.
    clawnet_lease: float
    #: Seconds between the last two passes of a change of keys, in which other servers take the new one in.
    clawnet_key_rotation_wait: float

    #: What the person who starts the server should know; one sentence each.
    warnings: tuple[str, ...]


def take(environ: MutableMapping[str, str], unneeded: Collection[str] = ()) -> Settings:
    """As `load`, and takes the secrets out of the environment: nothing that is started from here on shall find them.

    Args:
        unneeded: Variables that are not looked at.
    """
    found = load({name: value for name, value in environ.items() if name not in unneeded})
    for name in _SECRETS:
        environ.pop(name, None)
    return found


def load(environ: Mapping[str, str]) -> Settings:
    """The settings that the environment and the settings file ask for.

    Raises:
        SettingsError: One of them is wrong. Names it, what was found (no secrets) and what is expected.
    """
    require_linux()
    data_dir = _data_dir(environ)
    source = _Source(environ, data_dir / FILE_NAME)
    database_url = source.database_url("DATABASE_URL")
    key_file = source.path("ENCRYPTION_KEY_FILE", None)
    previous_file = source.path("ENCRYPTION_KEY_PREVIOUS_FILE", None)
    base_port = source.integer("OPENCLAW_BASE_PORT", 18789, 1024, 65535)
    settings = Settings(
        database_url=database_url,
        encryption_key=source.encryption_key("ENCRYPTION_KEY", key_file, is_needed=database_url is not None),
        encryption_key_file=key_file,
        encryption_key_previous=source.encryption_key("ENCRYPTION_KEY_PREVIOUS", previous_file, is_needed=False),
        encryption_key_previous_file=previous_file,
        openclaw_binary_path=source.file("OPENCLAW_BINARY_PATH"),
        openclaw_base_path=source.folder("OPENCLAW_BASE_PATH", data_dir / "openclaw"),
        openclaw_base_port=base_port,
        openclaw_max_bots=source.integer("OPENCLAW_MAX_BOTS", 50, 1, 10_000),
        clawnet_data_dir=data_dir,
        clawnet_cache_dir=source.folder("CLAWNET_CACHE_DIR", _xdg(environ, "XDG_CACHE_HOME", ".cache")),
        clawnet_host=source.host("CLAWNET_HOST", "127.0.0.1"),
        clawnet_port=source.integer("CLAWNET_PORT", 8000, 0, 65535),
        clawnet_openclaw_version=source.match(
            "CLAWNET_OPENCLAW_VERSION", OPENCLAW_VERSION, _VERSION, f"a version such as {OPENCLAW_VERSION}"
        ),
        clawnet_shutdown=source.choice("CLAWNET_SHUTDOWN", "stop", "stop", "keep"),
        clawnet_stop_grace=source.number("CLAWNET_STOP_GRACE", 20, 0, 3600),
        clawnet_health_interval=source.number("CLAWNET_HEALTH_INTERVAL", 10, 0.05, 3600),
        clawnet_start_budget=source.number("CLAWNET_START_BUDGET", 120, 0.05, 3600),
        clawnet_start_cache=source.choice("CLAWNET_START_CACHE", "on", "on", "off"),
        clawnet_log_format=source.choice(
            "CLAWNET_LOG_FORMAT", "console" if sys.stderr.isatty() else "json", "console", "json"
        ),
        clawnet_log_level=source.choice("CLAWNET_LOG_LEVEL", "info", "debug", "info", "warning", "error"),
        clawnet_node=source.match(
            "CLAWNET_NODE", socket.gethostname(), _NODE, "a name of up to 63 letters, digits, dots, - and _"
        ),
        clawnet_sockets_per_user=source.integer("CLAWNET_SOCKETS_PER_USER", 20, 0, MOST),
        clawnet_sockets_per_address=source.integer("CLAWNET_SOCKETS_PER_ADDRESS", 200, 0, MOST),
        clawnet_rate_query=source.integer("CLAWNET_RATE_QUERY", 6_000, 0, MOST),
        clawnet_rate_mutation=source.integer("CLAWNET_RATE_MUTATION", 1_200, 0, MOST),
        clawnet_rate_sign_in=source.integer("CLAWNET_RATE_SIGN_IN", 20, 0, MOST),
        clawnet_rate_connect=source.integer("CLAWNET_RATE_CONNECT", 600, 0, MOST),
        clawnet_trusted_proxies=source.proxies("CLAWNET_TRUSTED_PROXIES"),
        clawnet_allowed_origins=source.origins("CLAWNET_ALLOWED_ORIGINS"),
        clawnet_backup_passphrase_file=source.path("CLAWNET_BACKUP_PASSPHRASE_FILE", None),
        clawnet_backoff_scale=source.number("CLAWNET_BACKOFF_SCALE", 1, 0, 100, unit="a factor"),
        clawnet_lease=source.number("CLAWNET_LEASE", 15, 0.5, 3600),
        clawnet_key_rotation_wait=source.number("CLAWNET_KEY_ROTATION_WAIT", 60, 0, 3600),
        warnings=source.warnings(),
    )
    _require_ports(settings)
    return settings


def require_linux(platform: str = sys.platform) -> None:
    """Refuses to run where bots could not be held: pidfds, subreapers and /proc are Linux's."""
    if platform != "linux":
        raise SettingsError(f"ClawNet runs on Linux; found {platform}. A Linux container or virtual machine will do.")


class _Source:
    """Looks settings up by their variable's name and says where a wrong one stands."""

    def __init__(self, environ: Mapping[str, str], file: Path) -> None:
        self._environ = environ
        self._file = file
        self._table = _read_file(file)
        self._warnings = [*_unknown(environ, self._table, file), *_readable_by_others(file, self._table)]

    def warnings(self) -> tuple[str, ...]:
        return tuple(self._warnings)

    def text(self, name: str) -> str | None:
        """What was asked for; None when nobody did."""
        if name in self._environ:
            found = self._environ[name].strip()
        elif name.lower() in self._table:
            found = self._of_file(name)
        else:
            return None
        return found or self.refuse(name, "empty", "a value, or no such setting at all")

    def refuse(self, name: str, found: str, expected: str) -> NoReturn:
        of_file = name not in self._environ and name.lower() in self._table
        where = f"{name.lower()} in {self._file}" if of_file else name
        raise SettingsError(f"{where} is {found}; expected {expected}")

    def integer(self, name: str, default: int, least: int, most: int) -> int:
        text = self.text(name)
        if text is None:
            return default
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            self.refuse(name, repr(text), f"a whole number from {least} to {most}")
        return int(text)

    def number(self, name: str, default: float, least: float, most: float, unit: str = "a number of seconds") -> float:
        text = self.text(name)
        if text is None:
            return float(default)
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not least <= float(text) <= most:
            self.refuse(name, repr(text), f"{unit} from {least} to {most}")
        return float(text)

    def choice(self, name: str, default: str, *choices: str) -> str:
        text = self.text(name)
        if text is None:
            return default
        if text not in choices:
            self.refuse(name, repr(text), f"one of {', '.join(choices)}")
        return text

    def match(self, name: str, default: str, pattern: re.Pattern[str], expected: str) -> str:
        text = self.text(name)
        if not pattern.fullmatch(default if text is None else text):
            self.refuse(name, repr(text) if text is not None else f"{default!r} by default", expected)
        return default if text is None else text

    def path(self, name: str, default: Path | None) -> Path | None:
        text = self.text(name)
        if text is None:
            return default
        base = Path.cwd() if name in self._environ else self._file.parent
        return _resolve(text, base, self._environ)

    def folder(self, name: str, default: Path) -> Path:
        found = self.path(name, default) or default
        if found.exists() and not found.is_dir():
            self.refuse(name, f"{str(found)!r}, which is a file", "a folder, or a path where one can be made")
        return found

    def file(self, name: str) -> Path | None:
        found = self.path(name, None)
        if found is not None and not found.is_file():
            self.refuse(name, f"{str(found)!r}, where no file is", "the path of a file")
        return found

    def host(self, name: str, default: str) -> str:
        host = self.text(name) or default
        if not _is_address(host) and not _is_host_name(host):
            self.refuse(name, repr(host), "an address or a host's name, without scheme and port")
        if not _is_loopback(host):
            self._warnings.append(
                f"{name} is {host}: other machines can reach this server, and it speaks no TLS. "
                "Put a reverse proxy with TLS before it."
            )
        return host

    def proxies(self, name: str) -> tuple[str, ...]:
        """Addresses and networks, each in its one spelling."""
        return tuple(dict.fromkeys(self._proxy(name, item) for item in self._items(name)))

    def _proxy(self, name: str, item: str) -> str:
        expected = "addresses and networks such as 127.0.0.1, 10.0.0.0/8 or fd00::/8, separated by commas"
        if item == "*":
            self.refuse(name, "'*', with which every client could say that it is another", expected)
        try:
            found = ipaddress.ip_network(item)
        except ValueError:
            self.refuse(name, repr(item), expected)
        if found.prefixlen == 0:
            self.refuse(name, f"{item!r}, with which every client could say that it is another", expected)
        return str(found) if "/" in item else str(found.network_address)

    def origins(self, name: str) -> tuple[str, ...]:
        """Origins, each as browsers send it."""
        return tuple(dict.fromkeys(self._origin(name, item) for item in self._items(name)))

    def _origin(self, name: str, item: str) -> str:
        expected = "origins such as https://app.example.com, without a path, separated by commas"
        if item == "*":
            self.refuse(name, "'*', with which any page could ask in its visitor's name", expected)
        try:
            parts = urlsplit(item)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            self.refuse(name, repr(item), expected)
        if _is_address(host):
            host = str(ipaddress.ip_address(host))
        elif not _is_host_name(host):
            self.refuse(name, repr(item), expected)
        found = f"{parts.scheme}://" + (f"[{host}]" if ":" in host else host)
        as_written = found if port is None else f"{found}:{port}"
        if parts.scheme not in _PORTS or item.lower() != as_written:
            self.refuse(name, repr(item), expected)
        return found if port == _PORTS[parts.scheme] else as_written

    def _items(self, name: str) -> list[str]:
        return [item for part in (self.text(name) or "").split(",") if (item := part.strip())]

    def database_url(self, name: str) -> Secret | None:
        text = self.text(name)
        if text is None:
            return None
        if not text.startswith(("postgresql://", "postgres://")):
            self.refuse(name, "no address of a PostgreSQL server", "postgresql://user:password@host:5432/database")
        try:
            urlsplit(text).port  # noqa: B018 - reading it is the check
        except ValueError:
            self.refuse(name, "an address that cannot be read", "postgresql://user:password@host:5432/database")
        return Secret(text)

    def encryption_key(self, name: str, file: Path | None, *, is_needed: bool) -> Secret | None:
        """The master key's text, which is checked here and not shown."""
        text = self.text(name)
        if text is not None and file is not None:
            self.refuse(name, f"set and {name}_FILE too", "only one of them")
        if file is not None:
            text, name = self._key_of_file(f"{name}_FILE", file), f"{name}_FILE"
        if text is None:
            return self._no_key(name) if is_needed else None
        vault.master_key(text, name)
        return Secret(text)

    def _no_key(self, name: str) -> NoReturn:
        # A key beside the data would be lost with this machine, while the database lives on elsewhere.
        self.refuse(
            name, "not set although DATABASE_URL is", f"a key (or {name}_FILE): `openssl rand -hex 32` makes one"
        )

    def _key_of_file(self, name: str, file: Path) -> str:
        try:
            text = file.read_text("utf-8")
            is_open = bool(file.stat().st_mode & 0o007)
        except OSError as error:
            self.refuse(name, f"{str(file)!r}, which cannot be read ({error.strerror})", "the path of a file")
        except UnicodeDecodeError:
            self.refuse(name, f"{str(file)!r}, which is not text", vault.EXPECTED_KEY.removeprefix("expected "))
        if is_open:
            self._warnings.append(f"{name}: every user of this machine can reach {file}; `chmod 600` would end that.")
        return text.strip()

    def _of_file(self, name: str) -> str:
        value = self._table[name.lower()]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            self.refuse(name, f"a TOML {type(value).__name__}", "a text or a number")
        return str(value).strip()


def _data_dir(environ: Mapping[str, str]) -> Path:
    text = environ.get("CLAWNET_DATA_DIR")
    if text is None:
        return _xdg(environ, "XDG_DATA_HOME", ".local/share")
    if not text.strip():
        raise SettingsError("CLAWNET_DATA_DIR is empty; expected the path of a folder, or no such setting at all")
    found = _resolve(text.strip(), Path.cwd(), environ)
    if found.exists() and not found.is_dir():
        raise SettingsError(f"CLAWNET_DATA_DIR is {str(found)!r}, which is a file; expected a folder")
    return found


def _xdg(environ: Mapping[str, str], name: str, otherwise: str) -> Path:
    """Our folder under one of the desktop's base folders; relative ones do not count, its specification says."""
    base = environ.get(name, "")
    return (Path(base) if base.startswith("/") else _home(environ) / otherwise) / "clawnet"


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME", "")
    return Path(home) if home.startswith("/") else Path.home()


def _resolve(text: str, base: Path, environ: Mapping[str, str]) -> Path:
    if text == "~" or text.startswith("~/"):
        return (_home(environ) / text[2:]).resolve()
    return (base / text).resolve()


def _read_file(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise SettingsError(
            f"{file} cannot be read ({error.strerror}); expected a file of settings, or none"
        ) from error
    except ValueError as error:
        raise SettingsError(f"{file} is not TOML ({error}); expected lines such as clawnet_port = 8000") from error


def _unknown(environ: Mapping[str, str], table: Mapping[str, object], file: Path) -> list[str]:
    """A sentence for each name that looks like a setting and is none."""
    known = {field.name.upper() for field in fields(Settings)} - {"WARNINGS"}
    strays = [name for name in sorted(environ) if name.startswith("CLAWNET_") and name not in known]
    found = [f"{name} is not a setting{_suggestion(name, known)}" for name in strays]
    keys = {name.lower() for name in known}
    strays = sorted(table.keys() - keys)
    found += [f"{key} in {file} is not a setting{_suggestion(key.lower(), keys)}" for key in strays]
    if "clawnet_data_dir" in table:
        found.append(f"clawnet_data_dir in {file} does nothing: the file is found through CLAWNET_DATA_DIR.")
    return found


def _suggestion(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"; did you mean {close[0]}?" if close else "."


def _readable_by_others(file: Path, table: Mapping[str, object]) -> list[str]:
    secrets = {"database_url", "encryption_key", "encryption_key_previous"}
    if secrets.isdisjoint(table) or not file.stat().st_mode & 0o077:
        return []
    return [f"{file} holds secrets and others can read it; `chmod 600` would end that."]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_host_name(host: str) -> bool:
    # What looks like an IPv4 address and is none (127.0.0.256) is a slip, not a name.
    return _HOST_NAME.fullmatch(host) is not None and not host.rsplit(".", 1)[-1].isdigit()


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host.lower() == "localhost"


def _require_ports(settings: Settings) -> None:
    base, bots = settings.openclaw_base_port, settings.openclaw_max_bots
    room = (65535 - base) // PORT_FAMILY
    if bots > room:
        raise SettingsError(
            f"OPENCLAW_MAX_BOTS is {bots}, but from OPENCLAW_BASE_PORT {base} there are ports for {room} bots "
            f"({PORT_FAMILY} each); expected at most {room}, or a lower base port"
        )
    if base <= settings.clawnet_port < base + bots * PORT_FAMILY:
        raise SettingsError(
            f"CLAWNET_PORT is {settings.clawnet_port}, which is one of the bots' ports; "
            f"expected one outside {base} to {base + bots * PORT_FAMILY - 1}"
        )
