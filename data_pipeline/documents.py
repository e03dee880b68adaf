"""The documents stage: WARC files to interleaved documents, one row a page, in the style of OBELICS and MMC4.

A shard is one crawl file, a row in is a page. It becomes a document, the ordered list of the texts and images
of its main content, or is dropped for one reason of `DocumentFault`. Addresses, texts, opt-outs and limits are
those of the extract stage, with its settings, so an image's uid is the uid of the candidate that extraction makes
of it, and downloads can be joined to documents.

The surprising part: it runs only when it is named. It is the start of another kind of data set, reads every
page a second time, and the stages that make image-text pairs need nothing from it.
"""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOCUMENT_SCHEMA, document_uid, uid_of
from data_pipeline.extract import ExtractConfig, ExtractStage
from data_pipeline.interleave import read_interleaved
from data_pipeline.page import ImageLink, language_tag, page_date, too_long
from data_pipeline.records import RecordFault, read_records
from data_pipeline.sources import (
    CrawlFile,
    CrawlForm,
    SourceKind,
    first_bytes_of,
    form_of,
    list_files,
    local_copy,
    validate_source,
)
from data_pipeline.stage import Counts, Shard
from data_pipeline.text import clean_caption, clean_text
from data_pipeline.urls import PageBase, UrlFault, join_url, page_base
from data_pipeline.warc import HtmlRecord, read_html_record

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

_ROWS_A_BATCH = 1000  # documents held in memory before they are written
_CHARACTERS_A_BATCH = 20_000_000  # of their texts


class DocumentFault(str, Enum):
    """Why a page gives no document."""

    page_opted_out = "page_opted_out"  # the page says noai or noimageai
    page_too_large = "page_too_large"  # more characters or elements than pages for people have
    long_base = "long_base"  # its <base href> is over extract.max_url_length
    no_text = "no_text"  # its main content has no text
    no_image = "no_image"  # its main content has no image with an address that can be used


@dataclass
class DocumentsStage(ExtractStage):
    """Reads WARC files, with the extract stage's settings as far as they concern a page's images."""

    def run(self, context: Any, shard: Shard, temporary: Path) -> Counts:
        """Reads one crawl file."""
        file = CrawlFile(shard.name, *shard.inputs)
        with (
            local_copy(file, self.source, temporary.parent) as path,
            DocumentWriter(temporary / f"{shard.name}.parquet", file.label, self.config) as writer,
        ):
            form = self.source.form or form_of(file.location, first_bytes_of(path))
            if form is not CrawlForm.warc:
                raise DataError(_no_pages(f"{file.label} is a {form.value.upper()} file"))
            read_documents(path, writer)
        return writer.counts


def make_stage(config: "PipelineConfig") -> DocumentsStage:
    """The stage that the settings describe.

    Raises:
        ConfigError: the source names no files, or files that hold no pages.
    """
    source = config.source
    if source.kind not in (SourceKind.local, SourceKind.commoncrawl):
        raise ConfigError(_no_pages(f"source.kind is {source.kind.value}"))
    validate_source(source)
    if source.form is not None and source.form is not CrawlForm.warc:
        raise ConfigError(_no_pages(f"source.form is {source.form.value}"))
    if source.kind is SourceKind.local and source.form is None:
        names = [file.location for file in list_files(source, Path())]
        wats = [name for name in names if form_of(name, b"") is CrawlForm.wat]
        if wats:
            raise ConfigError(
                _no_pages(f"{len(wats)} of the {len(names)} files of source.files are WAT files ({wats[0]})")
            )
    output_dir = Path(config.output_dir)
    names = ("text_sources", "max_text_length", "max_url_length", "max_record_bytes")
    settings = {name: getattr(config.extract, name) for name in names}
    settings["text_sources"] = list(settings["text_sources"])
    settings["form"] = source.form.value if source.form is not None else None
    return DocumentsStage(
        "documents", output_dir / "documents", settings, source, config.extract, output_dir / "source"
    )


def _no_pages(found: str) -> str:
    return (
        f"stage=documents needs the pages themselves, and {found}: metadata without their text. Give the WARC "
        "files of the same crawl, for example source=warc, or source=commoncrawl source.form=warc"
    )


