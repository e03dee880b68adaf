"""Fetches URLs that strangers wrote: asynchronous, polite, bounded in time and memory, unable to hang.

One `Fetcher` lives as long as its worker process and keeps one HTTP client: kept-alive connections, one
TLS context, cached DNS answers and robots.txt. Each hop of each URL goes through the same steps: parsed as
a browser does, robots.txt of its origin, its host's gate, a free slot, an address the guard accepts, the
response's headers, the body under its cap. Redirects are followed by hand, so that every hop meets each.

The surprising part: a URL takes one of the slots only once its host's gate lets it through, and keeps it until
the caller has dealt with the body. So slow hosts never hold up others, and no more bodies than slots are ever in
memory, however slowly they are decoded.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Generic, TypeVar

from crawl2clip.download_status import DownloadStatus
from data_pipeline.adaptive import AdaptiveLimit
from data_pipeline.addresses import Guard, InvalidUrl, Target, parse_url
from data_pipeline.consent import Decision, describe, product_token
from data_pipeline.content_encoding import undo_encoding
from data_pipeline.fetch_config import FetchConfig
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.http_client import Deadlines, HttpClient, Response
from data_pipeline.politeness import HostGate, HostLimits, parse_retry_after
from data_pipeline.resolver import Resolver
from data_pipeline.site_consent import SiteConsent, SiteRules

T = TypeVar("T")

_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (429, 503)
_RETRYABLE_CODES = (408, 425, 500, 502, 504, *_BUSY)
_SITE_FILE_MAX_REDIRECTS = 5  # RFC 9309, section 2.3.1.2


@dataclass(frozen=True)
class Fetched(Generic[T]):
    """What came of one URL.

    Attributes:
        status: success means that a body arrived; whoever consumes the body judges it.
        result: what `consume` made of the body; None without success.
        error: one line of detail; None on success.
        http_status: of the last response; None when there was none.
        consent: every decision made on the way; None when none was made.
        retryable: it failed in a way that may pass.
    """

    status: DownloadStatus
    result: T | None = None
    error: str | None = None
    http_status: int | None = None
    consent: str | None = None
    retryable: bool = False


@dataclass(frozen=True)
class _Answer(Generic[T]):
    """One response, as far as it matters: where it points to, or what was made of its body."""

    http_status: int
    location: str | None = None
    result: T | None = None


Check = Callable[[Response], None]  # looks at a redirect's or a 200's headers; may raise FetchFailed
Read = Callable[[Response], bytes]  # makes the body of a 200, or raises FetchFailed
Consume = Callable[[bytes], Awaitable[T]]


class Fetcher:
    """Fetches URLs for one worker. Make it inside the event loop it will run in; close it at the end.

    Attributes:
        totals: "requests" sent, "bytes" of bodies received, "retries" made, since it was made.
    """

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._limits = HostLimits(
            config.per_host_connections, config.per_host_requests_per_s, config.max_host_failures
        )
        self._slots = AdaptiveLimit(config.concurrency)
        self._gates: dict[str, HostGate] = {}
        self._consent = SiteConsent(config.policy, product_token(config.identified_as), self._get_site_file)
        self.totals: Counter[str] = Counter()
        guard = Guard(config.allow_loopback)
        self._resolver = Resolver(guard, config.nameservers)
        deadlines = Deadlines(
            connect=config.connect_timeout_s,
            first_byte=config.first_byte_timeout_s,
            silence=config.read_timeout_s,
            total=config.total_timeout_s,
            min_bytes_per_s=config.min_bytes_per_s,
        )
        self._client = HttpClient(config.identified_as, guard, self._resolver, deadlines, config.concurrency)

    async def close(self) -> None:
        """Ends the connections, and robots.txt requests still under way."""
        await self._consent.close()
        self._client.close()
        self._resolver.close()

    def begin_pass(self) -> None:
        """Gives hosts that failed another chance, and forgets those with nothing to remember."""
        self._consent.forget_failures()
        self._resolver.forget_failures()
        self._gates = {host: gate for host, gate in self._gates.items() if not gate.is_idle()}
        for gate in self._gates.values():
            gate.reopen()

    async def fetch(self, url: str, consume: Consume[T]) -> Fetched[T]:
        """Fetches one URL and gives its body to `consume`.

        Args:
            url: as found; parsed as a browser would.
            consume: called once, with a whole body of 1 to `max_bytes` bytes. The URL keeps its slot
                meanwhile, which is what holds fetching back when consuming is slow.

        Returns:
            The status and, on success, what `consume` returned. Faults of network, server and URL are
            statuses; only faults of ours, and those of `consume`, raise.
        """
        decisions: list[Decision] = []
        task = _TaskClock(self._config.task_timeout_s)

        async def follow() -> _Answer[T]:
            return await self._follow(parse_url(url), decisions, consume, task)

        try:
            answer = await self._with_retries(follow, task)
        except InvalidUrl as error:
            return Fetched(DownloadStatus.invalid_url, error=str(error))
        except FetchFailed as failure:
            return Fetched(
                failure.status,
                error=failure.error,
                http_status=failure.http_status,
                consent=describe(decisions),
                retryable=failure.retryable,
            )
        return Fetched(DownloadStatus.success, answer.result, None, answer.http_status, describe(decisions))

    async def _with_retries(self, attempt: Callable[[], Awaitable[T]], task: "_TaskClock") -> T:
        for retry in range(self._config.retries + 1):
            try:
                return await attempt()
            except FetchFailed as failure:
                pause_s = self._config.backoff_s * 2**retry
                if not failure.retryable or retry == self._config.retries or task.left_s() <= pause_s:
                    raise
                self.totals["retries"] += 1
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    async def _follow(
        self, target: Target, decisions: list[Decision], consume: Consume[T], task: "_TaskClock"
    ) -> _Answer[T]:
        """Follows redirects; consent, the gate and the guard are asked at each hop anew."""
        redirects = 0
        while True:
            rules = await self._consent.before(target, decisions)

            answer = await self._request(
                target,
                self._consent_check(target, rules, decisions),
                self._read_body,
                self._config.max_bytes,
                consume,
                task,
            )
            if answer.location is None:
                return answer
            redirects += 1
            if redirects > self._config.max_redirects:
                raise FetchFailed(
                    DownloadStatus.too_many_redirects,
                    f"more than {self._config.max_redirects} redirects",
                    http_status=answer.http_status,
                )
            target = _redirected(target, answer.location, answer.http_status)

    def _consent_check(self, target: Target, rules: SiteRules, decisions: list[Decision]) -> Check:
        def check(response: Response) -> None:
            self._consent.after(response, target, rules, decisions, datetime.now(timezone.utc))

        return check

    # One request

    async def _request(
        self,
        target: Target,
        check: Check,
        read: Read,
        max_bytes: int,
        consume: Consume[T],
        task: "_TaskClock",
    ) -> _Answer[T]:
        """One request; a redirect passes `check`, a 200 `check`, `read` and `consume`; the rest fails."""
        gate = self._gates.setdefault(target.host, HostGate(self._limits))
        async with gate.turn(), self._slots:
            task.start()
            self.totals["requests"] += 1
            response = None
            try:
                try:
                    response = await self._exchange(target, gate, check, max_bytes, task.end)
                    body = read(response) if response.status == 200 else None
                except FetchFailed as failure:
                    self._note(failure, gate)
                    raise
                self._slots.observe(timed_out=False, now=asyncio.get_running_loop().time())
                gate.succeeded()
                if body is None:
                    return _Answer(response.status, location=response.header("location"))
                return _Answer(response.status, result=await consume(body))
            finally:
                if response is not None:
                    response.release()

    def _note(self, failure: FetchFailed, gate: HostGate) -> None:
        """Tells the gate, and what finds the number of slots, about a failure."""
        now = asyncio.get_running_loop().time()
        if failure.http_status is not None:  # the host answered
            self._slots.observe(timed_out=False, now=now)
            if failure.http_status < 500 and failure.http_status not in _BUSY:
                gate.succeeded()
        elif failure.status != DownloadStatus.address_refused:
            self._slots.observe(timed_out=failure.status == DownloadStatus.timeout, now=now)
            gate.failed(failure)

    async def _exchange(
        self, target: Target, gate: HostGate, check: Check, max_bytes: int, end: float
    ) -> Response:
        """The answer to a request: a redirect, or a 200 with up to one byte more than `max_bytes`."""

        def wanted(response: Response) -> int:
            code = response.status
            if code in _REDIRECTS and response.header("location") is not None:
                check(response)
                return 0
            if code == 200:
                check(response)
                return 0 if _declared_bytes(response) > max_bytes else max_bytes + 1
            failure = FetchFailed(
                DownloadStatus.http_error,
                f"HTTP status {code}",
                http_status=code,
                retryable=code in _RETRYABLE_CODES,
            )
            if code in _BUSY:
                failure.retryable = self._make_room(response, gate, failure)
            raise failure

        return await self._client.get(target, wanted, end)

    def _make_room(self, response: Response, gate: HostGate, failure: FetchFailed) -> bool:
        """The host is busy: it gets the pause it asks for, or is given up when that is too long.

        Returns:
            Whether the URL may be tried again.
        """
        asked_s = parse_retry_after(response.header("retry-after"))
        if asked_s is not None and asked_s > self._config.max_retry_after_s:
            gate.close(failure)
            return False
        gate.pause(self._config.backoff_s if asked_s is None else asked_s)
        gate.failed(failure)
        return True

    def _read_body(self, response: Response) -> bytes:
        """The body with its Content-Encoding undone, 1 to `max_bytes` bytes."""
        limit, code = self._config.max_bytes, response.status
        body = None
        self.totals["bytes"] += min(len(response.body), limit + 1)
        if _declared_bytes(response) <= limit and len(response.body) <= limit:
            try:
                body = undo_encoding(bytes(response.body), response.header("content-encoding") or "", limit)
            except FetchFailed as failure:
                failure.http_status = code
                raise
        if body is None:
            error = f"a body of more than {limit} bytes"
            raise FetchFailed(DownloadStatus.too_large, error, http_status=code)
        if not body:
            raise FetchFailed(DownloadStatus.empty_body, "a body of 0 bytes", http_status=code)
        return body

    # robots.txt and its like

    async def _get_site_file(self, origin: str, path: str, max_bytes: int) -> tuple[int, bytes]:
        """(HTTP status, body) of a file of an origin, redirects followed, also to other origins; cut at `max_bytes`."""

        def read(response: Response) -> bytes:
            encoding = response.header("content-encoding") or ""
            self.totals["bytes"] += len(response.body)
            return undo_encoding(bytes(response.body), encoding, max_bytes, cut=True) or b""

        task = _TaskClock(self._config.task_timeout_s)

        async def follow() -> tuple[int, bytes]:
            target = parse_url(path, base=origin)
            for _ in range(_SITE_FILE_MAX_REDIRECTS + 1):
                answer = await self._request(target, _nothing_to_check, read, max_bytes, _keep, task)
                if answer.location is None:
                    return answer.http_status, answer.result or b""
                target = _redirected(target, answer.location, answer.http_status)
            return 404, b""  # RFC 9309, section 2.3.1.2: too many redirects count as no file

        try:
            return await self._with_retries(follow, task)
        except FetchFailed as failure:
            if failure.status == DownloadStatus.http_error and failure.http_status is not None:
                return failure.http_status, b""
            raise


class _TaskClock:
    """The time that one URL has, with all its redirects, retries and pauses; it runs from the first request on.

    Attributes:
        end: loop time at which it is over.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.end = float("inf")

    def start(self) -> None:
        """Starts it, unless it runs already."""
        if self.end == float("inf"):
            self.end = asyncio.get_running_loop().time() + self._seconds

    def left_s(self) -> float:
        """Seconds that are left; below 0 when it is over."""
        return min(self._seconds, self.end - asyncio.get_running_loop().time())


def _declared_bytes(response: Response) -> int:
    declared = response.header("content-length") or ""
    return int(declared[:18]) if declared.isascii() and declared.isdigit() else 0


def _nothing_to_check(response: Response) -> None:
    return None


async def _keep(body: bytes) -> bytes:
    return body


def _redirected(target: Target, location: str, http_status: int) -> Target:
    try:
        return parse_url(location, base=target.url)
    except InvalidUrl as error:
        raise FetchFailed(
            DownloadStatus.invalid_url, f"redirect to {error}", http_status=http_status
        ) from error
