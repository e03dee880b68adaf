"""What a page's markup says of its images: everything a browser would find, from the tags alone.

On top of what a WAT holds (`src`, alt, title, og:image) come the largest candidate of `srcset`, lazy-load
attributes, the sources of `picture`, aria-label, figure captions, and sizes. An image's plain `src` is always
among its links, and its text is chosen from alt and title before anything that a WAT does not hold, so the
pairs that a WAT gives for a page are among those that its WARC gives.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from data_pipeline.markup import Tag, read_tags, text_of
from data_pipeline.page import ImageLink, Page, choose_text, creative_commons_license, opts_out, shared_image
from data_pipeline.srcset import largest_candidate

_LAZY = ("data-src", "data-original", "data-lazy-src", "data-lazy", "data-hi-res-src")
_SRCSETS = ("srcset", "data-srcset", "data-lazy-srcset")
_UNUSABLE_TYPES = ("image/svg+xml", "image/avif", "image/jxl", "image/heic")
_OWN_TEXTS = ("alt", "title", "aria-label")  # in this order: the first two are what a WAT shows
_TAGS = frozenset({"html", "base", "meta", "title", "img", "picture", "source", "figure", "figcaption"})
_MAX_CAPTION_LENGTH = 100_000  # characters; all images of a figure hold it
_LINK_TAGS = frozenset({"link", "a", "area"})  # read only where a licence may be among them
# The HTML standard's rules for a dimension: what follows the number is ignored, unless it is a percent sign.
_DIMENSION = re.compile(r"[\t\n\f\r ]*([0-9]{1,9})(?![0-9])(?:\.[0-9]*)?")


def read_html(html: str, wanted: Collection[str]) -> Page:
    """What a page's markup says; its address and date are left empty.

    Args:
        html: the page.
        wanted: where texts may come from, of `TEXT_SOURCES`.
    """
    reader = PageReader(html, wanted)
    for tag in read_tags(html, reader.tags):
        reader.read(tag)
    return reader.finish()


class PageReader:
    """Collects what the tags of one page say.

    Attributes:
        tags: names of the tags that it wants to see.
        slots: for each `<img>` seen so far, which of the page's image links are its own.
    """

    def __init__(self, html: str, wanted: Collection[str]) -> None:
        self.tags = _TAGS | _LINK_TAGS if "creativecommons.org" in html else _TAGS
        self._html, self._wanted = html, wanted
        self._page, self._images = Page(""), _ImageReader(wanted)
        self.slots = self._images.slots
        self._properties: dict[str, str] = {}
        self._head_links: list[str] = []
        self._links: list[str] = []
        self._title: str | None = None
        self._title_start: int | None = None

    def read(self, tag: Tag) -> None:
        """Takes in one tag of `tags`; they come in the page's order."""
        page, attributes = self._page, tag.attributes
        if tag.name in self._images.TAGS:
            self._images.read(tag, self._html)
        elif tag.name == "title":
            if not tag.is_end:
                self._title_start = tag.end
            elif self._title is None and self._title_start is not None:
                self._title = text_of(self._html[self._title_start : tag.start])
        elif tag.name == "meta":
            self._read_meta(attributes)
        elif tag.name == "base":
            page.base_href = page.base_href or attributes.get("href")
        elif tag.name == "html":
            page.language = page.language or attributes.get("lang") or attributes.get("xml:lang") or None
        elif "href" in attributes:
            (self._head_links if tag.name == "link" else self._links).append(attributes["href"])

    def _read_meta(self, attributes: dict[str, str]) -> None:
        content = attributes.get("content", "")
        key = attributes.get("property") or attributes.get("name", "")
        if key.startswith("og:") and content:
            self._properties.setdefault(key, content)
        if attributes.get("name", "").lower() == "robots" and opts_out([content]):
            self._page.opted_out = True

    def finish(self) -> Page:
        """The page, once all its tags have been read; its address and date are left empty."""
        page = self._page
        page.images = images = self._images.finish()
        if (shared := shared_image(self._properties, self._title, self._wanted)) is not None:
            images.append(shared)
        page.license = creative_commons_license(self._head_links + self._links)  # in the order of a WAT
        return page


class _Size(NamedTuple):
    """Pixels; None where they are not known."""

    width: int | None
    height: int | None


