"""npm, as what is downloaded for bots is asked of it: which npm, with which settings, and what its refusals mean."""

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

#: Tries of one request, milliseconds between them, and milliseconds without an answer, unless the environment says it.
PATIENCE = {
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_retry_mintimeout": "500",
    "npm_config_fetch_retry_maxtimeout": "5000",
    "npm_config_fetch_timeout": "20000",
}
#: Words of npm's that are for people at a terminal.
QUIET = {"npm_config_logs_max": "0", "npm_config_update_notifier": "false", "npm_config_progress": "false"}

UNREACHED = "npm's registry cannot be reached from this server"

#: The variables that are npm's business: its settings, proxies, certificates. The server's others hold secrets, and
#: what a command is started with can be read by every process of the same user.
_ITS_OWN = re.compile(
    r"npm_.+|(?:https?|all|no)_proxy|ssl_cert_(?:file|dir)|node_extra_ca_certs|node_use_(?:env_proxy|system_ca)|"
    r"node_tls_reject_unauthorized",
    re.IGNORECASE | re.ASCII,
)
_CODE = re.compile(r'npm (?:error|ERR!) code (\S+)|"code": "([A-Z_0-9]+)"')
_UNREACHED = re.compile(
    r"E?(?:CONN\w+|NOTFOUND|AI_AGAIN|TIMEDOUT|HOSTUNREACH|NETUNREACH|PIPE|NETDOWN)|\w*TIMEOUT\w*|FETCH_ERROR|E5\d\d"
)
_CERTIFICATE = re.compile(r"\w*(?:CERT|SSL|TLS|ISSUER|UNABLE_TO_VERIFY)\w*")


def command_of(node: Path | None) -> list[str]:
    """The npm that came with this Node, else the one on PATH; nothing where there is none.

    The Node that Python's package index has comes with one as well, but its own `bin/npm` has lost its target.
    """
    bundled = node and node.parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if node and bundled and bundled.is_file():
        return [str(node), str(bundled)]
    npm = shutil.which("npm")
    return [npm] if npm else []


def put_on_path(folder: Path, command: list[str]) -> None:
    """Writes a program `npm` into the folder, for others that look for one on their PATH."""
    script = folder / "npm"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    script.chmod(0o700)


def environment(environ: Mapping[str, str], cache: Path) -> dict[str, str]:
    """What npm is to be told of the server's environment, with a cache of downloads that every bot's plugins share.

    Its file of settings is named, too: a bot could write one into what is its own HOME.
    """
    found = PATIENCE | QUIET | {"npm_config_cache": str(cache)}
    found |= {"npm_config_userconfig": str(Path(environ.get("HOME") or Path.home()) / ".npmrc")}
    # npm reads a setting in small letters and in capitals.
    ours = {name: value for name, value in environ.items() if _ITS_OWN.fullmatch(name)}
    said = {name.lower() for name in ours}
    return {name: value for name, value in found.items() if name not in said} | ours


def cache_of(environment: Mapping[str, str]) -> str:
    """The cache that an `environment` names."""
    return next(value for name, value in environment.items() if name.lower() == "npm_config_cache")


def registries(said: str) -> str:
    """The file of settings that names the registries of `npm config list --json`, by which the cache knows packages.

    npm itself leaves out whatever is secret, an address with a password in it as well.
    """
    start = said.find("\n{") + 1
    try:
        found: dict[str, object] = json.loads(said[start : said.rindex("}") + 1])
    except ValueError:
        return ""
    named = [name for name in found if name in ("registry", "replace-registry-host") or name.endswith(":registry")]
    return "".join(f"{name}={json.dumps(found[name])}\n" for name in named)


def offline(cache: str, settings: Path) -> dict[str, str]:
    """What npm is told that is to do with what the cache holds: no credential, no proxy, nobody's own settings."""
    files = {"npm_config_userconfig": str(settings), "npm_config_globalconfig": str(settings.with_name("npmrc.none"))}
    return QUIET | files | {"npm_config_cache": cache, "npm_config_offline": "true"}


def why(said: str) -> str:
    """Why npm failed, for people; nothing of what it said itself, which may name hosts and folders."""
    match = _CODE.search(said)
    code = (match[1] or match[2]) if match else ""
    if code in ("E404", "ETARGET"):
        return "npm's registry does not have it"
    if code in ("E401", "E403", "EOTP", "ENEEDAUTH"):
        return "npm's registry does not let this server in"
    if code == "ENOTCACHED":
        return "npm's cache does not have all of it"
    if code == "ENOSPC":
        return "the disk is full"
    if _CERTIFICATE.fullmatch(code):
        return "npm's registry shows a certificate that this server does not trust"
    if _UNREACHED.fullmatch(code):
        return UNREACHED
    return f"npm failed ({code})" if code else "npm failed"
