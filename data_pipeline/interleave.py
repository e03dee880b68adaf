"""One page as the ordered list of its texts and images, without its boilerplate.

What is boilerplate is Resiliparse's decision: the same project as FastWARC, Apache-2.0, wheels for every
Python we run on, needs nothing but FastWARC, and is what DataComp-LM reads Common Crawl with (arXiv 2406.11794);
extractors differ in which pages they keep more than in what a model learns from them (arXiv 2602.19548). Its rules
drop navigation, headers and footers, side bars, lists of links, advertisements, galleries and hidden elements.

The surprising part: the page is not given to it as it was written, see `plain_markup`.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

from data_pipeline.html_page import PageReader
from data_pipeline.markup import read_tags
from data_pipeline.page import ImageLink, Page
from data_pipeline.plain_markup import PlainMarkup, split_at_images, without_marks
from data_pipeline.text import clean_text

_MAX_CHARACTERS = 6_000_000  # of a page; Common Crawl cuts pages at 5 MiB
_BLANK_LINES = re.compile(r"\n{3,}")


class Interleaved(NamedTuple):
    """A page in reading order.

    Attributes:
        page: what holds for all of it; its address and date are empty.
        items: texts, clean, with line ends between blocks; and images, each with its links: its src, the one
            loaded lazily, its largest version, as far as they differ.
    """

    page: Page
    items: list[str | list[ImageLink]]


def read_interleaved(html: str, wanted: Collection[str]) -> Interleaved | None:
    """The main content of a page.

    Args:
        html: the page.
        wanted: where the images' texts may come from, of `TEXT_SOURCES`.

    Returns:
        It, possibly without any items; None for a page that is larger than pages for people are.
    """
    if len(html) > _MAX_CHARACTERS:
        return None
    html = without_marks(html)
    reader, plain = PageReader(html, wanted), PlainMarkup(html)
    known = reader.tags
    for tag in read_tags(html, known, others=True):
        plain.add(tag)
        if tag.name in known:
            reader.read(tag)
        if plain.too_large:
            return None
    page = reader.finish()
    items: list[str | list[ImageLink]] = []
    for piece in split_at_images(main_content(plain.finish())):
        if isinstance(piece, int):
            items.append([page.images[index] for index in reader.slots[piece]])
        elif text := _clean_lines(piece):
            items.append(text)
    return Interleaved(page, items)


def main_content(html: str) -> str:
    """The text of a page without its boilerplate, with line ends between blocks."""
    from resiliparse.extract.html2text import extract_plain_text

    # alt_texts: without it, figures are left out; the page has no alt texts here, its images are marks.
    return extract_plain_text(html, main_content=True, list_bullets=False, alt_texts=True)


def _clean_lines(text: str) -> str:
    if not text or text.isspace():
        return ""
    return _BLANK_LINES.sub("\n\n", "\n".join(map(clean_text, text.split("\n")))).strip("\n")
