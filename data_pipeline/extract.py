"""The extract stage: crawl files to candidates, one (url, text) pair for each image link of a page.

A shard is one crawl file. Every image link that is seen is a row in; it becomes a candidate or is dropped
for one reason of `DROP_REASONS`. What is lost before links can be seen, such as a record that is damaged, is
counted beside the rows, under the reasons of `records.RecordFault`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from crawl2clip.schema import CANDIDATE_SCHEMA
from data_pipeline import native
from data_pipeline.candidate_columns import CandidateColumns, OfPage, PairLists
from data_pipeline.packed_pairs import PackedPairs
from data_pipeline.page import TEXT_SOURCES, ImageLink, PackedImages, Page, language_tag, page_date, too_long
from data_pipeline.records import RecordFault, read_records
from data_pipeline.sources import (
    CrawlFile,
    CrawlForm,
    SourceConfig,
    SourceKind,
    first_bytes_of,
    form_of,
    list_files,
    local_copy,
    named_columns,
    validate_source,
)
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.text import clean_caption, clean_text
from data_pipeline.urls import PageBase, UrlFault, join_url, page_base
from data_pipeline.warc import read_warc_page
from data_pipeline.wat import may_have_images, read_wat_page
from data_pipeline.wat_scanner import WatScanner

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

_LOG = logging.getLogger(__name__)
_ROWS_A_BATCH = 50_000  # candidates held in memory before they are written
_BYTES_A_BATCH = 32_000_000  # of their addresses and texts
_LINKS_AT_ONCE = (
    10_000  # of a page: a million short relative addresses may become a million long absolute ones
)
# Columns whose values repeat; a dictionary of the others would be made and thrown away.
_REPEATED_COLUMNS = ["text_source", "page_url", "page_language", "license", "crawl_file", "page_date"]


@dataclass(kw_only=True, slots=True)
class ExtractConfig:
    """Which image links become candidates."""

    text_sources: list[str] = MISSING  # where texts may come from: names in page.TEXT_SOURCES
    min_text_length: int = MISSING  # characters of the cleaned text; shorter ones are dropped
    max_text_length: int = MISSING  # characters; what is longer is cut there
    max_url_length: int = MISSING  # characters; longer addresses are dropped
    max_record_bytes: int = (
        MISSING  # of one record's content, also once it is uncompressed; larger ones are skipped
    )

    def __post_init__(self) -> None:
        for source in self.text_sources if isinstance(self.text_sources, list) else ():
            if source not in TEXT_SOURCES:
                raise ConfigError(
                    unknown_name("text source", source, TEXT_SOURCES, do="See extract.text_sources.")
                )
        for name in ("min_text_length", "max_text_length", "max_url_length", "max_record_bytes"):
            value, least = getattr(self, name), 0 if name.startswith("min") else 1
            if isinstance(value, int) and value < least:
                raise ConfigError(f"extract.{name} is {value}; give {least} or more")


class TextFault(str, Enum):
    """Why an image link's text gives no candidate."""

    bad_link = "bad_link"  # WAT: its address or its text is no text
    page_opted_out = "page_opted_out"  # the page says noai or noimageai
    no_text = "no_text"
    text_too_short = "text_too_short"


DROP_REASONS = (*(fault.value for fault in TextFault), *(fault.value for fault in UrlFault))
"""Everything that can become of an image link that is no candidate."""


