"""Looking up host names: what is refused, what is kept, and name servers of one's own."""

import asyncio
import socket
import struct
import threading
from collections import Counter

import pytest

from data_pipeline.addresses import Guard
from data_pipeline.fetch_failures import FetchFailed
from data_pipeline.resolver import Resolver


def resolve(guard: Guard, *hosts: str, nameservers=(), port=80, timeout_s=20.0):
    """What comes of looking up each host, one after the other, by one resolver."""

    async def main():
        resolver = Resolver(guard, nameservers)
        found = []
        for host in hosts:
            try:
                found.append(await resolver.resolve(host, port, timeout_s))
            except FetchFailed as failure:
                found.append(failure)
        resolver.close()
        return found

    return asyncio.run(main())


def fake_getaddrinfo(*addresses: str, asked: Counter[str] | None = None):
    def getaddrinfo(host, port, *arguments):
        if asked is not None:
            asked[host] += 1
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "not known")
        family = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(family[":" in text], socket.SOCK_STREAM, 6, "", (text, 0)) for text in addresses]

    return getaddrinfo


@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (["169.254.169.254"], "inside.example is at 169.254.169.254, which is refused (link-local)"),
        (["127.0.0.1", "::1"], "inside.example is at 127.0.0.1, which is refused (loopback)"),
        (["::ffff:10.0.0.1"], "inside.example is at ::ffff:10.0.0.1, which is refused (private)"),
    ],
)
def test_a_name_that_points_inside_is_refused(monkeypatch, addresses, words):
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo(*addresses))
    (failure,) = resolve(Guard(), "inside.example")
    assert (failure.status.value, failure.error, failure.retryable) == ("address_refused", words, False)


def test_only_the_public_addresses_of_a_name_are_used(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo("10.0.0.1", "93.184.215.14", "::1"))
    assert resolve(Guard(), "mixed.example") == [["93.184.215.14"]]


def test_literal_addresses_are_checked_and_not_looked_up(monkeypatch):
    asked: Counter[str] = Counter()
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo("8.8.8.8", asked=asked))
    public, private, mapped = resolve(Guard(), "8.8.8.8", "10.0.0.1", "::ffff:127.0.0.1")
    assert public == []
    assert private.error == "10.0.0.1 is refused (private)"
    assert mapped.error.endswith("is refused (loopback)")
    assert resolve(Guard(), "8.8.8.8", port=25)[0].error == "port 25 is blocked, as in browsers"
    assert not asked


def test_answers_and_failures_are_kept(monkeypatch):
    asked: Counter[str] = Counter()
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo("8.8.8.8", asked=asked))
    assert resolve(Guard(), "a.example", "b.example", "a.example") == [["8.8.8.8"]] * 3
    assert asked == {"a.example": 1, "b.example": 1}
    monkeypatch.setattr(socket, "getaddrinfo", fake_getaddrinfo(asked=asked))
    failures = resolve(Guard(), "dead.example", "dead.example")
    assert [failure.status.value for failure in failures] == ["dns_error", "dns_error"]
    assert asked["dead.example"] == 1


def test_a_lookup_that_hangs_ends_in_time(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments: release.wait(30) and [])
    (failure,) = resolve(Guard(), "slow.example", timeout_s=0.05)
    release.set()
    assert (failure.status.value, failure.error) == ("timeout", "looking up the host name took too long")
    assert failure.retryable


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example"])
def test_names_that_cannot_be_names_are_dns_errors(host):
    assert resolve(Guard(), host)[0].status.value == "dns_error"


class NameServer:
    """A DNS server on loopback that knows the addresses of some names; others do not exist."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.asked: Counter[str] = Counter()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                query, client = self.socket.recvfrom(2000)
            except OSError:
                return
            labels, position = [], 12
            while query[position]:
                labels.append(query[position + 1 : position + 1 + query[position]].decode())
                position += 1 + query[position]
            question, kind = query[12 : position + 5], struct.unpack_from(">H", query, position + 1)[0]
            name = ".".join(labels).lower()
            self.asked[name] += 1
            address = self.names.get(name)
            known = address is not None and kind == 1  # A
            flags = 0x8180 if address is not None else 0x8183
            answer = b""
            if known:
                answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + socket.inet_aton(str(address))
            head = query[:2] + struct.pack(">HHHHH", flags, 1, int(known), 0, 0)
            self.socket.sendto(head + question + answer, client)

    def close(self) -> None:
        self.socket.close()


def test_name_servers_of_ones_own_are_asked_and_their_answers_checked():
    pytest.importorskip("aiodns", reason="needs aiodns; install the data extra")
    names = {"good.example": "93.184.215.14", "inside.example": "192.168.0.1"}
    first, second = NameServer(names), NameServer(names)
    servers = (first.address, second.address)
    hosts = ("good.example", "inside.example", "nowhere.example")
    good, inside, nowhere = resolve(Guard(), *hosts, nameservers=servers)
    assert good == ["93.184.215.14"]
    assert inside.error == "inside.example is at 192.168.0.1, which is refused (private)"
    assert (nowhere.status.value, nowhere.retryable) == ("dns_error", False)
    assert first.asked.keys() | second.asked.keys() >= set(hosts)
    first.close()
    second.close()
