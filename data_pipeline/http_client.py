"""One HTTP client for the downloader: libcurl's multi interface inside asyncio, one request at a time a call.

libcurl moves the bytes; this file decides what it may do. It follows no redirect, uses no proxy, cookie or
password file, undoes no encoding, speaks http and https only, and makes no socket except through the guard,
which sees the very address that is connected to. Names are looked up by our resolver and pinned, so libcurl
asks no DNS itself. One TLS context (libcurl keeps the parsed CA file) and one pool of kept-alive connections
serve a whole worker.

The surprising part: libcurl sets no time limit here. A sweep over the requests under way, several times a
second, ends those past a deadline, because that tells which deadline it was: connect, first byte, silence, rate
or the whole.
"""

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pycurl

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import AddressRefused, Guard, Target
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.resolver import Resolver

_SWEEP_S = 0.1
_LARGE_BYTES = 1 << 20  # bodies above this need one of the permits, so that many at once cannot fill memory
_LARGE_PERMITS = 16
_DRAINED_BYTES = 16_384  # of an unwanted body: read to keep the connection, no more
_TLS_ERRORS = (35, 53, 54, 58, 59, 60, 64, 66, 77, 80, 82, 83, 90, 91, 98)  # of libcurl's error codes


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


WantedBytes = Callable[[Response], int]
"""Looks at an answer's head and says how much of its body is wanted at most; may raise FetchFailed."""


class HttpClient:
    """Makes requests. Belongs to one event loop.

    Args:
        user_agent: what every request says.
        guard: decides about every address.
        resolver: looks up host names.
        deadlines: of every request.
        max_idle_connections: kept for reuse.
    """

    def __init__(
        self,
        user_agent: str,
        guard: Guard,
        resolver: Resolver,
        deadlines: Deadlines,
        max_idle_connections: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._user_agent = user_agent
        self._guard = guard
        self._resolver = resolver
        self._deadlines = deadlines
        self._ca_file = _ca_file()
        self._permits = _Permits(_LARGE_PERMITS)
        self._idle: list[_Transfer] = []
        self._watched: dict[int, int] = {}  # descriptor -> what it waits for
        self._active: dict[pycurl.Curl, _Transfer] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_MAXCONNECTS, max_idle_connections)

    async def get(self, target: Target, wanted: WantedBytes, end: float) -> Response:
        """One GET request; redirects are answers like others.

        Args:
            target: what to ask for.
            wanted: called with the head of the answer before any of its body is kept.
            end: loop time at which the request is given up whatever the deadlines say.

        Raises:
            FetchFailed: there is no whole answer: a fault of network or server, a deadline, or what `wanted` raised.
        """
        started = self._loop.time()
        addresses = await self._resolver.resolve(target.hostname, target.port, self._deadlines.connect)
        transfer = self._idle.pop() if self._idle else _Transfer(self)
        transfer.begin(target, addresses, wanted, started, end)
        self._active[transfer.curl] = transfer
        self._multi.add_handle(transfer.curl)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep)
        try:
            response = await transfer.future
            if transfer.permit:  # it goes with the body, whose memory it stands for
                transfer.permit = False
                response.give_back = self._permits.give
            return response
        finally:
            self._release(transfer)

    def _release(self, transfer: "_Transfer") -> None:
        """Takes a transfer out of libcurl, whether it has ended or is called off."""
        if self._active.pop(transfer.curl, None) is not None:
            self._multi.remove_handle(transfer.curl)
        transfer.end()
        self._idle.append(transfer)

    def close(self) -> None:
        """Ends all connections."""
        for transfer in list(self._active.values()):
            if not transfer.future.done():
                transfer.future.cancel()
            self._release(transfer)
        for timer in (self._timer, self._sweep_timer):
            if timer is not None:
                timer.cancel()
        self._idle.clear()
        self._multi.close()

    # libcurl's view of the event loop

    def _watch(self, what: int, descriptor: int, multi: object, data: object) -> None:
        before = self._watched.pop(descriptor, 0)
        wanted = what & pycurl.POLL_INOUT if what != pycurl.POLL_REMOVE else 0
        if wanted:
            self._watched[descriptor] = wanted
        if (before ^ wanted) & pycurl.POLL_IN:
            if wanted & pycurl.POLL_IN:
                self._loop.add_reader(descriptor, self._act, descriptor, pycurl.CSELECT_IN)
            else:
                self._loop.remove_reader(descriptor)
        if (before ^ wanted) & pycurl.POLL_OUT:
            if wanted & pycurl.POLL_OUT:
                self._loop.add_writer(descriptor, self._act, descriptor, pycurl.CSELECT_OUT)
            else:
                self._loop.remove_writer(descriptor)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            self._timer = self._loop.call_later(milliseconds / 1000, self._act, pycurl.SOCKET_TIMEOUT, 0)

    def _act(self, descriptor: int, what: int) -> None:
        self._multi.socket_action(descriptor, what)
        while True:
            waiting, done, failed = self._multi.info_read()
            for curl in done:
                self._finish(curl, 0, "")
            for curl, code, text in failed:
                self._finish(curl, code, text)
            if not waiting:
                break

    def _finish(self, curl: pycurl.Curl, code: int, text: str) -> None:
        transfer = self._active.pop(curl, None)
        if transfer is not None:
            self._multi.remove_handle(curl)
            transfer.finish(code, text)

    def _sweep(self) -> None:
        """Ends what is past a deadline."""
        now = self._loop.time()
        for transfer in list(self._active.values()):
            error = transfer.overdue(now, self._deadlines)
            if error is not None and not transfer.future.done():
                transfer.future.set_exception(FetchFailed(DownloadStatus.timeout, error, retryable=True))
                del self._active[transfer.curl]
                self._multi.remove_handle(transfer.curl)
        self._sweep_timer = self._loop.call_later(_SWEEP_S, self._sweep) if self._active else None


