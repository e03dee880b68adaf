"""What the owners of sites say, asked where a URL is about to be fetched and again when its answer is there.

The files in which they say it (robots.txt, tdmrep.json) are fetched once an origin for all URLs that wait for
them, and kept while they are fresh.

The surprising part: when an origin gives no answer at all, every URL of it gets the status of that fault
(dns_error, timeout ...) instead of robots_disallowed. Both are true; the former says what to do about it, and
the dead origin is not asked again for each URL.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import Target
from data_pipeline.aipref import UsageRules, aipref_decision
from data_pipeline.consent import ROBOTS_MAX_BYTES, Decision, Robots, robots_text, x_robots_decision
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.http_client import Response
from data_pipeline.policy import PolicyConfig
from data_pipeline.tdmrep import MAX_BYTES, WELL_KNOWN, TdmRules, tdmrep_decision

T = TypeVar("T")

_FRESH_S = 24 * 3600.0  # RFC 9309, section 2.4
_FORBIDDEN_FRESH_S = 600.0  # how long "the server cannot answer" is believed
_MAX_ORIGINS = 20_000

_NO_ANSWER = (
    DownloadStatus.address_refused,
    DownloadStatus.dns_error,
    DownloadStatus.connect_error,
    DownloadStatus.tls_error,
    DownloadStatus.timeout,
)

GetSiteFile = Callable[[str, str, int], Awaitable[tuple[int, bytes]]]
"""Fetches (origin, path, most bytes), redirects followed: (HTTP status, body). Raises FetchFailed."""


@dataclass(frozen=True)
class SiteRules:
    """What the files of an origin say, as far as its answers are judged by them."""

    usage: UsageRules
    mining: TdmRules


@dataclass(frozen=True)
class _RobotsEntry:
    robots: Robots
    usage: UsageRules
    failure: FetchFailed | None  # what every URL of the origin gets, when there was no answer


class SiteConsent:
    """Asks for every URL what the policy lets bind.

    Args:
        policy: which signals bind.
        token: our product token.
        get: fetches a file of an origin.
    """

    def __init__(self, policy: PolicyConfig, token: str, get: GetSiteFile) -> None:
        self._policy = policy
        self._token = token
        self._get = get
        self._opt_out = frozenset(directive.lower() for directive in policy.opt_out_directives)
        self._robots = _OriginCache(self._fetch_robots)
        self._mining = _OriginCache(self._fetch_tdmrep)

    async def before(self, target: Target, decisions: list[Decision]) -> SiteRules:
        """Notes what the files of the origin decide about a URL.

        Raises:
            FetchFailed: it may not be fetched.
        """
        usage, mining = UsageRules(), TdmRules()
        if self._policy.robots or self._policy.aipref_usages:
            entry = await self._robots.get(target.origin)
            usage = entry.usage
            if entry.failure is not None and entry.failure.status == DownloadStatus.address_refused:
                raise FetchFailed(entry.failure.status, entry.failure.error)  # ours to refuse, not the site's
            if self._policy.robots:
                _apply_robots(entry, target.url, decisions)
        if self._policy.tdmrep:
            mining = await self._mining.get(target.origin)
        rules = SiteRules(usage, mining)
        self._ask(None, target, rules, decisions)
        return rules

    def after(
        self, response: Response, target: Target, rules: SiteRules, decisions: list[Decision], now: datetime
    ) -> None:
        """Notes what the answer's headers decide.

        Raises:
            FetchFailed: it may not be kept.
        """
        decision = x_robots_decision(
            response.headers("x-robots-tag"), token=self._token, opt_out_directives=self._opt_out, now=now
        )
        decisions.append(decision)
        if not decision.allowed:
            raise FetchFailed(
                DownloadStatus.opted_out, f"X-Robots-Tag: {decision.reason}", http_status=response.status
            )
        self._ask(response, target, rules, decisions)

    def _ask(
        self, response: Response | None, target: Target, rules: SiteRules, decisions: list[Decision]
    ) -> None:
        """TDMRep and AIPREF: refused by a file before the request, and by file and headers after it."""
        asked: list[Decision] = []
        if self._policy.tdmrep:
            stated = response.headers("tdm-reservation") if response else []
            asked.append(tdmrep_decision(stated, rules.mining, target.url))
        if self._policy.aipref_usages:
            stated = response.headers("content-usage") if response else []
            asked.append(aipref_decision(stated, rules.usage, target.url, usages=self._policy.aipref_usages))
        if response is None:  # a header may overrule a file's reservation, so only usages are final here
            asked = [decision for decision in asked if decision.signal == "aipref" and not decision.allowed]
        decisions += asked
        for decision in asked:
            if not decision.allowed:
                raise FetchFailed(
                    DownloadStatus.opted_out,
                    f"{decision.signal}: {decision.reason}",
                    http_status=response.status if response else None,
                )

    def forget_failures(self) -> None:
        """Origins that gave no answer are asked again."""
        self._robots.forget(lambda entry: entry.failure is not None)

    # The files

    async def _fetch_robots(self, origin: str) -> tuple[_RobotsEntry, float]:
        try:
            status, body = await self._get(origin, "/robots.txt", ROBOTS_MAX_BYTES)
        except FetchFailed as failure:
            robots = Robots.unreachable(self._token, failure.status.value)
            shared = failure if failure.status in _NO_ANSWER else None
            return _RobotsEntry(robots, UsageRules(), shared), _FORBIDDEN_FRESH_S
        robots = Robots.from_response(self._token, status, body)
        usage = UsageRules()
        if self._policy.aipref_usages and 200 <= status < 300:
            usage = UsageRules.from_robots(robots_text(body), self._token)
        forbidden = status == 429 or status >= 500
        return _RobotsEntry(robots, usage, None), _FORBIDDEN_FRESH_S if forbidden else _FRESH_S

    async def _fetch_tdmrep(self, origin: str) -> tuple[TdmRules, float]:
        try:
            return TdmRules.from_response(*await self._get(origin, WELL_KNOWN, MAX_BYTES)), _FRESH_S
        except FetchFailed:
            return TdmRules(), _FORBIDDEN_FRESH_S

    async def close(self) -> None:
        """Ends requests still under way."""
        await self._robots.close()
        await self._mining.close()


def _apply_robots(entry: _RobotsEntry, url: str, decisions: list[Decision]) -> None:
    decision = entry.robots.decide(url)
    decisions.append(decision)
    failure = entry.failure
    if failure is not None:
        raise FetchFailed(failure.status, f"robots.txt: {failure.error}", retryable=failure.retryable)
    if not decision.allowed:
        raise FetchFailed(DownloadStatus.robots_disallowed, f"robots.txt: {decision.reason}")


class _OriginCache(Generic[T]):
    """Something about each of the origins met lately.

    Args:
        fetch: finds it out: (the thing, seconds that it stays fresh).
    """

    def __init__(self, fetch: Callable[[str], Awaitable[tuple[T, float]]]) -> None:
        self._fetch = fetch
        self._entries: OrderedDict[str, asyncio.Task[tuple[T, float]]] = OrderedDict()

    async def get(self, origin: str) -> T:
        """The thing; fetched when it is not there or stale."""
        task = self._entries.get(origin)
        if task is None or (task.done() and task.result()[1] < time.monotonic()):
            task = self._entries[origin] = asyncio.create_task(self._make(origin))
            if len(self._entries) > _MAX_ORIGINS:
                self._entries.popitem(last=False)
        self._entries.move_to_end(origin)
        if task.done():
            return task.result()[0]
        return (await asyncio.shield(task))[0]  # one URL that is cancelled does not take it from the others

    def forget(self, unwanted: Callable[[T], bool]) -> None:
        """Drops what a caller does not want to be believed any longer."""
        for origin, task in list(self._entries.items()):
            if task.done() and not task.cancelled() and unwanted(task.result()[0]):
                del self._entries[origin]

    async def _make(self, origin: str) -> tuple[T, float]:
        found, fresh_s = await self._fetch(origin)
        return found, time.monotonic() + fresh_s

    async def close(self) -> None:
        """Ends requests still under way."""
        for task in self._entries.values():
            task.cancel()
        await asyncio.gather(*self._entries.values(), return_exceptions=True)