@dataclass
class ExtractStage(Stage):
    """Reads crawl files.

    Attributes:
        source: where they are.
        config: which links become candidates.
        cache: folder for a crawl's list of files.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    source: SourceConfig
    config: ExtractConfig
    cache: Path

    def shards(self) -> Iterator[Shard]:
        """One for each crawl file."""
        for file in list_files(self.source, self.cache):
            yield Shard(file.name, (file.location, file.label))

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Reads one crawl file."""
        file = CrawlFile(shard.name, *shard.inputs)
        if self.source.kind is SourceKind.metadata:
            return self._run_list(file, temporary)
        with (
            local_copy(file, self.source, temporary.parent) as path,
            CandidateWriter(temporary / f"{shard.name}.parquet", file.label, self.config) as writer,
        ):
            form = self.source.form or form_of(file.location, first_bytes_of(path))
            for page, offset in read_pages(path, form, self.config, writer.counts):
                writer.add(page, offset)
        return writer.counts

    def _run_list(self, file: CrawlFile, temporary: Path) -> Counts:
        from data_pipeline.metadata_candidates import write_list  # which takes reasons from here

        target = temporary / f"{file.name}.parquet"
        with local_copy(file, self.source, temporary.parent) as path:
            return write_list(
                path, file.location, file.label, named_columns(self.source), self.config, target
            )


def make_stage(config: "PipelineConfig") -> ExtractStage:
    """The stage that the settings describe.

    Raises:
        ConfigError: the source names no files.
    """
    validate_source(config.source)
    _LOG.info(
        "extract: %s",
        "compiled" if native.load() else "in Python; python -m data_pipeline.native makes it faster",
    )
    output_dir = Path(config.output_dir)
    settings = asdict(config.extract)
    settings["form"] = config.source.form.value if config.source.form is not None else None
    if config.source.kind is SourceKind.metadata:
        settings["columns"] = list(named_columns(config.source))
    return ExtractStage(
        "extract", output_dir / "candidates", settings, config.source, config.extract, output_dir / "source"
    )


def read_pages(
    path: Path, form: CrawlForm, config: ExtractConfig, counts: Counts
) -> Iterator[tuple[Page, int]]:
    """Yields a crawl file's pages, each with its record's byte offset.

    Args:
        path: the file, local.
        form: what it holds.
        config: which texts are wanted, and how large a record may be.
        counts: gets everything that is lost in `extra`, under `RecordFault`, and the number of pages.
    """
    from fastwarc.warc import WarcRecordType

    def lose(fault: RecordFault) -> None:
        counts.extra[fault.value] += 1

    is_wat = form is CrawlForm.wat
    kind = WarcRecordType.metadata if is_wat else WarcRecordType.response | WarcRecordType.resource
    records = read_records(path, kind, lose, max_bytes=config.max_record_bytes, decode_http=not is_wat)
    wanted = frozenset(config.text_sources)
    read_wat = _wat_reader(wanted)
    for record, payload in records:
        if is_wat:
            page = read_wat(payload)
        else:
            page = read_warc_page(record, payload, wanted)
        if isinstance(page, RecordFault):
            lose(page)
        elif page is not None:
            counts.extra["pages"] += 1
            yield page, record.stream_pos


def _wat_reader(wanted: frozenset[str]) -> Callable[[bytes], Page | RecordFault | None]:
    """What reads a WAT record: `read_wat_page` for those that may have images, None for all others.

    Where there is a compiled scanner it reads what it can, and faster than Python finds that there may be images.
    """

    def read(payload: bytes) -> Page | RecordFault | None:
        return read_wat_page(payload, wanted) if may_have_images(payload) else None

    library = native.load()
    if library is None or "alt" not in wanted:
        return read
    scan = WatScanner(library, wanted).read

    def scan_or_read(payload: bytes) -> Page | RecordFault | None:
        page = scan(payload)
        if page is None:
            return read(payload)
        return page if page.images or page.textless_links or may_have_images(payload) else None

    return scan_or_read


