"""The stand-in model within the test's own process, remembering who spoke to it with which key and instruction."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from threading import Thread
from typing import Any

from tests.harness import REPO


@dataclass
class Asked:
    """One request: the key it came with, and all that was in it."""

    key: str
    body: str


@dataclass
class Model:
    base_url: str
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def recording_model() -> Iterator[Model]:
    asked: list[Asked] = []

    class Handler(_script().Handler):
        #: A connection for each request, so that none is left open when the test ends.
        protocol_version = "HTTP/1.0"

        def do_POST(self) -> None:  # noqa: N802 -- as the standard library names it
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append(Asked(self.headers.get("authorization", "").removeprefix("Bearer "), body.decode()))
            socket, self.rfile = self.rfile, io.BytesIO(body)
            try:
                super().do_POST()
            finally:
                self.rfile = socket

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = False
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield Model(f"http://127.0.0.1:{server.server_port}/v1", asked)
        finally:
            server.shutdown()
            thread.join()


def _script() -> Any:
    loader = SourceFileLoader("clawnet_stand_in_model", str(REPO / "scripts" / "model"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module
