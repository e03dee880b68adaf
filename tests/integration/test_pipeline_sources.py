"""Every source through the real command: published lists, a crawl behind a server, kills, and errors before work."""

import glob
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import image, member, wat_record, wat_value
from object_server import ObjectServer, s3_environment
from toy_stages import outputs

from crawl2clip.files import read_json
from crawl2clip.schema import uid_of

ROOT = Path(__file__).resolve().parents[2]
CRAWL = "CC-MAIN-2024-33"
ALL = ("https://h.org/all.jpg", "a picture that every list has")


def own(name):
    """Twenty pairs of one list, which it alone has, and one that all have."""
    return [(f"https://h.org/{name}/{number}.jpg", f"picture {number} of {name}") for number in range(20)] + [
        ALL
    ]


def write_parquet(path, url_name, text_name, **more):
    urls, texts = zip(*own(path.name), strict=True)
    pq.write_table(pa.table({**more, url_name: urls, text_name: texts}), path, row_group_size=7)


def write_tsv(path, order):
    path.write_text("".join("\t".join(pair[::order]) + "\n" for pair in own(path.name)))


def write_csv_gz(path, url_name, text_name):
    rows = [f'{n},"{text}",{url}\n' for n, (url, text) in enumerate(own(path.name))]
    path.write_bytes(gzip.compress("".join([f"id,{text_name},{url_name}\n", *rows]).encode(), mtime=0))


def write_jsonl_gz(path, url_name, text_name):
    lines = [json.dumps({url_name: url, text_name: text, "width": 1}) + "\n" for url, text in own(path.name)]
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


LAYOUTS = {
    "laion400m.snappy.parquet": lambda p: write_parquet(
        p, "URL", "TEXT", SAMPLE_ID=[1.0] * 21, LICENSE=["?"] * 21
    ),
    "laion5b.parquet": lambda p: write_parquet(p, "URL", "TEXT", LANGUAGE=["de"] * 21, hash=[1] * 21),
    "datacomp.parquet": lambda p: write_parquet(p, "url", "text", uid=["0" * 32] * 21),
    "coyo.parquet": lambda p: write_parquet(p, "url", "text", id=[1] * 21, image_phash=["x"] * 21),
    "relaion.parquet": lambda p: write_parquet(p, "url", "caption", punsafe=[0.1] * 21),
    "relaion.jsonl.gz": lambda p: write_jsonl_gz(p, "url", "caption"),
    "Train_GCC-training.tsv": lambda p: write_tsv(p, -1),
    "cc12m.tsv": lambda p: write_tsv(p, 1),
    "cc12m.csv.gz": lambda p: write_csv_gz(p, "image_url", "caption"),
}
"""Published lists in small, each in its own layout."""


def command(output_dir, *words):
    return [
        sys.executable, "-m", "data_pipeline", "recipe=datacomp_basic", f"output_dir={output_dir}",
        "executor.num_workers=2", "source.backoff_s=0.01", *words,
    ]  # fmt: skip


