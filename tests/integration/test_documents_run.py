"""Interleaved documents through the real command: several pages, the funnel, and files that hold no pages."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
from crawl_files import html_record, image, member, wat_record, wat_value

from crawl2clip.files import read_json
from crawl2clip.schema import DOCUMENT_SCHEMA

ROOT = Path(__file__).resolve().parents[2]


def command(folder, *words):
    """`python -m data_pipeline` on the folder's crawl files."""
    fixed = [f"output_dir={folder}/out", "executor.num_workers=2"]
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", *fixed, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def article(number):
    paragraphs = [
        f"<p>Paragraph {number}.{part}</p><img src={part}.jpg alt='Picture {part}'>" for part in range(3)
    ]
    menu = "<nav><ul><li><a href=/>Home</a><li><a href=/about>About</a></ul></nav>"
    return f"<html lang=en><title>{number}</title><body>{menu}<main>{''.join(paragraphs)}</main><footer>(c)</footer>"


def test_warc_files_become_documents(tmp_path):
    for name in ("a", "b"):
        records = [html_record(article(page), url=f"https://{name}.org/{page}/") for page in range(5)]
        records += [html_record("<p>Only text"), html_record(article(9), headers=("X-Robots-Tag: noai",))]
        (tmp_path / f"{name}.warc.gz").write_bytes(b"".join(map(member, records)))
    words = ["stage=documents", "source=warc", f"source.files=['{tmp_path}/*.warc.gz']"]
    done = command(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()[2:5]] == [
        ["documents", "14", "10"], ["no_image", "-2"], ["page_opted_out", "-2"],
    ]  # fmt: skip
    [row] = read_json(tmp_path / "out" / "funnel.json")["stages"]
    assert (row["stage"], row["rows_in"], row["rows_out"], row["shards"]) == ("documents", 14, 10, 2)
    assert (row["dropped"], row["extra"]) == ({"no_image": 2, "page_opted_out": 2}, {"images": 30})

    table = pq.read_table(tmp_path / "out" / "documents" / "b_warc.parquet")
    assert table.schema.equals(DOCUMENT_SCHEMA)
    rows = table.to_pylist()
    assert [row["page_url"] for row in rows] == [f"https://b.org/{page}/" for page in range(5)]
    assert rows[3]["texts"] == ["Paragraph 3.0", None, "Paragraph 3.1", None, "Paragraph 3.2", None]
    assert [each and each["url"] for each in rows[3]["images"]] == [
        None, "https://b.org/3/0.jpg", None, "https://b.org/3/1.jpg", None, "https://b.org/3/2.jpg",
    ]  # fmt: skip
    again = command(tmp_path, *words)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_a_wat_file_is_refused_before_work(tmp_path):
    (tmp_path / "a.wat.gz").write_bytes(member(wat_record(wat_value([image()]))))
    done = command(tmp_path, "stage=documents", f"source.files=['{tmp_path}/a.wat.gz']")
    assert done.returncode == 2
    assert "stage=documents needs the pages themselves" in done.stderr
    assert "source=warc" in done.stderr
    assert not (tmp_path / "out" / "documents").exists()
