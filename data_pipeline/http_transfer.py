"""One request as libcurl carries it out: what its callbacks may do, how it ends, which deadline it has passed.

What may surprise: libcurl prints an exception of a callback and goes on, so none may leave one. They are kept, and the
request ends with them.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pycurl

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import AddressRefused, Target
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.http_response import DRAINED_BYTES, Response, is_short

if TYPE_CHECKING:
    from data_pipeline.http_client import HttpClient

_LARGE_BYTES = 1 << 20  # bodies above this need one of the permits, so that many at once cannot fill memory
_TLS_ERRORS = (35, 53, 54, 58, 59, 60, 64, 66, 77, 80, 82, 83, 90, 91, 98)  # of libcurl's error codes

WantedBytes = Callable[[Response], int]
"""Looks at an answer's head and says how much of its body is wanted at most; may raise FetchFailed."""


@dataclass(frozen=True)
class Deadlines:
    """How long a request may take, in seconds.

    Attributes:
        connect: name lookup, TCP and TLS together.
        first_byte: from the request to the first byte of an answer.
        silence: between two pieces.
        total: from lookup to last byte.
        min_bytes_per_s: of the answer, averaged from its first byte; asked once `silence` has passed.
    """

    connect: float
    first_byte: float
    silence: float
    total: float
    min_bytes_per_s: float


