"""One file from a web server or an object store, whole or not at all.

A transfer that breaks goes on where it stopped when the server says that the file is still the same one;
otherwise it starts again from nothing. So no file is ever half of one version and half of another, and
none is short: what arrives is compared with the length that the server declared.

What may surprise: `retries` are tries in a row that brought nothing to speak of. A server that cuts every
transfer after 100 MB costs no retry; the deadline is what bounds the whole.
"""

import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from crawl2clip.errors import DataError

logger = logging.getLogger(__name__)

_LONGEST_BACKOFF_S = 60.0
_PROGRESS_BYTES = 1 << 20  # a try that brings this much more than all before it is not counted as failed
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s|html|\?xml|head|title|error)", re.IGNORECASE)


@dataclass(frozen=True)
class Patience:
    """How long a server is borne with.

    Attributes:
        retries: further tries after one that failed, in a row.
        backoff_s: seconds before the first of them; doubles each time, up to a minute. Between half of it
            and all of it is waited, so that workers do not come back together.
        timeout_s: seconds that a server may be silent.
        deadline_s: seconds for one file, all tries and waits together.
    """

    retries: int
    backoff_s: float
    timeout_s: float
    deadline_s: float


class Opened(NamedTuple):
    """A file that a server has begun to send.

    Attributes:
        start: where in the file `blocks` begins: where it was asked to, or 0.
        size: of the whole file, bytes; None where the protocol itself marks its end.
        version: names this content of the file; None when nothing does, and the transfer cannot be resumed.
        blocks: the bytes. Raises `Broken`.
    """

    start: int
    size: int | None
    version: str | None
    blocks: Iterator[bytes]


class Broken(Exception):
    """A try failed and another may not.

    Attributes:
        wait_s: seconds that the server asks to wait; None when it does not say.
        restart: what has been received is of no use.
    """

    def __init__(self, problem: str, *, wait_s: float | None = None, restart: bool = False) -> None:
        super().__init__(problem)
        self.wait_s, self.restart = wait_s, restart


class Refused(Exception):
    """The file cannot be had, however often one tries."""


Opener = Callable[[str, int, "str | None", float], AbstractContextManager[Opened]]
"""(address, offset, version, timeout in seconds) -> the file from that offset, if it still is that version, or
from its beginning. Raises `Broken` and `Refused`."""


def fetch(url: str, path: Path, patience: Patience) -> None:
    """Writes what an address holds to a file, whole; a block of it is in memory at a time.

    Args:
        url: http://, https:// or s3://.
        path: the file; on an error what is in it means nothing.
        patience: with a server that is slow, busy or breaks off.

    Raises:
        DataError: no try succeeded in time, or the server says that there is no such file.
    """
    opener = opener_of(url)
    tries = Tries(url, patience)
    with open(path, "wb") as file:
        version: str | None = None
        furthest = 0
        while True:
            try:
                with opener(url, file.tell(), version, tries.timeout_s()) as opened:
                    version = opened.version
                    _receive(opened, file, tries)
                return
            except Broken as broken:
                if file.tell() >= furthest + _PROGRESS_BYTES:
                    furthest = file.tell()
                    tries.forget()
                if broken.restart or version is None:
                    file.seek(0)
                    file.truncate()
                    version = None
                tries.failed(broken)
            except Refused as refused:
                raise cannot_be_had(url, refused) from refused


def _receive(opened: Opened, file: IO[bytes], tries: "Tries") -> None:
    """Copies the blocks to the file, which ends where they begin or has to begin anew."""
    if opened.start != file.tell():
        assert opened.start == 0, opened
        file.seek(0)
        file.truncate()
    for block in opened.blocks:
        if file.tell() == 0 and is_page(block):
            raise Broken("the server sent a web page in place of the file", restart=True)
        file.write(block)
        tries.check_deadline(f"{file.tell()} of {opened.size or 'unknown'} bytes have come")
    if opened.size is not None and file.tell() != opened.size:
        raise Broken(f"the transfer ended after {file.tell()} of {opened.size} bytes")


def is_page(first_bytes: bytes) -> bool:
    """Whether a file begins as HTML or XML do, which no crawl file and no list of pairs does."""
    return _PAGE.match(first_bytes) is not None


def opener_of(url: str) -> Opener:
    """What opens an address."""
    if url.startswith("s3://"):
        from data_pipeline.source_s3 import open_s3

        return open_s3
    from data_pipeline.source_http import open_http

    return open_http


def cannot_be_had(url: str, refused: Refused) -> DataError:
    """The error for a file that is not there for us."""
    return DataError(
        f"{url} cannot be had: {refused}; check source.base_url and source.crawl, or source.files"
    )


class Tries:
    """The tries of one file: counts them, waits between them, and ends them."""

    def __init__(self, url: str, patience: Patience) -> None:
        self.url, self.patience = url, patience
        self.num_failed = 0
        self.ends = time.monotonic() + patience.deadline_s

    def timeout_s(self) -> float:
        """How long a server may be silent now."""
        return max(min(self.patience.timeout_s, self.ends - time.monotonic()), 0.001)

    def forget(self) -> None:
        """Begins to count anew, after a try that got further."""
        self.num_failed = 0

    def check_deadline(self, problem: str) -> None:
        """Raises DataError when the time is over."""
        if time.monotonic() > self.ends:
            raise self._too_late(problem)

    def failed(self, broken: Broken) -> None:
        """Waits for the next try.

        Raises:
            DataError: there is none.
        """
        self.num_failed += 1
        if self.num_failed > self.patience.retries:
            raise DataError(
                f"{self.url} cannot be had after {self.num_failed} tries: {broken}; run the command again to go on"
            ) from broken
        pause = min(self.patience.backoff_s * 2 ** (self.num_failed - 1), _LONGEST_BACKOFF_S)
        pause *= random.SystemRandom().uniform(0.5, 1.0)
        pause = max(pause, broken.wait_s or 0.0)
        if time.monotonic() + pause > self.ends:
            waits = f" and asks to wait {broken.wait_s:g} s" if broken.wait_s else ""
            raise self._too_late(f"{broken}{waits}") from broken
        logger.warning("%s: %s; trying again in %.1f s", self.url, broken, pause)
        time.sleep(pause)

    def _too_late(self, problem: str) -> DataError:
        return DataError(
            f"{self.url} cannot be had within source.deadline_s={self.patience.deadline_s:g}: {problem}; "
            "raise it, or run the command again to go on"
        )