class _Permits:
    """Counts large bodies; a transfer that finds none left is paused until one comes back."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.waiting: deque[_Transfer] = deque()

    def take(self, transfer: "_Transfer") -> bool:
        if self.left == 0:
            self.waiting.append(transfer)
            return False
        self.left -= 1
        return True

    def give(self) -> None:
        self.left += 1
        while self.waiting and self.left:
            self.waiting.popleft().go_on()
            return


class _Transfer:
    """A libcurl handle and the request it is busy with; used again and again."""

    def __init__(self, client: HttpClient) -> None:
        self.client = client
        self.curl = _new_handle(client._user_agent, client._ca_file)
        self.curl.setopt(pycurl.HEADERFUNCTION, self._on_header)
        self.curl.setopt(pycurl.WRITEFUNCTION, self._on_body)
        self.curl.setopt(pycurl.OPENSOCKETFUNCTION, self._on_socket)

    def begin(
        self, target: Target, addresses: list[str], wanted: WantedBytes, started: float, deadline: float
    ) -> None:
        self.deadline = deadline
        self.future: asyncio.Future[Response] = self.client._loop.create_future()
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
        if self.paused and self in self.client._permits.waiting:
            self.client._permits.waiting.remove(self)
        if self.permit:
            self.permit = False
            self.client._permits.give()

    # Called by libcurl, which prints an exception and goes on; so none may leave these

    def _on_socket(self, purpose: int, address: Any) -> Any:
        family, kind, protocol, where = address
        try:
            host = where[0].decode() if isinstance(where[0], bytes) else where[0]
            return self.client._guard.socket_factory((family, kind, protocol, "", (host, *where[1:])))
        except AddressRefused as error:
            self.refused = error
        except Exception as error:
            self.failure = error
        return pycurl.SOCKET_BAD

    def _on_header(self, line: bytes) -> int | None:
        self.last = self.client._loop.time()
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
        if self.most > 0 or _is_short(response):
            return None
        return -1  # an unwanted body that is not worth reading: the connection ends here

    def _on_body(self, data: bytes) -> int | None:
        self.last = self.client._loop.time()
        response = self.response
        if response is None or self.most == 0:
            self.received += len(data)
            return None if response is not None and self.received <= 2 * _DRAINED_BYTES else -1
        size = len(response.body) + len(data)
        if size > _LARGE_BYTES and self.most > _LARGE_BYTES and not self.permit:
            self.permit = self.client._permits.take(self)
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
        self.client._loop.call_soon(self._unpause)

    def _unpause(self) -> None:
        if self.curl in self.client._active:
            self.last = self.client._loop.time()
            self.curl.pause(pycurl.PAUSE_CONT)
            self.client._act(pycurl.SOCKET_TIMEOUT, 0)

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


def _ca_file() -> str:
    """The certificates that the system trusts (SSL_CERT_FILE names others); Mozilla's when it has none."""
    found = ssl.get_default_verify_paths().cafile
    if found is not None:
        return found
    import certifi

    return certifi.where()


def _is_short(response: Response) -> bool:
    """Whether reading a body to its end costs less than a new connection."""
    declared = response.header("content-length")
    return declared is not None and declared.isdigit() and int(declared[:9]) <= _DRAINED_BYTES


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