class Permits:
    """Counts large bodies; a transfer that finds none left is paused until one comes back."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.waiting: deque[Transfer] = deque()

    def take(self, transfer: "Transfer") -> bool:
        """Whether the transfer may read on; if not, it waits in line."""
        if self.left == 0:
            self.waiting.append(transfer)
            return False
        self.left -= 1
        return True

    def give(self) -> None:
        """Gives one back; the first in line goes on."""
        self.left += 1
        while self.waiting and self.left:
            self.waiting.popleft().go_on()
            return


class Transfer:
    """A libcurl handle and the request it is busy with; used again and again."""

    def __init__(self, client: "HttpClient") -> None:
        self.client = client
        self.curl = _new_handle(client.user_agent, client.ca_file)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_socket)

    def begin(
        self, target: Target, addresses: list[str], wanted: WantedBytes, started: float, deadline: float
    ) -> None:
        """Sets the handle up for a request.

        Args:
            target: the address.
            addresses: of its host, checked; the only ones that are connected to. Empty for a host that is one.
            wanted: how much of a body is read, by its header.
            started: loop time.
            deadline: loop time.
        """
        self.deadline = deadline
        self.future: asyncio.Future[Response] = self.client.loop.create_future()
        self.wanted = wanted
        self.started = self.last = started
        self.connected: float | None = None
        self.first: float | None = None
        self.received = 0
        self.lines: list[bytes] = []
        self.response: Response | None = None
        self.most = 0
        self.failure: BaseException | None = None
        self.refused: AddressRefused | None = None
        self.permit = False
        self.paused = False
        self.curl.setopt(pycurl.URL, target.url)
        pins = (
            [f"{target.hostname}:{target.port}:{','.join(map(_bracketed, addresses))}"] if addresses else []
        )
        self.curl.setopt(pycurl.RESOLVE, pins)

    def end(self) -> None:
        """Gives back what the transfer holds, or its place in line."""
        if self.paused and self in self.client.permits.waiting:
            self.client.permits.waiting.remove(self)
        if self.permit:
            self.permit = False
            self.client.permits.give()

    # Called by libcurl, which prints an exception and goes on; so none may leave these

    def _on_socket(self, purpose: int, address: Any) -> Any:
        family, kind, protocol, where = address
        try:
            host = where[0].decode() if isinstance(where[0], bytes) else where[0]
            return self.client.guard.socket_factory((family, kind, protocol, "", (host, *where[1:])))
        except AddressRefused as error:
            self.refused = error
        except Exception as error:
            self.failure = error
        return pycurl.SOCKET_BAD

    def _on_header(self, line: bytes) -> int | None:
        self.last = self.client.loop.time()
        if self.first is None:
            self.first = self.last
        self.received += len(line)
        self.lines.append(line)
        if line not in (b"\r\n", b"\n"):
            return None
        response = Response(self.lines)
        if response.status < 200:
            return None
        self.response = response
        try:
            self.most = self.wanted(response)
        except Exception as error:
            self.failure = error
        if self.most > 0 or is_short(response):
            return None
        return -1  # an unwanted body that is not worth reading: the connection ends here

    def _on_body(self, data: bytes) -> int | None:
        self.last = self.client.loop.time()
        response = self.response
        if response is None or self.most == 0:
            self.received += len(data)
            return None if response is not None and self.received <= 2 * DRAINED_BYTES else -1
        size = len(response.body) + len(data)
        if size > _LARGE_BYTES and self.most > _LARGE_BYTES and not self.permit:
            self.permit = self.client.permits.take(self)
            if not self.permit:
                self.paused = True
                return pycurl.WRITEFUNC_PAUSE
        self.received += len(data)
        response.body += data
        if len(response.body) >= self.most:
            del response.body[self.most :]
            return -1
        return None

    def go_on(self) -> None:
        """A permit may be had: libcurl gives the piece that it kept back once more."""
        self.paused = False
        self.client.loop.call_soon(self._unpause)

    def _unpause(self) -> None:
        if self.curl in self.client.active:
            self.last = self.client.loop.time()
            self.curl.pause(pycurl.PAUSE_CONT)
            self.client.act(pycurl.SOCKET_TIMEOUT, 0)

    def finish(self, code: int, text: str) -> None:
        """libcurl is done with the request."""
        if self.future.done():
            return
        if self.failure is not None:
            self.future.set_exception(self.failure)
        elif self.response is not None and code in (0, pycurl.E_WRITE_ERROR):
            self.response.complete = code == 0
            self.future.set_result(self.response)
        else:
            self.future.set_exception(self._failure(code, text))

    def _failure(self, code: int, text: str) -> FetchFailed:
        if self.refused is not None and code == pycurl.E_COULDNT_CONNECT:
            return FetchFailed(DownloadStatus.address_refused, str(self.refused))
        if code in _TLS_ERRORS:
            return FetchFailed(DownloadStatus.tls_error, text)
        if code == pycurl.E_URL_MALFORMAT:
            return FetchFailed(DownloadStatus.invalid_url, "the HTTP client refuses the URL")
        if code == pycurl.E_COULDNT_RESOLVE_HOST:
            return FetchFailed(DownloadStatus.dns_error, "the host name cannot be resolved")
        if code == pycurl.E_COULDNT_CONNECT:
            reason = os.strerror(self.curl.getinfo(pycurl.OS_ERRNO) or 111).lower()
            return FetchFailed(DownloadStatus.connect_error, reason, retryable=True)
        if code in (
            0,
            pycurl.E_UNSUPPORTED_PROTOCOL,
            8,
            43,
            100,
        ):  # no status line; a bad one; too many headers
            return FetchFailed(DownloadStatus.connect_error, "the answer is not HTTP")
        broken = "the body is broken or cut off" if self.lines else "the server closed the connection"
        return FetchFailed(DownloadStatus.connect_error, broken, retryable=True)

    def overdue(self, now: float, limits: Deadlines) -> str | None:
        """Which deadline has passed; None while none has."""
        if now > self.deadline:
            return "the URL took too long with all its requests"
        if now - self.started > limits.total:
            return "the request took too long"
        if self.paused:
            return None
        if self.first is not None:
            if now - self.last > limits.silence:
                return "the server went silent" if self.response else "the header took too long"
            lasting = now - self.first
            if lasting > limits.silence and self.received < limits.min_bytes_per_s * lasting:
                return f"slower than {limits.min_bytes_per_s:g} bytes a second"
            return None
        if self.connected is None:
            if self.curl.getinfo(pycurl.PRETRANSFER_TIME) > 0:
                self.connected = now
            elif now - self.started > limits.connect:
                return "connecting took too long"
        elif now - self.connected > limits.first_byte:
            return "no first byte in time"
        return None


def _new_handle(user_agent: str, ca_file: str) -> pycurl.Curl:
    """A handle that does no more than it is told."""
    curl = pycurl.Curl()
    for option, value in (
        (pycurl.USERAGENT, user_agent),
        (pycurl.HTTPHEADER, ["Accept: image/*,*/*;q=0.8", "Accept-Encoding: identity"]),
        (pycurl.HTTP_CONTENT_DECODING, 0),  # undo_encoding does it, under a cap
        (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
        (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
        (pycurl.FOLLOWLOCATION, 0),
        (pycurl.PATH_AS_IS, 1),  # the URL is as the standard wants it; robots.txt was asked about this one
        (pycurl.PROXY, ""),  # none from the environment
        (pycurl.NETRC, 0),
        (pycurl.NOSIGNAL, 1),
        (pycurl.BUFFERSIZE, 65_536),
        (pycurl.TCP_NODELAY, 1),
        (pycurl.DNS_CACHE_TIMEOUT, 0),
        (pycurl.CAINFO, ca_file),
        (pycurl.SSL_VERIFYPEER, 1),
        (pycurl.SSL_VERIFYHOST, 2),
    ):
        curl.setopt(option, value)
    return curl


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