class CandidateWriter:
    """Turns pages into candidates and writes them, a batch at a time, to one parquet file.

    A context manager: the file is whole when the block ends.
    """

    def __init__(self, path: Path, crawl_file: str, config: ExtractConfig) -> None:
        self.counts = Counts()
        self.config = config
        self._writer = pq.ParquetWriter(
            path,
            CANDIDATE_SCHEMA,
            compression="zstd",
            use_dictionary=_REPEATED_COLUMNS,  # pyright: ignore[reportArgumentType] (a list of names may stand here)
        )
        library = native.load()
        lengths = config.min_text_length, config.max_text_length, config.max_url_length
        self._pairs = PackedPairs(library, *lengths) if library is not None else PairLists()
        self._columns = CandidateColumns(crawl_file, self._pairs)

    def __enter__(self) -> "CandidateWriter":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, page: Page, offset: int) -> None:
        """Adds a page's candidates, and counts what becomes of each of its image links."""
        counts, dropped = self.counts, self.counts.dropped
        if too_long(page.url, page.base_href, self.config.max_url_length):
            counts.extra[RecordFault.record_long_address.value] += 1
            return
        base = page_base(page.url, page.base_href)
        if base is None:
            counts.extra[RecordFault.record_no_address.value] += 1
            return
        num_images = len(page.images) + page.textless_links
        counts.rows_in += num_images + page.bad_links
        if page.bad_links:
            dropped[TextFault.bad_link.value] += page.bad_links
        if page.opted_out:
            counts.extra["pages_opted_out"] += 1
            if num_images:
                dropped[TextFault.page_opted_out.value] += num_images
            return
        if page.textless_links:
            dropped[TextFault.no_text.value] += page.textless_links
        of_page = OfPage(
            clean_text(page.url),
            language_tag(page.language),
            page.license,
            offset,
            page_date(page.date),
        )
        if isinstance(page.images, PackedImages):
            self._add_packed(page.images, base)
            self._end_page(of_page)
        else:
            for start in range(0, len(page.images), _LINKS_AT_ONCE):
                self._add_links(page.images[start : start + _LINKS_AT_ONCE], base)
                self._end_page(of_page)

    def _end_page(self, page: OfPage) -> None:
        self._columns.end_page(page)
        if len(self._pairs) >= _ROWS_A_BATCH or self._pairs.size_bytes >= _BYTES_A_BATCH:
            self._flush()

    def _add_links(self, images: Sequence[ImageLink], base: PageBase) -> None:
        """Adds what image links give; the others are counted as dropped."""
        for address, text, text_source, width_hint, height_hint in images:
            cleaned = clean_caption(text) if text_source == "figcaption" else clean_text(text)
            pair = self._pair_of(base, address, cleaned)
            if pair is None:
                continue
            self._pairs.append(*pair, text_source)
            if width_hint is not None or height_hint is not None:
                self._columns.hint(width_hint, height_hint)

    def _add_packed(self, images: PackedImages, base: PageBase) -> None:
        """The same by compiled code, and link by link where that does not know what to do."""
        assert isinstance(self._pairs, PackedPairs), "links are packed by compiled code"
        too_short, data_urls = self._pairs.extend(images, base, partial(self._pair, base))
        if too_short:
            self.counts.dropped[TextFault.text_too_short.value] += too_short
        if data_urls:
            self.counts.dropped[UrlFault.data_url.value] += data_urls

    def _pair(self, base: PageBase, address: str, text: str) -> tuple[str, str] | None:
        """The (url, text) pair of an image link; None if it is dropped, which is counted."""
        return self._pair_of(base, address, clean_text(text))

    def _pair_of(self, base: PageBase, address: str, text: str) -> tuple[str, str] | None:
        """The same with a text that is clean."""
        config, dropped = self.config, self.counts.dropped
        if len(text) < config.min_text_length or not text:
            dropped[(TextFault.text_too_short if text else TextFault.no_text).value] += 1
            return None
        if len(text) > config.max_text_length:
            text = text[: config.max_text_length].rstrip()
            self.counts.extra["texts_cut"] += 1
        url = join_url(base, address, max_length=config.max_url_length)
        if isinstance(url, UrlFault):
            dropped[url.value] += 1
            return None
        return url, text

    def _flush(self) -> None:
        if len(self._columns):
            self._writer.write_table(self._columns.to_table())
            self.counts.rows_out += len(self._columns)
            self._columns.clear()
