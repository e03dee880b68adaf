import socket

import pytest

from data_pipeline.addresses import (
    MAX_URL_LENGTH,
    AddressRefused,
    Guard,
    InvalidUrl,
    parse_url,
)

REFUSED = {
    "127.0.0.1": "loopback",
    "127.8.8.8": "loopback",
    "::1": "loopback",
    "::ffff:127.0.0.1": "loopback",
    "10.1.2.3": "private",
    "172.16.0.1": "private",
    "172.31.255.255": "private",
    "192.168.1.1": "private",
    "::ffff:192.168.1.1": "private",
    "64:ff9b::a00:1": "private",  # 10.0.0.1 behind NAT64
    "169.254.169.254": "link-local",
    "fe80::1": "link-local",
    "fe80::1%eth0": "link-local",
    "100.64.0.1": "carrier-grade NAT",
    "100.127.255.255": "carrier-grade NAT",
    "fd00::1": "unique local",
    "224.0.0.1": "multicast",
    "ff02::1": "multicast",
    "255.255.255.255": "reserved",
    "0.0.0.0": "this network",
    "::": "unspecified",
    "198.18.0.1": "benchmarking",
    "2002:7f00:1::": "6to4",
    "2001:0:7f00:1::": "protocol assignments",  # Teredo
    "::127.0.0.1": "reserved",
    "4000::1": "reserved",
    "localhost": "not an IP address",
    "127.1": "not an IP address",
}


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_inside_a_network_are_refused(address):
    assert Guard().refusal(address) == REFUSED[address]


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "172.32.0.1", "100.63.255.255", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"],
)
def test_public_addresses_pass(address):
    assert Guard().refusal(address) is None


@pytest.mark.parametrize("address", REFUSED)
def test_allow_loopback_lets_nothing_else_through(address):
    allowed = Guard(allow_loopback=True).refusal(address) is None
    assert allowed == (REFUSED[address] == "loopback")


def test_no_socket_is_made_for_a_refused_address():
    for address in (("169.254.169.254", 80), ("10.0.0.1", 443)):
        with pytest.raises(AddressRefused, match=rf"{address[0]} is refused"):
            Guard().socket_factory((socket.AF_INET, socket.SOCK_STREAM, 0, "", address))
    with pytest.raises(AddressRefused, match="port 25 is blocked"):
        Guard().check("8.8.8.8", 25)


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://example.org/a b/ü.jpg?q=é ä#part", "http://example.org/a%20b/%C3%BC.jpg?q=%C3%A9%20%C3%A4"),
        ("  HTTP://EXAMPLE.org:80/%7Ea ", "http://example.org/%7Ea"),
        ("https://bücher.example/x", "https://xn--bcher-kva.example/x"),
        ("http://user:secret@example.org/", "http://example.org/"),
        ("http://2130706433/", "http://127.0.0.1/"),  # so that the guard sees what would be connected to
        ("http://0x7f.1/", "http://127.0.0.1/"),
        ("http://exa\nmple.org/a\tb", "http://example.org/ab"),
    ],
)
def test_urls_are_sent_as_a_browser_sends_them(url, sent):
    assert parse_url(url).url == sent


def test_origin_and_host():
    target = parse_url("//cdn.example.org:8080/x.png", base="https://example.org/page")
    assert (target.origin, target.host) == ("https://cdn.example.org:8080", "cdn.example.org")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "scheme 'file' is not http or https"),
        ("javascript:alert(1)", "scheme 'javascript'"),
        ("ftp://example.org/a.jpg", "scheme 'ftp'"),
        ("/relative.jpg", "not a URL"),
        ("http://", "not a URL"),
        ("http://a b/", "not a URL"),
        ("http://example.org:99999/", "not a URL"),
        ("http://example.org/\ud800", "not a URL"),
        ("http://example.org/" + "a" * 1_000_000, f"1000019 characters; the limit is {MAX_URL_LENGTH}"),
        ("http://example.org/" + "é" * 5_000, "characters when encoded"),
        ("", "not a URL"),
    ],
)
def test_what_is_not_fetchable_is_said(url, words):
    with pytest.raises(InvalidUrl) as raised:
        parse_url(url)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 250
