"""The funnel of single files, of a run of the command over crawl files of which some are damaged."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from crawl_files import image, member, wat_record, wat_value

from crawl2clip.files import read_json

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def crawl(tmp_path):
    """A whole WAT, one that is cut off in its last record, one that is a page of an error, and an empty one."""
    pages = [
        member(wat_record(wat_value([image(f"{page}.jpg"), image("x.jpg", "")], url=f"https://h{page}.org/")))
        for page in range(6)
    ]
    (tmp_path / "a.wat.gz").write_bytes(b"".join(pages))
    (tmp_path / "b.wat.gz").write_bytes(b"".join(pages)[:-40])
    (tmp_path / "c.wat.gz").write_bytes(b"<html>503 Slow Down</html>")
    (tmp_path / "d.wat.gz").write_bytes(b"")
    return tmp_path


def command(crawl, *arguments):
    run = subprocess.run(
        [
            sys.executable, "-m", "data_pipeline", f"output_dir={crawl}/out", f"source.files=['{crawl}/*.wat.gz']",
            "executor.num_workers=1", *arguments,
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_every_file_of_a_run_is_in_the_table(crawl):
    printed = command(crawl, "stage=extract")
    path = crawl / "out" / "funnel" / "extract.parquet"
    table = pl.read_parquet(path).sort("shard")
    assert table["input"].to_list() == [f"{crawl}/{name}.wat.gz" for name in "abcd"]
    assert table["rows_in"].to_list() == [12, 10, 0, 0]
    assert table["rows_out"].to_list() == [6, 5, 0, 0]
    assert table["dropped/no_text"].to_list() == [6, 5, 0, 0]
    for name, fault in (("b", "file_truncated"), ("c", "file_not_warc"), ("d", "file_empty")):
        assert table.filter(pl.col(f"extra/{fault}") > 0)["input"].to_list() == [f"{crawl}/{name}.wat.gz"]
        assert f"{crawl}/{name}.wat.gz: {fault}" in printed
    assert f"{path}  4 of 4 shards" in printed
    (stage,) = read_json(crawl / "out" / "funnel.json")["stages"]
    assert (stage["rows_in"], stage["rows_out"]) == (table["rows_in"].sum(), table["rows_out"].sum())
    assert stage["dropped"] == {"no_text": table["dropped/no_text"].sum()}
    for name, number in stage["extra"].items():
        assert table[f"extra/{name}"].sum() == number


def test_every_step_of_a_stage_has_its_table(crawl):
    command(crawl, "stage=extract")
    printed = command(crawl, "stage=deduplicate")
    folder = crawl / "out" / "funnel"
    made = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    assert "extract.parquet" in made
    steps = [pl.read_parquet(folder / name) for name in made if name.startswith("deduplicate/")]
    assert len(steps) > 1
    (row,) = [
        row for row in read_json(crawl / "out" / "funnel.json")["stages"] if row["stage"] == "deduplicate"
    ]
    dropped = {}
    for step in steps:
        for column in step.columns:
            if column.startswith("dropped/"):
                reason = column.removeprefix("dropped/")
                dropped[reason] = dropped.get(reason, 0) + step[column].sum()
    assert dropped == row["dropped"]
    assert dropped["duplicate"] == 5
    for name in made:
        assert str(folder / name) in printed