def run(output_dir, *words, status=0):
    done = subprocess.run(
        command(output_dir, *words), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stderr[-3000:]
    return done.stderr if status else done.stdout


def addresses(server):
    """The lists on the web server, as a user would write many of them."""
    return f"source.files=['{server.url}/bucket/lists/{{{','.join(LAYOUTS)}}}']"


def parquets(folder):
    """What the stages wrote; the funnel's tables beside it hold times."""
    return {
        name: data
        for name, data in outputs(folder).items()
        if name.endswith(".parquet") and not name.startswith("funnel/")
    }


@pytest.fixture
def lists(tmp_path):
    """A bucket with a list of every layout."""
    folder = tmp_path / "served" / "bucket" / "lists"
    folder.mkdir(parents=True)
    for name, write in LAYOUTS.items():
        write(folder / name)
    return folder


@pytest.mark.parametrize("place", ["folder", "http", "s3"])
def test_lists_of_every_layout_are_extracted_and_deduplicated(lists, tmp_path, monkeypatch, place):
    out = tmp_path / "out"
    with ObjectServer(lists.parents[1]) as server:
        s3_environment(monkeypatch, server, tmp_path)
        if place == "s3":
            pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// lists")
        server.script = {name: ["cut", "busy"] if place == "http" else ["busy"] for name in LAYOUTS}
        files = {
            "folder": f"source.files=['{lists}']",
            "http": addresses(server),
            "s3": "source.files=['s3://bucket/lists/']",
        }[place]
        run(out, "source=metadata", files, "stage=extract")
    table = run(out, "source=metadata", files, "stage=deduplicate")
    expected = {pair for name in LAYOUTS for pair in own(name)}
    rows = [
        row for path in (out / "deduplicated").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert {(row["url"], row["text"]) for row in rows} == expected
    assert len(rows) == len(expected)
    assert all(row["uid"] == uid_of(row["url"], row["text"]) for row in rows)
    assert {Path(row["crawl_file"]).name for row in rows if row["url"] != ALL[0]} == set(LAYOUTS)
    extract, deduplicate = read_json(out / "funnel.json")["stages"]
    assert (extract["rows_in"], extract["rows_out"], extract["dropped"]) == (21 * 9, 21 * 9, {})
    assert (deduplicate["rows_out"], deduplicate["dropped"]) == (len(expected), {"duplicate": 8})
    assert "duplicate" in table


@pytest.mark.parametrize("place", ["http", "s3", "folder"])
def test_a_crawl_is_extracted_wherever_it_is(tmp_path, monkeypatch, place):
    bucket = tmp_path / "served" / "bucket"
    paths = [f"crawl-data/{CRAWL}/segments/{n}/wat/{n}.warc.wat.gz" for n in range(6)]
    for number, path in enumerate(paths):
        (bucket / path).parent.mkdir(parents=True)
        values = [wat_value([image("x.jpg")], url=f"https://h{number}.org/{page}") for page in range(50)]
        (bucket / path).write_bytes(b"".join(member(wat_record(value)) for value in values))
    (bucket / "crawl-data" / CRAWL / "wat.paths.gz").write_bytes(gzip.compress("\n".join(paths).encode()))
    with ObjectServer(bucket.parent) as server:
        s3_environment(monkeypatch, server, tmp_path)
        if place == "s3":
            pytest.importorskip("s3fs", reason="pip install 's3fs' to read s3:// files")
        server.script = {".wat.gz": ["cut", "busy", "no_ranges", "busy"] if place == "http" else ["busy"] * 2}
        base = {"http": f"{server.url}/bucket", "s3": "s3://bucket", "folder": bucket}[place]
        words = [
            "source=commoncrawl", f"source.crawl={CRAWL}", f"source.base_url={base}", "source.num_files=4",
            "stage=extract",
        ]  # fmt: skip
        run(tmp_path / "out", *words)
        made = parquets(tmp_path / "out")
        assert len(made) == 4
        assert sum(pq.read_table(tmp_path / "out" / name).num_rows for name in made) == 200
        before = sum(server.requests.values())
        run(tmp_path / "out", *words)  # nothing is left to do, and nothing is asked for
        assert sum(server.requests.values()) == before
        assert parquets(tmp_path / "out") == made


def num_done(out):
    return len(list((out / "candidates").glob("*.stats.json")))


def lists_on_their_way(out):
    # Unlike Path.glob, this bears with a folder that changes under it.
    return glob.glob(f"{out}/candidates/.tmp/**/copy", recursive=True)


def test_kill_and_rerun_give_the_bytes_of_an_unbroken_run(lists, tmp_path):
    """kill -9 while some lists are done and others are on their way from a slow server."""
    with ObjectServer(lists.parents[1]) as server:
        files = addresses(server)
        run(tmp_path / "unbroken", "source=metadata", files, "stage=extract")
        expected = parquets(tmp_path / "unbroken")
        assert len(expected) == len(LAYOUTS)
        server.trouble = {".tsv": ("drip", 10**6), ".gz": ("drip", 10**6)}
        broken = tmp_path / "broken"
        process = subprocess.Popen(
            command(broken, "source=metadata", files, "stage=extract"),
            cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        whole = 5  # the parquet lists; those that are left come a byte at a time
        ends = time.monotonic() + 60
        while not (num_done(broken) == whole and lists_on_their_way(broken)) and time.monotonic() < ends:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert num_done(broken) == whole
        assert lists_on_their_way(broken)
        server.trouble = {}
        run(broken, "source=metadata", files, "stage=extract")
    assert parquets(broken) == expected
    assert not list(broken.rglob(".tmp"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "link,words\n", "has no column that is known to hold the url; it has 'link', 'words'. Recognised"),
        ("a.txt", "url,text\n", "the folder has no file that ends in .parquet, .csv, .csv.gz, .tsv,"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_used_are_refused_before_work(tmp_path, name, content, message):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / name).write_text(content)
    error = run(
        tmp_path / "out",
        "source=metadata",
        f"source.files=['{tmp_path}/lists']",
        "stage=extract",
        status=2,
    )
    assert "\nerror: source" in error or f"\nerror: {tmp_path}" in error
    assert message in error
    assert not list((tmp_path / "out").glob("*"))


def test_bad_rows_and_lists_are_in_the_funnel(tmp_path):
    (tmp_path / "a.csv").write_text(
        "url,text\nhttps://h.org/a.jpg,a nice picture\nnot-a-url,a nice picture\nx\n"
    )
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    table = run(tmp_path / "out", "source=metadata", f"source.files=['{tmp_path}']", "stage=extract")
    row = read_json(tmp_path / "out" / "funnel.json")["stages"][0]
    assert (row["rows_in"], row["rows_out"]) == (3, 1)
    assert row["dropped"] == {"invalid_url": 1, "row_broken": 1}
    assert row["extra"] == {"file_truncated": 1}
    assert "row_broken" in table
