"""One measured thing on one WAT, in a process of its own; for benchmarks/extract.py.

    python extract_once.py ours WAT TARGET [min_text_length]   the extract stage's work: parquet written
    python extract_once.py python WAT TARGET                   the same without compiled code
    python extract_once.py pairs WAT                           what cc2dataset's function gives: uid, url, text, page of
                                                               each row as objects; nothing is written
    python extract_once.py floor WAT                           decompression alone, by the fastest library here
    python extract_once.py cleaning WAT                        clean_text over the texts of all image links
    python extract_once.py language WAT                        the default language detector over the same texts

Prints the CPU seconds as JSON; start and imports are not in them.
"""

import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline import native
from data_pipeline.extract import CandidateWriter, ExtractConfig, read_pages
from data_pipeline.sources import CrawlForm
from data_pipeline.stage import Counts
from data_pipeline.text import clean_text

_PEER_COLUMNS = ("uid", "url", "text", "crawl_file", "page_url")


def config(min_text_length: int) -> ExtractConfig:
    """LAION-5B's limits; of the texts, alt only, as cc2dataset."""
    return ExtractConfig(
        text_sources=["alt"],
        min_text_length=min_text_length,
        max_text_length=2000,
        max_url_length=2000,
        max_record_bytes=50_000_000,
    )


def extract(wat: Path, target: Path, min_text_length: int) -> Counts:
    """The stage's work on one file."""
    settings = config(min_text_length)
    with CandidateWriter(target, wat.name, settings) as writer:
        for page, offset in read_pages(wat, CrawlForm.wat, settings, writer.counts):
            writer.add(page, offset)
    return writer.counts


def make_pairs(wat: Path) -> int:
    """The rows as Python objects, and how many there are."""
    settings, rows = config(1), 0
    writer = CandidateWriter(io.BytesIO(), wat.name, settings)  # pyright: ignore[reportArgumentType]

    def take() -> None:
        nonlocal rows
        table = writer._columns.to_table()
        rows += len(list(zip(*(table[name].to_pylist() for name in _PEER_COLUMNS), strict=True)))
        writer._columns.clear()

    writer._flush = take
    for page, _ in read_pages(wat, CrawlForm.wat, settings, writer.counts):
        writer.add(page, 0)
    take()
    return rows


def warm_up() -> None:
    """Does everything once on a small file, so that what is imported late and made once is not measured."""
    from extract_crawl import write_wat

    with tempfile.TemporaryDirectory() as folder:
        write_wat(Path(folder) / "few.warc.wat.gz", 30)
        extract(Path(folder) / "few.warc.wat.gz", Path(folder) / "few.parquet", 5)


def texts_of(wat: Path) -> list[str]:
    """The uncleaned texts of all image links that have one."""
    pages = read_pages(wat, CrawlForm.wat, config(5), Counts())
    return [image.text for page, _ in pages for image in page.images if image.text]


def decompression(wat: Path) -> tuple[str, Callable[[], object]]:
    """The fastest way to decompress a file that is installed here: its name, and a call that does it."""
    if find_spec("isal") is not None:
        from isal import igzip  # pyright: ignore[reportMissingImports]

        return "isal", lambda: read_through(igzip.open(wat, "rb"))
    if find_spec("zlib_ng") is not None:
        from zlib_ng import gzip_ng  # pyright: ignore[reportMissingImports]

        return "zlib-ng", lambda: read_through(gzip_ng.open(wat, "rb"))
    return "fastwarc", lambda: read_records(wat)


def read_through(file) -> None:
    """Reads an open file to its end."""
    with file:
        while file.read(1 << 18):
            pass


def read_records(wat: Path) -> None:
    """Reads every record."""
    from fastwarc.warc import ArchiveIterator

    with open(wat, "rb") as file:
        for record in ArchiveIterator(file, parse_http=False):
            record.reader.read()


def main(mode: str, wat: Path, rest: list[str]) -> dict[str, object]:
    """Does it once and says what it took."""
    told: dict[str, object] = {}
    warm_up()
    if mode == "python":
        native.load = lambda: None
        mode = "ours"
    if mode == "pairs":
        started = time.process_time()
        told["rows"] = make_pairs(wat)
    elif mode == "ours":
        started = time.process_time()
        counts = extract(wat, Path(rest[0]), int(rest[1]) if len(rest) > 1 else 5)
        told = {"rows": counts.rows_out, "dropped": dict(counts.dropped)}
    elif mode == "floor":
        told["by"], work = decompression(wat)
        started = time.process_time()
        work()
    else:
        texts = texts_of(wat)
        told["texts"] = len(texts)
        if mode == "language":
            from data_pipeline.language import LanguageDetector, make_detector

            cleaned, detector = [clean_text(text) for text in texts], make_detector(LanguageDetector.fasttext)
            started = time.process_time()
            detector.detect(cleaned)
        else:
            started = time.process_time()
            for text in texts:
                clean_text(text)
    return told | {"cpu_s": time.process_time() - started}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
