"""The funnel file by file: its sums are the stage's numbers, and no file is missing from it."""

import json
import tracemalloc
from collections import Counter
from dataclasses import dataclass, field

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_stages import InlineExecutor, ToyStage

from crawl2clip.errors import DataError
from data_pipeline.completion import MANIFEST, STATS_SUFFIX
from data_pipeline.funnel_files import (
    FIXED_COLUMNS,
    file_summary,
    read_step_files,
    write_file_funnel,
)
from data_pipeline.report import files_section
from data_pipeline.report_page import render_report
from data_pipeline.stage import Counts, TooManyFailures, run_stage


@dataclass
class CountingStage(ToyStage):
    """Shards that count what they are told to."""

    counts: list[Counts] = field(default_factory=list)

    def run(self, context, shard, temporary):
        super().run(context, shard, temporary)
        return self.counts[int(shard.name)]


def run(folder, counts, **more):
    """Runs a stage with these counts; returns its report and its table."""
    stage = CountingStage(folder / "out", len(counts), counts=counts, **more)
    try:
        report = run_stage(stage, InlineExecutor(), max_failed_fraction=0)
    except TooManyFailures as error:
        report = error.report
    return report, pl.read_parquet(
        write_file_funnel(folder, "extract", stage.folder, report.failed, report.counts)
    )


COUNTS = [
    Counts(100, 60, Counter(no_text=30, data_url=10), Counter(pages=7)),
    Counts(50, 50, Counter(), Counter(pages=5, file_truncated=1)),
    Counts(0, 0, Counter(), Counter(file_empty=1)),
    Counts(10, 1, Counter(bad_link=9), Counter(pages=1)),
]


def test_a_row_a_shard_and_a_column_a_reason(tmp_path):
    report, table = run(tmp_path, COUNTS, inputs=("crawl/a.wat.gz", "label"))
    assert table.columns == [
        *FIXED_COLUMNS, "dropped/bad_link", "dropped/data_url", "dropped/no_text",
        "extra/file_empty", "extra/file_truncated", "extra/pages",
    ]  # fmt: skip
    assert table.drop("seconds").row(0, named=True) == {
        "shard": "000", "input": "crawl/a.wat.gz", "done": True, "error": None, "rows_in": 100, "rows_out": 60,
        "dropped/bad_link": 0, "dropped/data_url": 10, "dropped/no_text": 30,
        "extra/file_empty": 0, "extra/file_truncated": 0, "extra/pages": 7,
    }  # fmt: skip
    assert table["seconds"].sum() == pytest.approx(report.worker_seconds)


_COUNTER = st.dictionaries(
    st.sampled_from(["no_text", "data_url", "é", "a/b", "file_empty"]), st.integers(0, 10**12)
).map(Counter)
_COUNTS = st.builds(Counts, st.integers(0, 10**12), st.integers(0, 10**12), _COUNTER, _COUNTER)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(counts=st.lists(_COUNTS, min_size=1, max_size=6))
def test_sums_over_files_are_the_stages_numbers(tmp_path_factory, counts):
    report, table = run(tmp_path_factory.mktemp("run"), counts)
    sums = table.select(pl.col(pl.Int64).sum()).row(0, named=True)
    assert (sums.pop("rows_in"), sums.pop("rows_out")) == (report.counts.rows_in, report.counts.rows_out)
    expected = {f"dropped/{name}": number for name, number in report.counts.dropped.items()}
    expected |= {f"extra/{name}": number for name, number in report.counts.extra.items()}
    assert sums == expected


def test_the_same_output_gives_the_same_bytes(tmp_path):
    run(tmp_path, COUNTS)
    path = tmp_path / "funnel" / "extract.parquet"
    before = path.read_bytes()
    report, _ = run(tmp_path, COUNTS)
    assert (report.done, report.skipped) == (0, 4)
    assert path.read_bytes() == before


def test_files_that_could_not_be_made_are_listed(tmp_path):
    _, table = run(tmp_path, COUNTS, faults={"001": "raise"})
    assert table["done"].to_list() == [True, False, True, True]
    assert table["error"].to_list() == [None, "RuntimeError: shard 001 is cursed", None, None]
    assert table["rows_in"].to_list() == [100, 0, 0, 10]
    (step,) = read_step_files(tmp_path, ["extract"])
    assert (step.shards, step.done) == (4, 3)
    assert step.damaged == [
        ("001", None, "not made: RuntimeError: shard 001 is cursed"),
        ("002", None, "file_empty"),
    ]
    write_file_funnel(tmp_path, "extract", tmp_path / "out", {}, Counts())
    assert read_step_files(tmp_path, ["extract"])[0].damaged[0][2] == "not made: not tried in the latest run"


