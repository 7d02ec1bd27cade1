"""`npm view` and `npm install`, as they were seen to behave, and each run in `npm.log`."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from . import dotenv, ledger
from .faults import Faults

#: What each kind of registry answers, besides "up" and "silent".
ERRORS = {
    "refused": "npm error code ECONNREFUSED\nnpm error FetchError: request to http://me:secret@127.0.0.1:9/x failed",
    "lacks": "npm error code E404\nnpm error 404 Not Found - GET http://127.0.0.1:9/x",
}


def run(install: Path) -> None:
    dotenv.require()
    words, faults = sys.argv[1:], Faults(install)
    ledger.note(install / "npm.log", words=words, environ=dict(os.environ))
    if words[:2] == ["config", "list"]:
        registry = os.environ.get("NPM_CONFIG_REGISTRY") or "https://registry.npmjs.org/"
        print(json.dumps({"cache": "/elsewhere", "registry": registry, "@acme:registry": "http://127.0.0.1:9/acme"}))
        return
    is_offline = "npm_config_offline" in os.environ
    if faults.registry == "silent" and not is_offline:
        time.sleep(600)
    if faults.registry in ERRORS and not is_offline:
        sys.exit(ERRORS[faults.registry])
    if words[0] == "view":
        print(json.dumps(words[1].rpartition("@")[2]))
        return
    time.sleep(faults.npm_install_s if is_offline else faults.npm_download_s)
    for name, version in json.loads(Path("package.json").read_text())["dependencies"].items():
        folder = Path("node_modules", name)
        folder.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
