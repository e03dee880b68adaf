"""Joining addresses by the URL standard, and the reasons for those that are refused."""

import ada_url
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.urls import UrlFault, join_url, page_base

BASE = "https://example.org/dir/page.html"


def join(url, base=BASE, max_length=2000):
    found = page_base(base, None)
    assert found is not None
    return join_url(found, url, max_length=max_length)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("a.jpg", "https://example.org/dir/a.jpg"),
        ("/a.jpg", "https://example.org/a.jpg"),
        ("../../a.jpg", "https://example.org/a.jpg"),
        ("./x/../a.jpg", "https://example.org/dir/a.jpg"),
        ("//cdn.net/a.jpg", "https://cdn.net/a.jpg"),
        ("HTTP://EXAMPLE.ORG:80/A.jpg", "http://example.org/A.jpg"),
        ("?size=2", "https://example.org/dir/page.html?size=2"),
        ("a b/é.jpg", "https://example.org/dir/a%20b/%C3%A9.jpg"),
        ("\\win\\a.jpg", "https://example.org/win/a.jpg"),
        (" \n/a\t.jpg\0", "https://example.org/a.jpg"),
        ("a.jpg#fragment", "https://example.org/dir/a.jpg"),
        ("http://bücher.example/a", "http://xn--bcher-kva.example/a"),
        ("https:a.jpg", "https://example.org/dir/a.jpg"),
        ("/a@2x.jpg", "https://example.org/a@2x.jpg"),
        ("http://0x7f.1/a", "http://127.0.0.1/a"),
    ],
)
def test_joining(url, expected):
    assert join(url) == expected


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("", UrlFault.no_url),
        (" \t\n\0", UrlFault.no_url),
        ("data:image/png;base64,AA", UrlFault.data_url),
        (" DA\nTA:,x", UrlFault.data_url),
        ("javascript:void(0)", UrlFault.unsupported_scheme),
        ("blob:https://example.org/1", UrlFault.unsupported_scheme),
        ("file:///etc/passwd", UrlFault.unsupported_scheme),
        ("ftp://example.org/a.jpg", UrlFault.unsupported_scheme),
        ("about:blank", UrlFault.unsupported_scheme),
        ("http://", UrlFault.invalid_url),
        ("http://[::1", UrlFault.invalid_url),
        ("http://a.com:99999/", UrlFault.invalid_url),
        ("http://exa mple.org/", UrlFault.invalid_url),
        ("a\ud800.jpg", UrlFault.invalid_url),
        ("http://user:pass@host/a.jpg", UrlFault.url_with_credentials),
        ("//user@host/a.jpg", UrlFault.url_with_credentials),
        ("a" * 2001, UrlFault.url_too_long),
        ("é" * 500, UrlFault.url_too_long),  # six characters each once they are escaped
    ],
)
def test_refusals(url, fault):
    assert join(url) is fault


@pytest.mark.parametrize(
    ("page", "base_href", "expected"),
    [
        (BASE, None, BASE),
        (BASE, "", BASE),
        (BASE, "/img/", "https://example.org/img/"),
        (BASE, "../x", "https://example.org/x"),
        (BASE, "//cdn.net/", "https://cdn.net/"),
        (BASE, "javascript:1", BASE),
        (BASE, "http://[bad", BASE),
        ("HTTP://Example.ORG", None, "http://example.org/"),
        ("dns:example.org", None, None),
        ("not a url", None, None),
        ("", None, None),
    ],
)
def test_page_base(page, base_href, expected):
    base = page_base(page, base_href)
    assert (base and base.href) == expected


_PIECES = """/ // . .. /.. /. a b.jpg ? ?x=1&y #f : @ %2e % é ' \\ http:// https: HTTP:// host.org h.org/ 1.2.3.4
0x7f.1/ xn--a.org/ h.org:80/ _ ~ -"""
_address = st.lists(st.sampled_from([*_PIECES.split(), " "]), min_size=1, max_size=6).map("".join)


@given(_address, st.sampled_from([BASE, "http://a.org", "https://a.org:8080/x/y?q=/z#/f", "http://a.org/b/"]))
@settings(max_examples=400, deadline=None)
def test_joining_without_a_parser_gives_what_the_parser_gives(url, page):
    base = page_base(page, None)
    joined = join_url(base, url, max_length=2000)
    try:
        expected = ada_url.join_url(page, url).partition("#")[0]
    except ValueError:
        assert joined in (UrlFault.invalid_url, UrlFault.no_url)
        return
    if not isinstance(joined, UrlFault):
        assert joined == expected
    else:
        assert joined in (UrlFault.no_url, UrlFault.unsupported_scheme, UrlFault.url_with_credentials)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_gives_a_web_address_or_a_reason(url):
    joined = join(url)
    if not isinstance(joined, UrlFault):
        assert joined.startswith(("http://", "https://"))
        assert joined.isascii()
        assert join(joined) == joined


@pytest.mark.parametrize(
    "url", ["a" * 1900 + "%", "/a" * 900 + "%", "a.b" * 600 + " ", "http://" + "a." * 900 + "1/"]
)
def test_hostile_addresses_take_time_by_their_length_only(url):
    join(url)


_segment = st.text("abzAZ019_~!$&()*+,;=:@.-%'", max_size=5)
_plain_looking = st.tuples(
    st.sampled_from(
        [
            "",
            "/",
            "//",
            "http://a.b.org/",
            "https://x-y.co/",
            "http://1.2.3.4/",
            "https://xn--a.org/",
            "HTTP://h.org/",
        ]
    ),
    st.lists(_segment, max_size=4).map("/".join),
    st.sampled_from(["", "?", "?a=/../b", "#f", "?x#y?"]),
).map("".join)


@given(_plain_looking, st.one_of(st.none(), _plain_looking), _plain_looking)
@settings(max_examples=500, deadline=None)
def test_page_addresses_and_bases_are_joined_by_the_standard(page, base_href, url):
    """Whichever of the three is spelt so that no parser is needed."""

    def standard(base, address):
        try:
            joined = ada_url.join_url(base, address) if base is not None else ada_url.normalize_url(address)
        except ValueError:
            return None
        return joined if joined.startswith(("http://", "https://")) else None

    expected_base = standard(None, page)
    if expected_base is not None and base_href:
        expected_base = standard(expected_base, base_href) or expected_base
    base = page_base(page, base_href)
    assert (base and base.href) == expected_base
    if base is not None and url:
        joined, expected = join_url(base, url, max_length=2000), standard(base.href, url)
        if not isinstance(joined, UrlFault):
            assert joined == (expected or "").partition("#")[0]
        elif expected is not None:
            assert joined is UrlFault.url_with_credentials
            assert "@" in expected
