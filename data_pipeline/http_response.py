"""The answer to one HTTP request: its head, parsed, and as much of its body as was wanted."""

from collections.abc import Callable

DRAINED_BYTES = 16_384
"""Of an unwanted body: read to keep the connection, no more."""


class Response:
    """The answer to one request.

    Attributes:
        status: HTTP status code.
        body: what was wanted of it; `complete` tells whether that is all.
        complete: the whole body is there.
    """

    def __init__(self, lines: list[bytes]) -> None:
        self.body = bytearray()
        self.complete = False
        self.give_back: Callable[[], None] | None = None
        self.status, self._headers = _parse_head(lines)

    def release(self) -> None:
        """The body is no longer in memory: another large one may be received."""
        if self.give_back is not None:
            self.give_back()
            self.give_back = None

    def header(self, name: str) -> str | None:
        """The first header of a name, given in lower case; None when there is none."""
        values = self._headers.get(name)
        return values[0] if values else None

    def headers(self, name: str) -> list[str]:
        """All headers of a name, given in lower case."""
        return self._headers.get(name, [])


def _parse_head(lines: list[bytes]) -> tuple[int, dict[str, list[str]]]:
    """Status and headers of the last block, since informational answers come before the real one."""
    status, headers = 0, {}
    for line in lines:
        if line.startswith(b"HTTP/"):
            status, headers = int(line.split(None, 2)[1]), {}  # libcurl has read it as a number too
            continue
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            headers.setdefault(name.strip().lower(), []).append(value.strip())
    return status, headers


def is_short(response: Response) -> bool:
    """Whether reading a body to its end costs less than a new connection."""
    declared = response.header("content-length")
    return declared is not None and declared.isdigit() and int(declared[:9]) <= DRAINED_BYTES