def test_damaged_files_are_named_and_the_worst_come_first(tmp_path):
    run(tmp_path, COUNTS, inputs=("crawl/<b>.wat.gz",))
    (step,) = read_step_files(tmp_path, ["extract"])
    assert step.damaged == [
        ("001", "crawl/<b>.wat.gz", "file_truncated"),
        ("002", "crawl/<b>.wat.gz", "file_empty"),
    ]
    assert step.most_lost == [("003", 10, 9, "bad_link"), ("000", 100, 40, "no_text")]
    assert read_step_files(tmp_path, [], most_lost=1)[0].most_lost == [("003", 10, 9, "bad_link")]
    assert file_summary([step]).splitlines()[1:] == [
        f"  {tmp_path}/funnel/extract.parquet  4 of 4 shards",
        "    crawl/<b>.wat.gz: file_truncated",
        "    crawl/<b>.wat.gz: file_empty",
    ]
    page = render_report("t", [files_section([step])])
    for expected in ("crawl/&lt;b&gt;.wat.gz", "file_truncated", "90.0%", "funnel/extract.parquet"):
        assert expected in page


def test_many_damaged_files_are_counted(tmp_path):
    run(tmp_path, [Counts(1, 1, Counter(), Counter(file_truncated=1))] * 60)
    steps = read_step_files(tmp_path, ["extract"])
    assert file_summary(steps).splitlines()[-1].strip() == (
        "and 55 more files that were cut off, unreadable or not made"
    )
    assert "60. The first 50 are shown" in render_report("t", [files_section(steps)])


def test_a_reason_that_the_run_did_not_see_has_its_column(tmp_path):
    """Another machine may finish a shard after the run's last look."""
    _, table = run(tmp_path, COUNTS)
    write_file_funnel(tmp_path, "extract", tmp_path / "out", {}, COUNTS[0])
    assert pl.read_parquet(tmp_path / "funnel" / "extract.parquet").equals(table)


def test_steps_come_in_the_order_of_the_stages(tmp_path):
    stage = CountingStage(tmp_path / "out", 1, counts=COUNTS[:1])
    run_stage(stage, InlineExecutor(), max_failed_fraction=0)
    for step in ("tag/language", "deduplicate/runs", "extract", "deduplicate/ranges"):
        write_file_funnel(tmp_path, step, stage.folder, {}, Counts())
    steps = read_step_files(tmp_path, ["extract", "deduplicate", "tag"])
    assert [step.step for step in steps] == [
        "extract",
        "deduplicate/ranges",
        "deduplicate/runs",
        "tag/language",
    ]


def test_without_tables_there_is_nothing_to_say(tmp_path):
    assert read_step_files(tmp_path, ["extract"]) == []
    assert file_summary([]) == ""
    assert files_section([]).blocks == []


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        "[]",
        '{"counts": {"rows_in": 1, "rows_out": 1, "dropped": {}}, "seconds": 1}',
        '{"counts": {"rows_in": 1, "rows_out": 1, "dropped": {"no_text": "2"}, "extra": {}}, "seconds": 1}',
        '{"counts": {"rows_in": 1.5, "rows_out": 1, "dropped": {}, "extra": {}}, "seconds": 1}',
        '{"counts": {"rows_in": 1, "rows_out": 1, "dropped": {}, "extra": {}}}',
    ],
)
def test_a_broken_record_is_told_by_the_funnel_and_by_the_stage(tmp_path, content):
    run(tmp_path, COUNTS)
    (tmp_path / "out" / f"001{STATS_SUFFIX}").write_text(content)
    message = r"001\.stats\.json is not the record of a shard: .*delete it and run the stage again"
    with pytest.raises(DataError, match=message):
        write_file_funnel(tmp_path, "extract", tmp_path / "out", {}, Counts())
    with pytest.raises(DataError, match=message):
        run(tmp_path, COUNTS)


def test_a_record_or_manifest_that_is_no_json_is_told(tmp_path):
    run(tmp_path, COUNTS)
    (tmp_path / "out" / f"002{STATS_SUFFIX}").write_bytes(b'{"counts": \xff')
    with pytest.raises(DataError, match=r"002\.stats\.json is not valid JSON"):
        write_file_funnel(tmp_path, "extract", tmp_path / "out", {}, Counts())
    (tmp_path / "out" / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"manifest\.json is missing"):
        write_file_funnel(tmp_path, "extract", tmp_path / "out", {}, Counts())


def test_a_broken_table_is_told(tmp_path):
    run(tmp_path, COUNTS)
    path = tmp_path / "funnel" / "extract.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        DataError, match=r"extract\.parquet cannot be read .*delete it and run the stage again"
    ):
        read_step_files(tmp_path, ["extract"])


def test_memory_is_that_of_a_thousand_files(tmp_path):
    number = 3000
    folder = tmp_path / "out"
    folder.mkdir()
    shards = [{"name": f"{index:06d}", "inputs": [f"crawl/{index}.wat.gz"]} for index in range(number)]
    (folder / MANIFEST).write_text(json.dumps({"shards": shards}))
    counts = Counts(
        9, 5, Counter({f"reason_{n}": n for n in range(10)}), Counter({f"x_{n}": n for n in range(10)})
    )
    record = json.dumps({"counts": counts.to_json(), "seconds": 1.0})
    for shard in shards:
        (folder / (shard["name"] + STATS_SUFFIX)).write_text(record)
    del shards
    tracemalloc.start()
    path = write_file_funnel(tmp_path, "extract", folder, {}, counts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(pl.read_parquet(path)) == number
    assert peak < 3_000_000  # 6 MB with all of them
