"""Records that are small on disk and huge in memory: each costs itself, in bounded memory, and the rest is read."""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from crawl_files import html_record, image, member, record, wat_record, wat_value

ROOT = Path(__file__).resolve().parents[2]
GOOD = member(wat_record(wat_value([image("good.jpg", "A good picture")])))
GOOD_PAGE = member(html_record("<img src=good.jpg alt='A good picture'>"))
HUGE = 200_000_000  # bytes; more than the whole process may hold
MAX_MEMORY_MB = 300

EXTRACT = """
import json, sys
from pathlib import Path
from crawl_files import extract
from process_memory import peak_bytes
rows, counts = extract(Path(sys.argv[1]), Path(sys.argv[2]), max_record_bytes=50_000_000)
print(json.dumps([len(rows), counts.dropped, counts.extra, peak_bytes() / 1e6]))
"""


def bomb(head, tail=b"", fill=b"a", size=HUGE):
    """A gzip member that holds `head`, a byte many times over, and `tail`."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    block = fill * 1_000_000
    parts = [packer.compress(head), *(packer.compress(block) for _ in range(size // len(block)))]
    return b"".join([*parts, packer.compress(tail), packer.flush()])


def headed(length, start=b""):
    """The start of a record that says it has so many bytes."""
    return record("metadata", start, content_type="application/json", length=length).removesuffix(b"\r\n\r\n")


def run(tmp_path, name, data):
    """(rows, reasons for lost links, other counts) of a file; its process stays under the limit."""
    path = tmp_path / name
    path.write_bytes(data)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", EXTRACT, str(path), str(tmp_path)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    rows, dropped, extra, peak = json.loads(done.stdout)
    assert peak < MAX_MEMORY_MB
    return rows, dropped, {reason: count for reason, count in extra.items() if reason != "pages"}


_TEXT = b'{"Envelope":{"x":"IMG@/src'


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        pytest.param(lambda: bomb(headed(HUGE + len(_TEXT), _TEXT)), "record_too_large", id="honest length"),
        pytest.param(lambda: bomb(headed(100, _TEXT)), "record_damaged", id="length that lies"),
        pytest.param(lambda: bomb(b"", fill=b"\0"), "record_damaged", id="no record at all"),
        pytest.param(lambda: bomb(b"WARC/1.0\r\nX: "), "record_damaged", id="endless header"),
        pytest.param(lambda: bomb(b"WARC/1.0\r\n", fill=b"X: y\r\n"), "record_damaged", id="endless headers"),
    ],
)
def test_a_decompression_bomb_costs_itself(tmp_path, data, fault):
    rows, dropped, extra = run(tmp_path, "x.warc.wat.gz", GOOD + data() + GOOD)
    assert (rows, dropped) == (2, {})
    assert extra in ({fault: 1}, {"record_bad_json": 1, fault: 1})


def test_a_bomb_at_the_end_and_one_that_is_cut_off(tmp_path):
    data = bomb(headed(HUGE))
    assert run(tmp_path, "x.warc.wat.gz", GOOD + data)[0] == 1
    rows, _, extra = run(tmp_path, "x.warc.wat.gz", GOOD + data[: len(data) // 2])
    assert (rows, extra) == (1, {"file_truncated": 1})


def test_a_bomb_in_content_encoding(tmp_path):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n"
    packed = member(record("response", head + bomb(b"<img src=a.jpg alt='A bad picture'>", fill=b" ")))
    rows, _, extra = run(tmp_path, "x.warc.gz", GOOD_PAGE + packed + GOOD_PAGE)
    assert (rows, extra) == (2, {"record_too_large": 1})


def test_a_record_near_the_limit_is_read(tmp_path):
    """16 MB of one text; it is read, and cut like any other long text."""
    long = json.dumps(wat_value([image("a.jpg", "word " * 3_200_000)])).encode()
    rows, _, extra = run(tmp_path, "x.warc.wat.gz", GOOD + member(wat_record(long)) + GOOD)
    assert (rows, extra) == (3, {"texts_cut": 1})
