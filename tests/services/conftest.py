"""The log of a test."""

import io
import logging
from collections.abc import Iterator

import pytest
import structlog

from app import log


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    root, out = logging.getLogger(), io.StringIO()
    before, level = list(root.handlers), root.level
    log.configure("json", "debug", out)
    yield out
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
