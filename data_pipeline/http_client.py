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
import ssl

import pycurl

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import Guard, Target
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.http_response import Response
from data_pipeline.http_transfer import Deadlines, Permits, Transfer, WantedBytes
from data_pipeline.resolver import Resolver

__all__ = ["Deadlines", "HttpClient", "Response"]

_SWEEP_S = 0.1
_LARGE_PERMITS = 16


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
        self.loop = asyncio.get_running_loop()
        self.user_agent = user_agent
        self.guard = guard
        self._resolver = resolver
        self._deadlines = deadlines
        self.ca_file = _ca_file()
        self.permits = Permits(_LARGE_PERMITS)
        self._idle: list[Transfer] = []
        self._watched: dict[int, int] = {}  # descriptor -> what it waits for
        self.active: dict[pycurl.Curl, Transfer] = {}
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
        started = self.loop.time()
        addresses = await self._resolver.resolve(target.hostname, target.port, self._deadlines.connect)
        transfer = self._idle.pop() if self._idle else Transfer(self)
        transfer.begin(target, addresses, wanted, started, end)
        self.active[transfer.curl] = transfer
        self._multi.add_handle(transfer.curl)
        if self._sweep_timer is None:
            self._sweep_timer = self.loop.call_later(_SWEEP_S, self._sweep)
        try:
            response = await transfer.future
            if transfer.permit:  # it goes with the body, whose memory it stands for
                transfer.permit = False
                response.give_back = self.permits.give
            return response
        finally:
            self._release(transfer)

    def _release(self, transfer: "Transfer") -> None:
        """Takes a transfer out of libcurl, whether it has ended or is called off."""
        if self.active.pop(transfer.curl, None) is not None:
            self._multi.remove_handle(transfer.curl)
        transfer.end()
        self._idle.append(transfer)

    def close(self) -> None:
        """Ends all connections."""
        for transfer in list(self.active.values()):
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
                self.loop.add_reader(descriptor, self.act, descriptor, pycurl.CSELECT_IN)
            else:
                self.loop.remove_reader(descriptor)
        if (before ^ wanted) & pycurl.POLL_OUT:
            if wanted & pycurl.POLL_OUT:
                self.loop.add_writer(descriptor, self.act, descriptor, pycurl.CSELECT_OUT)
            else:
                self.loop.remove_writer(descriptor)

    def _set_timer(self, milliseconds: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if milliseconds >= 0:
            self._timer = self.loop.call_later(milliseconds / 1000, self.act, pycurl.SOCKET_TIMEOUT, 0)

    def act(self, descriptor: int, what: int) -> None:
        """Lets libcurl act on a socket that is ready, or on its timer, and ends the transfers that are done."""
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
        transfer = self.active.pop(curl, None)
        if transfer is not None:
            self._multi.remove_handle(curl)
            transfer.finish(code, text)

    def _sweep(self) -> None:
        """Ends what is past a deadline."""
        now = self.loop.time()
        for transfer in list(self.active.values()):
            error = transfer.overdue(now, self._deadlines)
            if error is not None and not transfer.future.done():
                transfer.future.set_exception(FetchFailed(DownloadStatus.timeout, error, retryable=True))
                del self.active[transfer.curl]
                self._multi.remove_handle(transfer.curl)
        self._sweep_timer = self.loop.call_later(_SWEEP_S, self._sweep) if self.active else None


def _ca_file() -> str:
    """The certificates that the system trusts (SSL_CERT_FILE names others); Mozilla's when it has none."""
    found = ssl.get_default_verify_paths().cafile
    if found is not None:
        return found
    import certifi

    return certifi.where()
