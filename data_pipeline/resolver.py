"""Host names to addresses: looked up once, kept for a while, and only those that the guard lets through.

By default the system's resolver is asked, in threads of its own. A crawl of millions of hosts is too much for
most of these; `download.nameservers` lists several name servers that are asked in turn instead, by c-ares.

The surprising part: a failure is kept too, for a short time, so that a dead name with a thousand URLs is looked
up once and not a thousand times.
"""

import asyncio
import socket
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from ipaddress import ip_address
from typing import Any

from crawl2clip.download_status import DownloadStatus
from data_pipeline.addresses import AddressRefused, Guard
from data_pipeline.fetch_failures import FetchFailed, classify_lookup

_FRESH_S = 600.0
_FAILURE_FRESH_S = 60.0
_MAX_HOSTS = 100_000
_THREADS = 32


class Resolver:
    """The addresses of hosts. Belongs to one event loop.

    Args:
        guard: leaves out the addresses that are not to be connected to.
        nameservers: addresses ("9.9.9.9", or "9.9.9.9:53") that are asked in turn; none for the system's resolver.
    """

    def __init__(self, guard: Guard, nameservers: Sequence[str]) -> None:
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._hosts: OrderedDict[str, tuple[float, asyncio.Future[list[str]]]] = OrderedDict()
        self._ask = _NameServers(nameservers) if nameservers else _System()

    async def resolve(self, host: str, port: int, timeout_s: float) -> list[str]:
        """The addresses of a host that may be connected to; none for a literal address that may be.

        Args:
            host: a name or a literal address, without brackets.
            port: where to connect to; some are refused.
            timeout_s: longest wait for a lookup.

        Raises:
            FetchFailed: all its addresses, or the port, are refused; or there are none, or none in time.
        """
        try:
            if (literal := _literal(host)) is not None:
                self._guard.check(literal, port)
                return []
            addresses = await self._addresses(host, timeout_s)
            allowed = [address for address in addresses if self._guard.refusal(address) is None]
            if not allowed:
                kind = self._guard.refusal(addresses[0])
                raise AddressRefused(f"{host} is at {addresses[0]}, which is refused ({kind})")
            self._guard.check(allowed[0], port)
            return allowed
        except asyncio.TimeoutError as error:  # before OSError, which it is from Python 3.11 on
            raise FetchFailed(
                DownloadStatus.timeout, "looking up the host name took too long", retryable=True
            ) from error
        except OSError as error:
            raise classify_lookup(error) from error

    async def _addresses(self, host: str, timeout_s: float) -> list[str]:
        now = self._loop.time()
        fresh_until, lookup = self._hosts.get(host, (0.0, None))
        if lookup is None or (lookup.done() and fresh_until < now):
            lookup = asyncio.ensure_future(self._look_up(host))
            self._hosts[host] = (now + _FRESH_S, lookup)
            if len(self._hosts) > _MAX_HOSTS:
                self._hosts.popitem(last=False)
        self._hosts.move_to_end(host)
        if lookup.done():
            return lookup.result()
        # Shielded: one URL that gives up does not take it from the others.
        return await asyncio.wait_for(asyncio.shield(lookup), timeout_s)

    async def _look_up(self, host: str) -> list[str]:
        try:
            found = await self._ask.addresses(host)
            if not found:
                raise socket.gaierror(socket.EAI_NONAME, "no address")
            return list(dict.fromkeys(found))
        except OSError:
            if host in self._hosts:
                self._hosts[host] = (self._loop.time() + _FAILURE_FRESH_S, self._hosts[host][1])
            raise

    def forget_failures(self) -> None:
        """Names that could not be looked up are asked for again."""
        for host, (_, lookup) in list(self._hosts.items()):
            if lookup.done() and (lookup.cancelled() or lookup.exception() is not None):
                del self._hosts[host]

    def close(self) -> None:
        """Ends lookups, without waiting for those that hang."""
        for _, lookup in self._hosts.values():
            if lookup.done() and not lookup.cancelled():
                lookup.exception()  # seen, so that asyncio does not complain
            lookup.cancel()
        self._ask.close()


@lru_cache(maxsize=65_536)
def _literal(host: str) -> str | None:
    try:
        return str(ip_address(host))
    except ValueError:
        return None


class _System:
    """getaddrinfo, in threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="dns")

    async def addresses(self, host: str) -> list[str]:
        """A host's addresses, as texts.

        Raises:
            socket.gaierror: it has none, or they cannot be told now.
        """
        try:
            found = await asyncio.get_running_loop().run_in_executor(
                self._threads,
                lambda: socket.getaddrinfo(
                    host, None, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, socket.AI_ADDRCONFIG
                ),
            )
        except UnicodeError as error:  # a label that is empty or longer than 63 characters
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Ends lookups, without waiting for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _NameServers:
    """c-ares, which turns from one server to the next."""

    def __init__(self, nameservers: Sequence[str]) -> None:
        import aiodns

        self._resolver = aiodns.DNSResolver(nameservers=list(nameservers), rotate=True, timeout=3.0, tries=3)

    async def addresses(self, host: str) -> list[str]:
        """A host's addresses, as texts.

        Raises:
            socket.gaierror: it has none, or they cannot be told now.
        """
        from aiodns.error import DNSError

        try:
            found: Any = await self._resolver.getaddrinfo(host, socket.AF_UNSPEC, type=socket.SOCK_STREAM)
        except DNSError as error:
            code = socket.EAI_NONAME if error.args[0] in _NO_SUCH_NAME else socket.EAI_AGAIN
            raise socket.gaierror(code, str(error.args[-1])) from error
        except UnicodeError as error:
            raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
        return [_text(node.addr[0]) for node in found.nodes]

    def close(self) -> None:
        """Ends lookups."""
        self._resolver.cancel()


_NO_SUCH_NAME = (1, 4, 8)  # c-ares: no data, no such name, a name that cannot be one


def _text(address: str | bytes) -> str:
    return address.decode() if isinstance(address, bytes) else address
