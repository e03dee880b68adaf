"""Pages of WAT records by compiled code, as far as they are of the usual kind.

A record that is not is left to `wat.read_wat_page`, which says what is right in every case: so there is one set of
rules, and the compiled code knows only those parts of it that most records need. A test holds that both ways give the
same, whatever the record.
"""

import ctypes
import weakref
from collections.abc import Collection

from data_pipeline.native import Buffer
from data_pipeline.page import TEXT_SOURCES, PackedImages, Page, opts_out, shared_image
from data_pipeline.wat import Meta, read_metas

_SHARED = bytes([TEXT_SOURCES.index("og:image")])


class _Scan(ctypes.Structure):  # `scan` in native/wat_scan.c
    _fields_ = [
        *((name, Buffer) for name in ("page", "images", "sources", "metas")),
        *((name, ctypes.c_int64) for name in ("num_images", "num_titles", "num_textless")),
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
            sources = (images.text_sources or bytes(images.num_links)) + _SHARED
            images = PackedImages(data, sources, images.num_links + 1)
        return Page(
            url,
            date or None,
            base or None,
            metas.language,
            opted_out=bool(metas.robots) and opts_out(metas.robots),
            images=images,
            textless_links=scan.num_textless,
        )
