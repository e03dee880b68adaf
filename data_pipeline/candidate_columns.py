"""Candidates that wait to be written, column by column.

What a page's candidates have in common (its address, language, licence, date and place in the file) is kept once a
page and repeated by Arrow when the columns are made: as a tuple of Python objects for each candidate, this took as long
as parsing the file.
"""

from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from crawl2clip.schema import CANDIDATE_SCHEMA, uid_of


class OfPage(NamedTuple):
    """What holds for all candidates of a page; the fields are those of `CANDIDATE_SCHEMA`."""

    page_url: str
    page_language: str | None
    license: str | None
    offset: int
    page_date: str | None


class Pairs(Protocol):
    """(url, text) pairs that wait to be written: as lists of strings, or as compiled code keeps them."""

    def __len__(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Of all addresses and texts, each with a byte beside it."""
        ...

    def append(self, url: str, text: str, text_source: str) -> None:
        """Adds a pair."""
        ...

    def columns(self) -> dict[str, pa.Array]:
        """uid, url, text and text_source of all pairs."""
        ...

    def clear(self) -> None:
        """Forgets all pairs."""
        ...


class PairLists:
    """Pairs as lists of strings."""

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        return len(self._urls)

    def clear(self) -> None:
        """Forgets all pairs."""
        self._urls: list[str] = []
        self._texts: list[str] = []
        self._text_sources: list[str] = []
        self.size_bytes = 0

    def append(self, url: str, text: str, text_source: str) -> None:
        """Adds a pair."""
        self._urls.append(url)
        self._texts.append(text)
        self._text_sources.append(text_source)
        self.size_bytes += (
            len(url) + len(text.encode()) + 2
        )  # as compiled code counts, so that batches are the same

    def columns(self) -> dict[str, pa.Array]:
        """uid, url, text and text_source of all pairs."""
        return {
            "uid": pa.array(map(uid_of, self._urls, self._texts), pa.string(), size=len(self)),
            "url": pa.array(self._urls, pa.string()),
            "text": pa.array(self._texts, pa.string()),
            "text_source": pa.array(self._text_sources, pa.string()),
        }


class CandidateColumns:
    """A batch of candidates of one crawl file.

    Attributes:
        pairs: what of them differs within a page.
    """

    def __init__(self, crawl_file: str, pairs: Pairs) -> None:
        self.crawl_file, self.pairs = crawl_file, pairs
        self.clear()

    def __len__(self) -> int:
        return len(self.pairs)

    def clear(self) -> None:
        """Forgets everything."""
        self.pairs.clear()
        self._pages: list[OfPage] = []
        self._ends: list[int] = [0]  # how many candidates there are up to each page, itself included
        self._hints: list[tuple[int, int | None, int | None]] = []

    def hint(self, width: int | None, height: int | None) -> None:
        """Tells the size that the page gives for the last pair; few candidates have one."""
        self._hints.append((len(self.pairs) - 1, width, height))

    def end_page(self, page: OfPage) -> None:
        """Tells what page the pairs since the last page are from."""
        if len(self.pairs) > self._ends[-1]:
            self._pages.append(page)
            self._ends.append(len(self.pairs))

    def to_table(self) -> pa.Table:
        """All candidates, in the order in which they were added. Schema: `CANDIDATE_SCHEMA`."""
        page_of_row = pa.array(np.repeat(np.arange(len(self._pages)), np.diff(self._ends)))
        columns = self.pairs.columns()
        columns["crawl_file"] = pa.repeat(pa.scalar(self.crawl_file, pa.string()), len(self))
        columns["listed"] = pa.nulls(len(self), pa.string())
        for name, values in zip(OfPage._fields, zip(*self._pages, strict=True), strict=True):
            columns[name] = pa.array(values, CANDIDATE_SCHEMA.field(name).type).take(page_of_row)
        for place, name in ((1, "width_hint"), (2, "height_hint")):
            kind = CANDIDATE_SCHEMA.field(name).type
            if self._hints:
                sizes: list[int | None] = [None] * len(self)
                for hint in self._hints:
                    sizes[hint[0]] = hint[place]
                columns[name] = pa.array(sizes, kind)
            else:
                columns[name] = pa.nulls(len(self), kind)
        return pa.Table.from_arrays(
            [columns[name] for name in CANDIDATE_SCHEMA.names], schema=CANDIDATE_SCHEMA
        )
