"""Image addresses as a browser would resolve them: the URL standard's parser, never string concatenation.

Only http and https come out. Everything else is refused with a reason, so that the funnel shows what a
crawl's image links are made of.
"""

import re
from enum import Enum
from typing import NamedTuple

import ada_url


class UrlFault(str, Enum):
    """Why an image address gives no candidate."""

    no_url = "no_url"
    url_too_long = "url_too_long"
    data_url = "data_url"  # the image itself is in the page
    unsupported_scheme = "unsupported_scheme"  # javascript:, blob:, file:, ftp: ...
    invalid_url = "invalid_url"  # the standard's parser refuses it
    url_with_credentials = "url_with_credentials"  # user:password@, which must not end up in a data set


class PageBase(NamedTuple):
    """What the relative addresses of a page are resolved against.

    Attributes:
        href: an absolute http(s) URL, normalised.
        origin: its scheme, host and port, without a slash at the end.
        folder: the address up to the last slash of its path.
    """

    href: str
    origin: str
    folder: str


_SPACE = "".join(map(chr, range(0x21)))  # what the standard strips from both ends: C0 controls and space

# Most addresses need no parser: of these forms, the standard gives what joining strings gives. No segment that begins
# with a dot and no encoded dot (`_join_plain` looks for both), no host that could be a number or punycode, no quote (it
# is escaped in queries). A test holds that both ways agree. The compiled code has the same forms (native/plain_rows.c).
_PLAIN = r"[A-Za-z0-9_~!$&()*+,;=:@%/.?-]*"
_match_from_root = re.compile(rf"/(?!/){_PLAIN}").fullmatch
_match_from_folder = re.compile(rf"[A-Za-z0-9_~%-][A-Za-z0-9_~.%-]*(?:[/?]{_PLAIN})?").fullmatch
_match_absolute = re.compile(rf"https?://(?:[a-z0-9_-]+\.)+[a-z]{{2,}}/{_PLAIN}").fullmatch


def page_base(page_url: str, base_href: str | None) -> PageBase | None:
    """What a page's relative addresses are resolved against.

    Args:
        page_url: the page's own address.
        base_href: what its `<base href>` says, itself perhaps relative; None without one.

    Returns:
        The base, or None when the page's own address is not a valid http(s) URL. A `<base href>` that
        cannot be used is ignored, as browsers do.
    """
    href = page_url if _is_plain(page_url) else _join(None, page_url)
    if href is None or not _is_web(href):
        return None
    if base_href:
        base = _join(href, base_href)
        if base is not None and _is_web(base):
            href = base
    path = href.partition("#")[0].partition("?")[0]
    return PageBase(href, "/".join(path.split("/", 3)[:3]), path[: path.rindex("/") + 1])


def join_url(base: PageBase, url: str, *, max_length: int) -> str | UrlFault:
    """The absolute address of an image, in the standard's one spelling, without a fragment.

    Args:
        base: what `page_base` returned.
        url: the address as it stands in the page.
        max_length: characters that the address may have before and after it is resolved.

    Returns:
        The address, or why there is none.
    """
    if 0 < len(url) <= max_length:
        plain = _join_plain(base, url)
        if plain is not None and len(plain) <= max_length:
            return plain
    url = url.strip(_SPACE)
    if not url:
        return UrlFault.no_url
    if url[:5].lower() == "data:":
        return UrlFault.data_url
    if len(url) > max_length:
        return UrlFault.url_too_long
    joined = _join_plain(base, url) or _join(base.href, url)
    if joined is None:
        return UrlFault.invalid_url
    if not _is_web(joined):
        return UrlFault.data_url if joined.startswith("data:") else UrlFault.unsupported_scheme
    joined = joined.partition("#")[0]
    if len(joined) > max_length:
        return UrlFault.url_too_long
    if "@" in joined and "@" in joined.split("/", 3)[2]:
        return UrlFault.url_with_credentials
    return joined


def _join_plain(base: PageBase, url: str) -> str | None:
    """The joined address where that takes no parser; None otherwise."""
    if "/." in url or ("%2" in url and "%2e" in url.lower()):
        return None
    if url[0] == "/":
        return base.origin + url if _match_from_root(url) is not None else None
    if url.startswith("http"):
        return url if _match_absolute(url) is not None and "xn--" not in url else None
    return base.folder + url if _match_from_folder(url) is not None else None


def _is_plain(url: str) -> bool:
    """Whether an absolute address is already spelt as the standard does."""
    return _match_absolute(url) is not None and "/." not in url and "xn--" not in url and "%" not in url


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _join(base: str | None, url: str) -> str | None:
    try:
        return ada_url.join_url(base, url) if base is not None else ada_url.normalize_url(url)
    except (ValueError, UnicodeError):  # UnicodeError: a lone surrogate
        return None
