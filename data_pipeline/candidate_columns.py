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


class CandidateColumns:
    """A batch of candidates of one crawl file.

    Call `add` for each candidate of a page, then `end_page`.
    """

    def __init__(self, crawl_file: str) -> None:
        self.crawl_file = crawl_file
        self.clear()

    def __len__(self) -> int:
        return len(self._urls)

    def clear(self) -> None:
        """Forgets everything."""
        self._urls: list[str] = []
        self._texts: list[str] = []
        self._text_sources: list[str] = []
        self._hints: list[tuple[int, int | None, int | None]] = []  # row, width, height: few rows have them
        self._pages: list[OfPage] = []
        self._ends: list[int] = []  # candidates up to the end of each page

    def add(
        self, url: str, text: str, text_source: str, width_hint: int | None, height_hint: int | None
    ) -> None:
        """Adds a candidate of the page that is being read."""
        if width_hint is not None or height_hint is not None:
            self._hints.append((len(self._urls), width_hint, height_hint))
        self._urls.append(url)
        self._texts.append(text)
        self._text_sources.append(text_source)

    def end_page(self, page: OfPage) -> None:
        """Says which page the candidates added since the last call are from."""
        if len(self._urls) > (self._ends[-1] if self._ends else 0):
            self._pages.append(page)
            self._ends.append(len(self._urls))

    def to_table(self) -> pa.Table:
        """All candidates, in the order in which they were added. Schema: `CANDIDATE_SCHEMA`."""
        page_of_row = pa.array(np.repeat(np.arange(len(self._pages)), np.diff(self._ends, prepend=0)))
        columns: dict[str, pa.Array] = {
            "uid": pa.array(map(uid_of, self._urls, self._texts), pa.string(), size=len(self)),
            "url": pa.array(self._urls, pa.string()),
            "text": pa.array(self._texts, pa.string()),
            "text_source": pa.array(self._text_sources, pa.string()),
            "crawl_file": pa.repeat(pa.scalar(self.crawl_file, pa.string()), len(self)),
        }
        for name, values in zip(OfPage._fields, zip(*self._pages, strict=True), strict=True):
            columns[name] = pa.array(values, CANDIDATE_SCHEMA.field(name).type).take(page_of_row)
        for place, name in ((1, "width_hint"), (2, "height_hint")):
            values = np.zeros(len(self), np.int32)
            absent = np.ones(len(self), bool)
            for hint in self._hints:
                if hint[place] is not None:
                    values[hint[0]], absent[hint[0]] = hint[place], False
            columns[name] = pa.array(values, mask=absent)
        return pa.Table.from_arrays(
            [columns[name] for name in CANDIDATE_SCHEMA.names], schema=CANDIDATE_SCHEMA
        )
