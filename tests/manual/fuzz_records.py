"""Fuzzes the record parser: broken crawl files and records must give pages or counted reasons, never an exception.

    python tests/manual/fuzz_records.py [seconds=300] [seed=0]

Mutates the JSON or HTML of records, whole records, and whole files (cut, spliced, with flipped bytes and bytes from
elsewhere), and checks after each that compiled code and Python
give the same, that every image link is accounted for, that every reason is one of the closed lists
and that what was written can be read back. Prints how many files were tried; one that fails is written to runs/fuzz/
and its path printed. The seconds are CPU time.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from crawl_files import extract_both_ways, html_record, image, member, wat_record, wat_value  # noqa: E402

from data_pipeline.extract import DROP_REASONS  # noqa: E402
from data_pipeline.records import RecordFault  # noqa: E402

_EXTRA = {fault.value for fault in RecordFault} | {"pages", "pages_opted_out", "texts_cut"}
_METAS = [
    {"name": "HTML@/lang", "content": "de"},
    {"name": "robots", "content": "index"},
    {"property": "og:image", "content": "/o.jpg"},
]
_LINKS = [
    image("a.jpg", "Ein Bild &amp; mehr"),
    {"path": "IMG@/src", "url": "//cdn.example/b c.png", "alt": None, "title": "caf\u00e9"},
    {"path": "A@/href", "url": "http://creativecommons.org/licenses/by/4.0/", "text": "x"},
    image("data:,x", "\ud83d\ude00 smile \ud83d"),
]
_HEAD = {"Base": "/b/", "Title": "T", "Link": [{"path": "LINK@/href", "url": "x.css"}]}
_HEADERS = {"X-Robots-Tag": ["all", "otherbot: noai"]}
_PAGE = (
    "<html lang=de><base href='../x/'><meta name=robots content=all><figure><img srcset='a.jpg 1x, b.jpg 2x' alt=x>"
    "<figcaption>caption</figcaption></figure><picture><source srcset=c.webp><img src=d.jpg alt='a picture'>"
)
BLOCKS = {
    "warc.wat.gz": [
        json.dumps(wat_value(_LINKS, metas=_METAS, head=_HEAD, headers=_HEADERS)).encode(),
        json.dumps(wat_value([image(f"{n}.jpg") for n in range(40)])).encode(),
    ],
    "warc.gz": [_PAGE.encode(), b"<img src=a.jpg alt='A nice picture'>" * 9],
}
WRAP = {"warc.wat.gz": wat_record, "warc.gz": html_record}
_TOKENS = (
    b'"path":"IMG@/src"', b"null", b"1e999", b"NaN", b"[[", b"{}", b'"Links":', b"\\ud800", b"\\u0000", b"\xff\xfe",
    b"\0", b"}", b'"', b"\r\n", b"Content-Length: 7", b"Content-Encoding: gzip", b"\x1f\x8b\x08", b"WARC/1.0",
    b"<img src=", b"&#0;", b"<base href=", b"data-src=", b"noai", b"http://[",
)  # fmt: skip


def mutate(rng: random.Random, data: bytes) -> bytes:
    """A few random edits."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        to = min(at + rng.choice((1, 1, 3, 20, 200)), len(data))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[to:]
        elif kind == 2:
            data = data[:at] + rng.choice(_TOKENS) + data[at:]
        elif kind == 3:
            data = data[:at] + rng.choice(_TOKENS) + data[to:]
        elif kind == 4:
            data = data[:to] + data[at:]
        else:
            data = data[:at] + rng.randbytes(rng.randint(1, 9)) + data[at:]
    return data


def make_file(rng: random.Random, form: str) -> bytes:
    """A file of a few records: some broken before they are packed, some after, some not."""
    pack, records = rng.choice((member, member, bytes)), []
    for _ in range(rng.randint(1, 4)):
        block = rng.choice(BLOCKS[form])
        record = WRAP[form](mutate(rng, block) if rng.random() < 0.7 else block)
        records.append(pack(mutate(rng, record) if rng.random() < 0.2 else record))
    data = member(b"".join(records)) if rng.random() < 0.1 else b"".join(records)
    return mutate(rng, data) if rng.random() < 0.3 else data


def check(data: bytes, form: str, folder: Path) -> Counter[str]:
    """Extracts from a file of these bytes and checks what came of it; the counts, for the summary."""
    path = folder / f"x.{form}"
    path.write_bytes(data)
    rows, counts = extract_both_ways(path, folder)
    assert counts.rows_in == counts.rows_out + counts.dropped.total(), counts
    assert counts.rows_out == len(rows)
    assert set(counts.dropped) <= set(DROP_REASONS), counts
    assert set(counts.extra) <= _EXTRA, counts
    for row in rows:
        assert row["url"].startswith(("http://", "https://"))
        assert row["text"] == " ".join(row["text"].split())
    return counts.dropped + counts.extra + Counter(rows=len(rows))


def run(seconds: float, seed: int) -> None:
    """Random mutations for that much CPU time."""
    rng, started, tried, seen = random.Random(seed), time.process_time(), 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        while time.process_time() - started < seconds:
            form = rng.choice(tuple(BLOCKS))
            data = make_file(rng, form)
            try:
                seen += check(data, form, Path(folder))
            except Exception:  # whatever it is, the input is kept and the run ends with it
                kept = ROOT / "runs" / "fuzz" / f"{seed}-{tried}.{form}"
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_bytes(data)
                print(f"failed after {tried} inputs: {kept}")
                raise
            tried += 1
    print(f"{tried} files in {seconds:g} CPU s, no failure; what became of them: {dict(seen.most_common())}")


if __name__ == "__main__":
    given = dict(word.split("=") for word in sys.argv[1:])
    run(float(given.get("seconds", 300)), int(given.get("seed", 0)))
