"""Interleaved documents from a WARC file against boilerplate removal alone: CPU milliseconds a page, one core.

    python benchmarks/documents.py [pages=400] [repeats=5]

The file is made here: articles of about 60 kB with a menu, a side bar, scripts, 30 paragraphs and 13 images.
`ours` is the whole stage on it: read, decode, rewrite, remove boilerplate, cut at the images, join addresses, clean,
hash, write parquet. `floor` is the bare library, Resiliparse, on the same pages, decoded, for their text alone.
`extract` is the extract stage on the same file, for comparison: image-text pairs. They run alternately; medians.
"""

import gzip
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_pipeline.documents import DocumentWriter, read_documents
from data_pipeline.extract import CandidateWriter, ExtractConfig, read_pages
from data_pipeline.interleave import main_content
from data_pipeline.page import TEXT_SOURCES
from data_pipeline.sources import CrawlForm

CONFIG = ExtractConfig(
    text_sources=list(TEXT_SOURCES),
    min_text_length=5,
    max_text_length=2000,
    max_url_length=2000,
    max_record_bytes=50_000_000,
)
TARGET = 5  # times the floor: the library sees less of a page than its tags do


def main(words: list[str]) -> None:
    """Makes the file, runs all three in turn, prints the result line."""
    settings = {
        "pages": 400,
        "repeats": 5,
        **{key: int(value) for key, value in (word.split("=") for word in words)},
    }
    num_pages = settings["pages"]
    with tempfile.TemporaryDirectory() as folder:
        path, target = Path(folder) / "made.warc.gz", Path(folder) / "out.parquet"
        pages = make_pages(num_pages)
        path.write_bytes(b"".join(warc_record(number, page) for number, page in enumerate(pages)))
        kilobytes = sum(map(len, pages)) / num_pages / 1000
        print(f"{num_pages} pages of {kilobytes:.0f} kB, {settings['repeats']} repeats")
        work = {
            "ours": lambda: documents(path, target),
            "floor": lambda: [main_content(page) for page in pages],
            "extract": lambda: extract(path, target),
        }
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(settings["repeats"]):
            for name, each in work.items():
                started = time.process_time()
                each()
                seconds[name].append(time.process_time() - started)
    middle = {name: 1000 * statistics.median(times) / num_pages for name, times in seconds.items()}
    for name, milliseconds in middle.items():
        print(f"{name:8} {milliseconds:6.2f} ms a page, {1000 / milliseconds:6.0f} pages/s of CPU")
    print(
        f"result name=documents_cpu_ms_a_page ours={middle['ours']:.3f} floor={middle['floor']:.3f} "
        f"target={TARGET * middle['floor']:.3f} unit=ms"
    )


def documents(path: Path, target: Path) -> None:
    """The documents stage's work on one file."""
    with DocumentWriter(target, path.name, CONFIG) as writer:
        read_documents(path, writer)
    assert writer.counts.rows_out == writer.counts.rows_in > 0, writer.counts


def extract(path: Path, target: Path) -> None:
    """The extract stage's work on one file."""
    with CandidateWriter(target, path.name, CONFIG) as writer:
        for page, offset in read_pages(path, CrawlForm.warc, CONFIG, writer.counts):
            writer.add(page, offset)


def make_pages(count: int) -> list[str]:
    """Articles as sites write them, one in five not in English."""
    rng = random.Random(0)
    vocabulary = [
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(9000)
    ]
    accented = [word.replace("e", "é").replace("o", "ö") for word in vocabulary]
    return [make_page(rng, accented if rng.random() < 0.2 else vocabulary) for _ in range(count)]


def make_page(rng: random.Random, vocabulary: list[str]) -> str:
    """One article."""

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(vocabulary, k=rng.randint(low, high)))

    def links(number: int) -> str:
        return "".join(
            f'<li class="menu-item menu-item-{index}"><a href="/{words(1, 1)}" title="{words(1, 3)}">'
            f"<span>{words(1, 3)}</span></a></li>\n"
            for index in range(number)
        )

    content = []
    for index in range(30):
        if index % 5 == 0:
            content.append(f'<h2 id="section-{index}">{words(3, 7)}</h2>\n')
        link = f'<a href="https://site.org/{words(1, 1)}" class="link">{words(1, 4)}</a>'
        content.append(f'<p class="text">{words(20, 60)} <b>{words(1, 3)}</b> {link}, {words(20, 60)}.</p>\n')
        if index % 3 == 0:
            name = f"/img/{rng.getrandbits(40):x}"
            content.append(
                f'<figure class="wp-block-image"><img loading="lazy" width="800" height="600" src="{name}.jpg" '
                f'srcset="{name}-300.jpg 300w, {name}-800.jpg 800w" alt="{words(3, 9)}"><figcaption>{words(4, 9)}'
                "</figcaption></figure>\n"
            )
    small = "".join(
        f'<a href="/t"><img src="/thumb/{index}.png" alt="{words(1, 3)}"></a>' for index in range(3)
    )
    script = "".join(f"function f{index}(){{return '<div>' + {rng.random()};}}\n" for index in range(300))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{words(4, 8)}</title>\n'
        f"<style>{'.a{color:red} ' * 400}</style><script>{script}</script></head>\n<body class='single'>"
        f'<header class="site-header"><nav class="main-navigation"><ul>{links(40)}</ul></nav></header>\n'
        f'<div class="wrap"><main id="main"><article class="post">{"".join(content)}</article></main>\n'
        f'<aside class="sidebar"><div class="widget"><h3>{words(1, 2)}</h3><ul>{links(30)}</ul>{small}</div></aside>'
        f'</div>\n<footer class="site-footer"><ul>{links(20)}</ul></footer></body></html>'
    )


def warc_record(number: int, page: str) -> bytes:
    """A page as a response record, gzipped."""
    body = page.encode()
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(body)}\r\n\r\n"
    block = http.encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: https://site{number % 50}.org/{number}.html\r\n"
        "WARC-Date: 2024-05-18T01:58:10Z\r\nContent-Type: application/http; msgtype=response\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(head.encode() + block + b"\r\n\r\n", 6)


if __name__ == "__main__":
    main(sys.argv[1:])
