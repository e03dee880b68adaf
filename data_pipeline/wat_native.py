"""Pages of WAT records and rows of their image links by compiled code, as far as they are of the usual kind.

What is unusual is given back untouched: a record to `wat.read_wat_page`, a link to `text.clean_text` and
`urls.join_url`, which say what is right in every case. So there is one set of rules, and the compiled code knows only
those parts of it that most links need. A test holds that both ways give the same, whatever the record.
"""

import ctypes
import weakref
from collections.abc import Collection
from typing import NamedTuple

from data_pipeline.page import TEXT_SOURCES, PackedImages, Page, opts_out, shared_image
from data_pipeline.text import character_kinds
from data_pipeline.urls import PageBase
from data_pipeline.wat import Meta, read_metas

_SHARED = bytes([TEXT_SOURCES.index("og:image")])


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("capacity", ctypes.c_size_t)]

    def read(self) -> bytes:
        return ctypes.string_at(self.data, self.size) if self.size else b""


class _Scan(ctypes.Structure):  # `scan` in native/wat_scan.c
    _fields_ = [
        *((name, _Buffer) for name in ("page", "images", "sources", "metas")),
        *((name, ctypes.c_int64) for name in ("num_images", "num_titles", "num_textless")),
    ]


class _PlainRows(ctypes.Structure):  # `plain_rows` in native/plain_rows.c
    _fields_ = [
        *((name, _Buffer) for name in ("rows", "places", "slow")),
        *((name, ctypes.c_int64) for name in ("num_rows", "num_slow", "num_too_short", "num_data_urls")),
    ]


class _Limits(ctypes.Structure):  # `limits` there
    _fields_ = [
        ("kinds", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("least", "most", "longest_url")),
    ]


class WatScanner:
    """Reads the records that it can."""

    def __init__(self, library: ctypes.CDLL, wanted: Collection[str]) -> None:
        """Makes a reader.

        Args:
            library: what `native.load` gives.
            wanted: where texts may come from, of `TEXT_SOURCES`; alt must be among them.
        """
        assert "alt" in wanted
        self._wanted = wanted
        self._takes = int("title" in wanted), int("og:image" in wanted)
        library.scan_new.restype = ctypes.POINTER(_Scan)
        library.scan_free.argtypes = [ctypes.POINTER(_Scan)]
        self._scan_wat = library.scan_wat
        self._scan_wat.argtypes = [
            ctypes.POINTER(_Scan),
            ctypes.c_char_p,
            ctypes.c_size_t,
            *[ctypes.c_int] * 2,
        ]
        self._pointer = library.scan_new()
        if not self._pointer:
            raise MemoryError
        self._scan = self._pointer.contents
        weakref.finalize(self, library.scan_free, self._pointer)

    def read(self, payload: bytes) -> Page | None:
        """The page that a record is about; None for a record that is to be read by `wat.read_wat_page`."""
        if self._scan_wat(self._pointer, payload, len(payload), *self._takes):
            return None
        scan = self._scan
        url, date, base, title, *strings = scan.page.read().decode().split("\0")
        metas = read_metas(map(Meta, strings[:-1:3], strings[1::3], strings[2::3]))
        images = PackedImages(
            scan.images.read(), scan.sources.read() if scan.num_titles else b"", scan.num_images
        )
        if metas.shared and (shared := shared_image(metas.shared, title, self._wanted)) is not None:
            data = b"%s%s\0%s\0" % (images.data, shared.url.encode(), shared.text.encode())
            sources = (images.text_sources or bytes(images.count)) + _SHARED
            images = PackedImages(data, sources, images.count + 1)
        return Page(
            url,
            date or None,
            base or None,
            metas.language,
            opted_out=bool(metas.robots) and opts_out(metas.robots),
            images=images,
            textless_links=scan.num_textless,
        )


class Rows(NamedTuple):
    """What image links give.

    Attributes:
        urls: addresses, absolute but for those of unfinished links.
        texts: their texts, clean but for those of unfinished links.
        text_sources: aligned with them, of `TEXT_SOURCES`.
        unfinished: places in these lists that hold a link as the page has it.
        num_too_short: links that are left out since their text is too short.
        num_data_urls: links that are left out since they hold the image itself.
    """

    urls: list[str]
    texts: list[str]
    text_sources: list[str]
    unfinished: list[int]
    num_too_short: int
    num_data_urls: int


class RowMaker:
    """Makes rows of image links, as far as that takes no parser and no cleaning."""

    def __init__(self, library: ctypes.CDLL, least: int, most: int, longest_url: int) -> None:
        """Makes a maker.

        Args:
            library: what `native.load` gives.
            least: characters of a text.
            most: the same.
            longest_url: characters.
        """
        library.plain_rows_new.restype = ctypes.POINTER(_PlainRows)
        library.plain_rows_free.argtypes = [ctypes.POINTER(_PlainRows)]
        self._make = library.make_plain_rows
        text = (ctypes.c_char_p, ctypes.c_size_t)
        self._make.argtypes = [ctypes.POINTER(_PlainRows), *text * 3, ctypes.POINTER(_Limits)]
        self._limits = _Limits(character_kinds(), least, most, longest_url)
        self._pointer = library.plain_rows_new()
        if not self._pointer:
            raise MemoryError
        self._rows = self._pointer.contents
        weakref.finalize(self, library.plain_rows_free, self._pointer)

    def make(self, images: PackedImages, base: PageBase) -> Rows:
        """The rows of a page's image links, in order."""
        origin, folder = base.origin.encode("ascii"), base.folder.encode("ascii")
        if self._make(self._pointer, images.data, len(images.data), origin, len(origin), folder, len(folder),
                      self._limits):  # fmt: skip
            raise MemoryError
        made = self._rows
        strings = made.rows.read().decode().split("\0")
        sources = ["alt"] * made.num_rows
        if images.text_sources:
            places = memoryview(made.places.read()).cast("i")
            sources = [TEXT_SOURCES[images.text_sources[place]] for place in places]
        unfinished = [place for place, slow in enumerate(made.slow.read()) if slow] if made.num_slow else []
        return Rows(
            strings[:-1:2], strings[1::2], sources, unfinished, made.num_too_short, made.num_data_urls
        )
