"""(url, text) pairs as compiled code keeps them: in the form of Arrow's columns, without an object for each.

It makes pairs of those image links whose text needs no cleaning and whose address needs no parser, and stops at each
of the others: `text.clean_text` and `urls.join_url` say what is right in every case, and the compiled code knows only
those parts of it that most links need. A test holds that both ways give the same pairs.
"""

import ctypes
import weakref
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import xxhash

from data_pipeline.native import Buffer
from data_pipeline.page import TEXT_SOURCES, PackedImages
from data_pipeline.text import character_kinds
from data_pipeline.urls import PageBase

_STOPPED, _FAILED = 1, 2
_UID_DIGITS = 32


class _Pairs(ctypes.Structure):  # `pairs` in native/plain_pairs.c
    _fields_ = [
        *((name, Buffer) for name in ("urls", "url_ends", "texts", "text_ends", "sources", "hashed")),
        *((name, ctypes.c_int64) for name in ("num_pairs", "num_too_short", "num_data_urls")),
        *((name, ctypes.c_size_t) for name in ("position", "url_start", "text_start")),
        ("place", ctypes.c_int64),
    ]


class _Limits(ctypes.Structure):  # `limits` there
    _fields_ = [
        ("kinds", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in ("least", "most", "longest_url")),
    ]


class PackedPairs:
    """Pairs that wait to be written."""

    def __init__(self, library: ctypes.CDLL, least: int, most: int, longest_url: int) -> None:
        """Begins without any.

        Args:
            library: what `native.load` gives.
            least: characters of a text.
            most: the same.
            longest_url: characters.
        """
        library.pairs_new.restype = ctypes.POINTER(_Pairs)
        for function in (library.pairs_free, library.pairs_clear):
            function.argtypes = [ctypes.POINTER(_Pairs)]
        text = (ctypes.c_char_p, ctypes.c_size_t)
        self._append, self._extend, self._clear = (
            library.append_pair,
            library.extend_pairs,
            library.pairs_clear,
        )
        self._append.argtypes = [ctypes.POINTER(_Pairs), *text * 2, ctypes.c_int]
        self._extend.argtypes = [
            ctypes.POINTER(_Pairs), *text, ctypes.c_char_p, *text * 2, ctypes.POINTER(_Limits)
        ]  # fmt: skip
        self._limits = _Limits(character_kinds(), least, most, longest_url)
        self._pointer = library.pairs_new()
        if not self._pointer:
            raise MemoryError
        self._pairs = self._pointer.contents
        weakref.finalize(self, library.pairs_free, self._pointer)

    def __len__(self) -> int:
        return self._pairs.num_pairs

    @property
    def size_bytes(self) -> int:
        """Of all addresses and texts, each with a byte beside it."""
        return self._pairs.hashed.size

    def clear(self) -> None:
        """Forgets all pairs."""
        self._clear(self._pointer)

    def append(self, url: str, text: str, text_source: str) -> None:
        """Adds a pair as it is."""
        url_bytes, text_bytes = url.encode(), text.encode()
        if self._append(
            self._pointer, url_bytes, len(url_bytes), text_bytes, len(text_bytes), TEXT_SOURCES.index(text_source)
        ):  # fmt: skip
            raise MemoryError

    def extend(
        self, images: PackedImages, base: PageBase, finish: Callable[[str, str], tuple[str, str] | None]
    ) -> tuple[int, int]:
        """Adds what a page's image links give, in order.

        Args:
            images: the links.
            base: what their addresses are resolved against.
            finish: makes a pair of an address and a text as they stand in the page; None when the link is dropped.

        Returns:
            How many links are left out since their text is too short, and how many since they hold the image itself;
            those that `finish` drops are not among them.
        """
        pairs, data, sources = self._pairs, images.data, images.text_sources or None
        origin, folder = base.origin.encode("ascii"), base.folder.encode("ascii")
        given = (data, len(data), sources, origin, len(origin), folder, len(folder), self._limits)
        pairs.position = pairs.place = too_short = data_urls = 0
        state = _STOPPED
        while state == _STOPPED:
            state = self._extend(self._pointer, *given)
            too_short += pairs.num_too_short
            data_urls += pairs.num_data_urls
            if state == _STOPPED:
                url, text, end = pairs.url_start, pairs.text_start, pairs.position - 1
                pair = finish(data[url : text - 1].decode(), data[text:end].decode())
                if pair is not None:
                    self.append(*pair, TEXT_SOURCES[sources[pairs.place - 1] if sources else 0])
        if state == _FAILED:
            raise MemoryError
        return too_short, data_urls

    def columns(self) -> dict[str, pa.Array]:
        """uid, url, text and text_source of all pairs."""
        pairs, count = self._pairs, len(self)
        hashed = pairs.hashed.read().split(b"\xff")[:-1]
        uids = b"".join(map(xxhash.xxh3_128_digest, hashed)).hex().encode("ascii")
        uid_ends = np.arange(0, _UID_DIGITS * (count + 1), _UID_DIGITS, dtype=np.int32)
        places = pa.array(np.frombuffer(pairs.sources.read(), np.uint8))
        return {
            "uid": _strings(count, uid_ends.tobytes(), uids),
            "url": _strings(count, pairs.url_ends.read(), pairs.urls.read()),
            "text": _strings(count, pairs.text_ends.read(), pairs.texts.read()),
            "text_source": pa.array(TEXT_SOURCES, pa.string()).take(places),
        }


def _strings(count: int, ends: bytes, data: bytes) -> pa.Array:
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(data))
