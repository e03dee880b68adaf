"""Candidates that wait to be written, column by column.

What a page's candidates have in common (its address, language, licence, date and place in the file) is kept once a
page and repeated by Arrow when the columns are made: as a tuple of Python objects for each candidate, this took as long
as parsing the file.
"""

from typing import NamedTuple

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


class Candidates(NamedTuple):
    """The candidates of one page: aligned lists, and the sizes that the page gives for some of them."""

    urls: list[str]
    texts: list[str]
    text_sources: list[str]
    hints: list[
        tuple[int, int | None, int | None]
    ]  # place in the lists, width, height; few candidates have them


class CandidateColumns:
    """A batch of candidates of one crawl file."""

    def __init__(self, crawl_file: str) -> None:
        self.crawl_file = crawl_file
        self.clear()

    def __len__(self) -> int:
        return len(self._all.urls)

    def clear(self) -> None:
        """Forgets everything."""
        self._all = Candidates([], [], [], [])
        self._pages: list[OfPage] = []
        self._nums_of_page: list[int] = []
        self.num_characters = 0  # of all addresses and texts

    def add(self, page: OfPage, candidates: Candidates) -> None:
        """Adds the candidates of a page."""
        start, every = len(self), self._all
        every.urls.extend(candidates.urls)
        every.texts.extend(candidates.texts)
        every.text_sources.extend(candidates.text_sources)
        every.hints.extend((start + place, width, height) for place, width, height in candidates.hints)
        self._pages.append(page)
        self._nums_of_page.append(len(candidates.urls))
        self.num_characters += sum(map(len, candidates.urls)) + sum(map(len, candidates.texts))

    def to_table(self) -> pa.Table:
        """All candidates, in the order in which they were added. Schema: `CANDIDATE_SCHEMA`."""
        page_of_row = pa.array(np.repeat(np.arange(len(self._pages)), self._nums_of_page))
        columns: dict[str, pa.Array] = {
            "uid": pa.array(map(uid_of, self._all.urls, self._all.texts), pa.string(), size=len(self)),
            "url": pa.array(self._all.urls, pa.string()),
            "text": pa.array(self._all.texts, pa.string()),
            "text_source": pa.array(self._all.text_sources, pa.string()),
            "crawl_file": pa.repeat(pa.scalar(self.crawl_file, pa.string()), len(self)),
            "listed": pa.nulls(len(self), pa.string()),
        }
        for name, values in zip(OfPage._fields, zip(*self._pages, strict=True), strict=True):
            columns[name] = pa.array(values, CANDIDATE_SCHEMA.field(name).type).take(page_of_row)
        for place, name in ((1, "width_hint"), (2, "height_hint")):
            sizes: list[int | None] = [None] * len(self)
            for hint in self._all.hints:
                sizes[hint[0]] = hint[place]
            columns[name] = pa.array(sizes, CANDIDATE_SCHEMA.field(name).type)
        return pa.Table.from_arrays(
            [columns[name] for name in CANDIDATE_SCHEMA.names], schema=CANDIDATE_SCHEMA
        )
