"""What every test gets: a root logger as it was, whatever command the test ran in this process."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """Takes out handlers that a test leaves behind: their stream is closed when pytest ends the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for left in root.handlers:
        if left not in handlers:
            left.close()
    root.handlers[:] = handlers
    root.setLevel(level)
