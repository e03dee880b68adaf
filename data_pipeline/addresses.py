"""Which URLs and which network addresses the downloader may touch.

A list of URLs comes from strangers, and the machine that fetches it often stands inside a network whose
internal services trust it. So a URL is parsed as a browser would parse it, only http and https go on, and
every address is checked at the moment a socket is made for it: `Guard.socket_factory` is the one place all
connections pass through, whether the host was a name, a number, or came from a redirect. A name that resolves
to something else between the check and the connection (DNS rebinding) therefore gains nothing.

The surprising part: the networks are listed here instead of asked from `ipaddress.is_global`, whose answer
for several of them has changed between Python versions.
"""

import ipaddress
import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ada_url

MAX_URL_LENGTH = 8190  # characters after percent-encoding; the request line that common servers accept
_DEFAULT_PORTS = {"http:": 80, "https:": 443}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOOPBACK = "loopback"
_REFUSED_V4 = [
    (ipaddress.IPv4Network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "this network"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", _LOOPBACK),
        ("169.254.0.0/16", "link-local"),  # the cloud metadata services live at 169.254.169.254
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "protocol assignments"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
_NAT64_V6 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED_V6 = [
    (ipaddress.IPv6Network(network), kind)
    for network, kind in (
        ("::1/128", _LOOPBACK),
        ("::/128", "unspecified"),
        ("fc00::/7", "unique local"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
        ("2001::/23", "protocol assignments"),  # Teredo among them, which wraps an IPv4 address
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),  # wraps an IPv4 address
        ("3fff::/20", "documentation"),
    )
]

# Ports that browsers refuse (WHATWG Fetch, "port blocking"): servers there would read a request as commands.
# fmt: off
_BAD_PORTS = frozenset((
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526,
    530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659,
    4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
))
# fmt: on


class InvalidUrl(ValueError):
    """A URL that cannot be fetched at all: not a URL, not http or https, or too long."""


class AddressRefused(OSError):
    """An address or port that the guard does not connect to.

    An OSError, so that the HTTP client treats it as a failed connection and cleans up.
    """


@dataclass(frozen=True)
class Target:
    """A URL ready to be requested.

    Attributes:
        url: as a browser would send it: ASCII, percent-encoded, no fragment, no user name or password.
        origin: scheme, host and port; what a robots.txt speaks for.
        host: lower-case host name or literal address; what the per-host limits count by.
        port: the URL's, or its scheme's.
    """

    url: str
    origin: str
    host: str
    port: int

    @property
    def hostname(self) -> str:
        """The host without the brackets that a URL puts around an IPv6 address."""
        return self.host[1:-1] if self.host.startswith("[") else self.host


def parse_url(url: str, base: str | None = None) -> Target:
    """The URL as a browser would request it (WHATWG URL standard).

    Args:
        url: absolute, or relative to `base`; may hold spaces and non-ASCII characters.
        base: the absolute URL that a relative one starts from, for redirects.

    Raises:
        InvalidUrl: it is not a URL, has another scheme than http and https, or is too long.
    """
    if len(url) > MAX_URL_LENGTH:
        raise InvalidUrl(f"{len(url)} characters; the limit is {MAX_URL_LENGTH}")
    try:
        parsed = ada_url.URL(url, base)
    except (ValueError, UnicodeError) as error:  # UnicodeError: lone surrogates
        raise InvalidUrl(f"not a URL: {_shorten(url)}") from error
    if parsed.protocol not in _DEFAULT_PORTS:
        raise InvalidUrl(f"scheme {parsed.protocol.rstrip(':')!r} is not http or https: {_shorten(url)}")
    href = parsed.href
    if "@" in href or "#" in href:  # each of ada's attributes costs as much as a comparison of the whole
        parsed.username = parsed.password = parsed.hash = ""
        href = parsed.href
    if len(href) > MAX_URL_LENGTH:
        raise InvalidUrl(f"{len(href)} characters when encoded; the limit is {MAX_URL_LENGTH}")
    port = int(parsed.port) if parsed.port else _DEFAULT_PORTS[parsed.protocol]
    return Target(href, parsed.origin, parsed.hostname, port)


def _shorten(url: str) -> str:
    return repr(url if len(url) <= 100 else url[:97] + "...")


@dataclass(frozen=True)
class Guard:
    """The rule for addresses and ports, and the two hooks through which the HTTP client obeys it.

    Attributes:
        allow_loopback: lets 127.0.0.0/8 and ::1 through, for tests and the demo; nothing else.
    """

    allow_loopback: bool = False

    def refusal(self, address: str) -> str | None:
        """Why an address is refused; None when it may be connected to.

        Args:
            address: an IPv4 or IPv6 address in text form, possibly with an IPv6 zone.
        """
        kind = _kind_of_text(address)
        if kind == _LOOPBACK and self.allow_loopback:
            return None
        return kind

    def check(self, address: str, port: int) -> None:
        """Raises AddressRefused when the address or the port is not to be connected to."""
        if port in _BAD_PORTS:
            raise AddressRefused(f"port {port} is blocked, as in browsers")
        if (kind := self.refusal(address)) is not None:
            raise AddressRefused(f"{address} is refused ({kind})")

    def socket_factory(self, address_info: tuple[Any, ...]) -> socket.socket:
        """Makes the socket for one address, after checking it; the client makes no socket elsewhere.

        Args:
            address_info: (family, type, protocol, canonical name, socket address), as from getaddrinfo.
        """
        family, kind, protocol, _, address = address_info
        self.check(address[0], address[1])
        return socket.socket(family, kind, protocol)


@lru_cache(maxsize=65_536)  # a kept-alive connection's address is asked about with every request
def _kind_of_text(address: str) -> str | None:
    try:
        return _kind_of(ipaddress.ip_address(address))
    except ValueError:
        return "not an IP address"


def _kind_of(address: IPAddress) -> str | None:
    """The kind of network that makes an address refused; None for the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _kind_of(address.ipv4_mapped)
        if address in _NAT64_V6:
            return _kind_of(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        for network, kind in _REFUSED_V6:
            if address in network:
                return kind
        return None if address in _GLOBAL_V6 else "reserved"
    return next((kind for network, kind in _REFUSED_V4 if address in network), None)