def read_documents(path: Path, writer: "DocumentWriter") -> None:
    """Gives a WARC file's pages to a writer, in order.

    What is lost of the file is counted in `writer.counts.extra`, under `RecordFault`.
    """
    from fastwarc.warc import WarcRecordType

    def lose(fault: RecordFault) -> None:
        writer.counts.extra[fault.value] += 1

    kinds = WarcRecordType.response | WarcRecordType.resource
    records = read_records(path, kinds, lose, max_bytes=writer.config.max_record_bytes, decode_http=True)
    for record, payload in records:
        found = read_html_record(record, payload)
        if isinstance(found, RecordFault):
            lose(found)
        elif found is not None:
            writer.add(found, record.stream_pos)


class DocumentWriter:
    """Turns pages into documents and writes them, a batch at a time, to one parquet file.

    A context manager: the file is whole when the block ends.
    """

    def __init__(self, path: Path, crawl_file: str, config: ExtractConfig) -> None:
        self.counts = Counts()
        self.crawl_file = crawl_file
        self.config = config
        self._writer = pq.ParquetWriter(path, DOCUMENT_SCHEMA, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._characters = 0

    def __enter__(self) -> "DocumentWriter":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def add(self, found: HtmlRecord, offset: int) -> None:
        """Adds a page's document, or counts why there is none."""
        if too_long(found.url, None, self.config.max_url_length):
            self.counts.extra[RecordFault.record_long_address.value] += 1
            return
        if page_base(found.url, None) is None:
            self.counts.extra[RecordFault.record_no_address.value] += 1
            return
        self.counts.rows_in += 1
        document = self._document(found)
        if isinstance(document, DocumentFault):
            self.counts.dropped[document.value] += 1
            return
        self._rows.append({**document, "crawl_file": self.crawl_file, "offset": offset})
        self._characters += sum(len(text) for text in document["texts"] if text is not None)
        if len(self._rows) >= _ROWS_A_BATCH or self._characters >= _CHARACTERS_A_BATCH:
            self._flush()

    def _document(self, found: HtmlRecord) -> dict[str, Any] | DocumentFault:
        if found.opted_out:
            return DocumentFault.page_opted_out
        read = read_interleaved(found.html, self.config.text_sources)
        if read is None:
            return DocumentFault.page_too_large
        page, items = read
        if page.opted_out:
            return DocumentFault.page_opted_out
        if too_long(found.url, page.base_href, self.config.max_url_length):
            return DocumentFault.long_base
        base = page_base(found.url, page.base_href)
        assert base is not None  # `add` has looked
        texts, images = self._aligned(items, base)
        if not any(texts):
            return DocumentFault.no_text
        if not any(images):
            return DocumentFault.no_image
        url = clean_text(found.url)
        parts = [image["uid"] if image else text or "" for text, image in zip(texts, images, strict=True)]
        self.counts.extra["images"] += sum(image is not None for image in images)
        return {
            "uid": document_uid(url, parts),
            "page_url": url,
            "page_date": page_date(found.date),
            "page_language": language_tag(page.language),
            "license": page.license,
            "texts": texts,
            "images": images,
        }

    def _aligned(
        self, items: list[str | list[ImageLink]], base: PageBase
    ) -> tuple[list[str | None], list[dict[str, Any] | None]]:
        """The two lists of a document. Texts between which an image was dropped become one."""
        texts: list[str | None] = []
        images: list[dict[str, Any] | None] = []
        for item in items:
            if isinstance(item, str):
                if texts and texts[-1] is not None:
                    texts[-1] += "\n" + item
                else:
                    texts.append(item)
                    images.append(None)
                continue
            image = self._image(item, base)
            if isinstance(image, UrlFault):
                self.counts.extra[f"images_{image.value}"] += 1
            elif images and images[-1] is not None and images[-1]["url"] == image["url"]:
                self.counts.extra["images_repeated"] += 1  # once lazily, and once for those without scripts
            else:
                texts.append(None)
                images.append(image)
        return texts, images

    def _image(self, links: list[ImageLink], base: PageBase) -> dict[str, Any] | UrlFault:
        """An image by the last of its links that can be used: its largest version, else the lazy one, else its src."""
        fault = UrlFault.no_url
        for link in reversed(links):
            url = join_url(base, link.url, max_length=self.config.max_url_length)
            if isinstance(url, UrlFault):
                fault = url
                continue
            clean = clean_caption if link.text_source == "figcaption" else clean_text
            text = clean(link.text)[: self.config.max_text_length].rstrip() if link.text else ""
            return {
                "url": url,
                "text": text or None,
                "text_source": link.text_source if text else None,
                "uid": uid_of(url, text),
                "width_hint": link.width_hint,
                "height_hint": link.height_hint,
            }
        return fault

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=DOCUMENT_SCHEMA))
            self.counts.rows_out += len(self._rows)
            self._rows.clear()
            self._characters = 0
