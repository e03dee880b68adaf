"""What both readers, WAT and WARC, see in one page: its image links and what holds for all of them."""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

from data_pipeline.consent import parse_x_robots_tag
from data_pipeline.text import clean_text

TEXT_SOURCES = ("alt", "title", "aria-label", "figcaption", "og:image")
"""Where a caption may come from, in order of preference: an image's alt text; its title attribute; its
aria-label, though a screen reader would read that first (a WAT holds alt and title only, and a page should give
the same text from both of its forms); the caption of the figure it stands in; and, for the image that a page
shows when it is shared, what the page says about that image, or else the page's title."""

# What a page reserves for the use of its images. noindex and noimageindex are about search engines listing the
# page; they bind on the image's own response, see download.opt_out_directives.
_OPT_OUTS = ("noai", "noimageai")
_MAX_LANGUAGE_LENGTH = 35  # characters of the longest registered language tag, RFC 5646 section 4.4.1
_MAX_DATE_LENGTH = 40  # characters; with nanoseconds and a time zone a date has 35
# What a page says stands beside each of its candidates, so it is of bounded length; a licence's longest is under 60.
_LICENSE = re.compile(
    r"https?://(?:www\.)?(creativecommons\.org/(?:licenses|publicdomain)/[a-z0-9.+/_-]{1,100})(?![a-z0-9.+/_-])",
    re.IGNORECASE,
)


class ImageLink(NamedTuple):
    """One image of a page.

    Attributes:
        url: the address as it stands there.
        text: uncleaned.
        text_source: where the text comes from, of `TEXT_SOURCES`.
        width_hint: pixels, as the page says, 0 or more; None when it does not, or in no form that can be read.
        height_hint: the same.
    """

    url: str
    text: str
    text_source: str
    width_hint: int | None = None
    height_hint: int | None = None


@dataclass(frozen=True, slots=True)
class PackedImages(Sequence[ImageLink]):
    """Image links as compiled code hands them on: no objects, but one string of bytes. Objects are made when asked for.

    Attributes:
        data: address and text of each link as UTF-8, each followed by a NUL; none of them holds one.
        text_sources: for each link, where its text comes from, as its place in `TEXT_SOURCES`; empty when it is alt
            for all of them.
        num_links: how many there are.
    """

    data: bytes
    text_sources: bytes
    num_links: int

    def __len__(self) -> int:
        return self.num_links

    @overload
    def __getitem__(self, index: int) -> ImageLink: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageLink]: ...
    def __getitem__(self, index: int | slice) -> ImageLink | list[ImageLink]:
        return self.unpack()[index]

    def __iter__(self) -> Iterator[ImageLink]:
        return iter(self.unpack())

    def unpack(self) -> list[ImageLink]:
        """The same as objects."""
        strings = self.data.decode().split("\0")
        sources = [TEXT_SOURCES[place] for place in self.text_sources] or ["alt"] * self.num_links
        return list(map(ImageLink, strings[:-1:2], strings[1::2], sources))


@dataclass(slots=True)
class Page:
    """One page.

    Attributes:
        url: its address.
        date: when it was crawled, ISO 8601; None when the file does not say.
        base_href: its `<base href>` as written; None without one.
        language: its `<html lang>` as written; None without one.
        license: the first Creative Commons licence it links to; None when there is none.
        opted_out: it asks, in a header or a meta tag, that its images are not used for AI.
        images: its image links, in the page's order.
        textless_links: further image links, which have no text of a wanted kind and so only count.
        bad_links: image links whose address or text is not text.
    """

    url: str
    date: str | None = None
    base_href: str | None = None
    language: str | None = None
    license: str | None = None
    opted_out: bool = False
    images: Sequence[ImageLink] = field(default_factory=list)
    textless_links: int = 0
    bad_links: int = 0


def choose_text(offers: Iterable[tuple[str, str | None]], wanted: Collection[str]) -> tuple[str, str]:
    """The first text that is not empty, of the sources that are wanted.

    Args:
        offers: (source, text) in order of preference.
        wanted: names of `TEXT_SOURCES`.

    Returns:
        (text, source), or ("", "alt") when there is none.
    """
    for source, text in offers:
        if text and source in wanted and not text.isspace():
            return text, source
    return "", "alt"


def shared_image(properties: dict[str, str], title: str | None, wanted: Collection[str]) -> ImageLink | None:
    """The page's og:image with its text; None when there is none or it is not wanted.

    Args:
        properties: the page's Open Graph properties, each with its first value.
        title: the page's `<title>`.
        wanted: names of `TEXT_SOURCES`.
    """
    url = (
        properties.get("og:image") or properties.get("og:image:url") or properties.get("og:image:secure_url")
    )
    if not url or "og:image" not in wanted:
        return None
    texts = (properties.get("og:image:alt"), properties.get("og:title"), title)
    return ImageLink(url, next((text for text in texts if text and not text.isspace()), ""), "og:image")


def too_long(page_url: str, base_href: str | None, max_length: int) -> bool:
    """Whether the address of a page, or what its relative addresses begin with, is longer than any address may be.

    A page of 50 MB has a million links, and each would be joined with it and stored beside it.

    Args:
        page_url: as it stands there.
        base_href: the same; None without one.
        max_length: characters.
    """
    return len(page_url) > max_length or len(base_href or "") > max_length


def opts_out(directives: Iterable[str]) -> bool:
    """Whether X-Robots-Tag headers or robots meta tags, meant for everyone, say noai or noimageai."""
    return any(
        directive in _OPT_OUTS and agent in (None, "*")
        for line in directives
        for agent, directive, _ in parse_x_robots_tag(line)
    )


def creative_commons_license(addresses: Iterable[str | None]) -> str | None:
    """The first Creative Commons licence among the addresses that a page links to, always as https."""
    for address in addresses:
        found = _LICENSE.match(address.strip()) if address else None
        if found:
            return "https://" + found.group(1).lower()
    return None


def language_tag(language: str | None) -> str | None:
    """A page's `<html lang>` as it is stored: clean, of bounded length; None when there is none."""
    return clean_text(language)[:_MAX_LANGUAGE_LENGTH].strip() or None if language else None


def page_date(date: str | None) -> str | None:
    """When a page was crawled, as it is stored: clean; None when the file does not say, or nothing like a date."""
    return clean_text(date) or None if date and len(date) <= _MAX_DATE_LENGTH else None