class _ImageReader:
    """Collects a page's image links from its tags: the images, the pictures and the figures they stand in."""

    TAGS = ("img", "picture", "source", "figure", "figcaption")

    def __init__(self, wanted: Collection[str]) -> None:
        self.wanted = wanted
        self.images: list[ImageLink] = []
        self.slots: list[range] = []  # for each image, its links among `images`
        self.sources: list[tuple[str, _Size]] | None = None  # of the open picture: srcset, size
        self.figure: int | None = None  # how many images there were before the open figure
        self.caption_start = 0
        self.caption = ""  # of the open figure

    def read(self, tag: Tag, html: str) -> None:
        """Takes the page's next tag of `TAGS`."""
        if tag.name == "img":
            if not tag.is_end:
                self._read_image(tag.attributes)
        elif tag.name == "picture":
            self.sources = None if tag.is_end else []
        elif tag.name == "source":
            usable = tag.attributes.get("type", "").lower() not in _UNUSABLE_TYPES
            if self.sources is not None and usable:
                self.sources += _srcsets(tag.attributes)
        elif tag.name == "figure":
            self._end_figure()
            self.figure = None if tag.is_end else len(self.images)
        elif not tag.is_end:
            self.caption_start = tag.end
        elif self.caption_start and not self.caption:
            self.caption = text_of(html[self.caption_start : tag.start])[:_MAX_CAPTION_LENGTH]

    def _read_image(self, attributes: dict[str, str]) -> None:
        """One link for each address of an image: its src, the one loaded lazily, and its largest version."""
        text, source = choose_text([(name, attributes.get(name)) for name in _OWN_TEXTS], self.wanted)
        size = _size_of(attributes)
        lazy = next((attributes[name] for name in _LAZY if attributes.get(name)), None)
        found = {url: size for url in (attributes.get("src"), lazy) if url is not None}
        if (largest := _largest(_srcsets(attributes) + (self.sources or []), size)) is not None:
            found[largest[0]] = largest[1]
        self.sources = None  # a picture has one image
        before = len(self.images)
        self.images += [ImageLink(url, text, source, *size) for url, size in (found or {"": size}).items()]
        self.slots.append(range(before, len(self.images)))

    def _end_figure(self) -> None:
        """Gives the figure's caption to those of its images that have no text of their own."""
        text, source = choose_text([("figcaption", self.caption)], self.wanted)
        if text and self.figure is not None:
            for index in range(self.figure, len(self.images)):
                if not self.images[index].text:
                    self.images[index] = self.images[index]._replace(text=text, text_source=source)
        self.caption_start, self.caption = 0, ""

    def finish(self) -> list[ImageLink]:
        """All image links, once the page has been read."""
        self._end_figure()
        return self.images


def _srcsets(attributes: dict[str, str]) -> list[tuple[str, _Size]]:
    size = _size_of(attributes)
    return [(attributes[name], size) for name in _SRCSETS if attributes.get(name)]


def _largest(srcsets: list[tuple[str, _Size]], of_image: _Size) -> tuple[str, _Size] | None:
    """The address with the most pixels among all srcsets of an image, and its size.

    With a width descriptor its height follows from the shape that the width and height attributes state, as
    in a browser; those of a picture's source come before those of its img.

    Args:
        srcsets: each with the size that its element states.
        of_image: the size that the img states.
    """
    found = [
        (candidate, size) for srcset, size in srcsets if (candidate := largest_candidate(srcset)) is not None
    ]
    if not found:
        return None
    best, stated = max(found, key=lambda pair: pair[0].rank)
    size = stated if stated != (None, None) else of_image
    if best.width is None:
        return best.url, size
    return best.url, _Size(best.width, best.height or _scaled_height(best.width, size))


def _scaled_height(width: int, shape: _Size) -> int | None:
    if not shape.width or not shape.height:
        return None
    height = round(width * shape.height / shape.width)
    return height if height < 10**9 else None


def _size_of(attributes: dict[str, str]) -> _Size:
    """What an element's width and height attributes say, in CSS pixels."""
    return _Size(_pixels(attributes.get("width")), _pixels(attributes.get("height")))


def _pixels(value: str | None) -> int | None:
    """A dimension attribute in whole pixels; None for a percentage and for what is no number of at most 9 digits."""
    found = _DIMENSION.match(value) if value else None
    return int(found[1]) if found and value and value[found.end() : found.end() + 1] != "%" else None
