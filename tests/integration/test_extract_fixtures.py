"""The funnel of extraction over all real crawl files that are there: every link accounted for, file by file."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from crawl_files import extract as extract_file
from crawl_files import extract_config
from toy_stages import InlineExecutor

from data_pipeline import deduplicate, extract
from data_pipeline.records import RecordFault
from data_pipeline.sources import SourceConfig, SourceKind
from data_pipeline.stage import Counts, read_stats, run_stage

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "warc"

# Pages in each file, that is, responses with HTML.
PAGES = {
    "IAH-20080430204825-00000-blackbook-truncated_warc": 2,
    "IAH-urls-wget_warc": 11,
    "ia-html-lang-attribute_warc": 5,
    "ia-link-extraction-test_warc": 9,
    "ia-meta-itemprop_warc": 1,
    "ia-mutliple-headers_warc": 1,
    "main-page_warc": 1,
    "post-blackout_warc": 1,
    "whirlwind_warc": 1,
    "whirlwind_warc_wat": 0,  # its one record is about a request
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The extract stage, run over the fixtures."""
    if not FIXTURES.is_dir():
        pytest.skip(f"{FIXTURES} is missing; put the real crawl files there to run this")
    source = SourceConfig(
        kind=SourceKind.local, form=None, files=[f"{FIXTURES}/*.warc*"], crawl=None, num_files=None, seed=0,
        base_url="https://data.commoncrawl.org", retries=0, backoff_s=0.0,
    )  # fmt: skip
    output_dir = tmp_path_factory.mktemp("fixtures")
    sizes = deduplicate.DeduplicateConfig(rows_per_run=1000, rows_per_shard=1000)
    config = SimpleNamespace(
        output_dir=str(output_dir), source=source, extract=extract_config(), deduplicate=sizes
    )
    made = extract.make_stage(config)  # pyright: ignore[reportArgumentType]
    made.config_of_all = config  # pyright: ignore[reportAttributeAccessIssue]
    made.report = run_stage(made, InlineExecutor(), max_failed_fraction=0)  # pyright: ignore[reportAttributeAccessIssue]
    return made


def counts_of(stage):
    return {
        shard.name: Counts.from_json(read_stats(stage.folder, shard.name)["counts"])
        for shard in stage.shards()
        if "paths" not in shard.name
    }


def test_every_page_of_every_file_is_read(stage):
    assert {name: counts.extra["pages"] for name, counts in counts_of(stage).items()} == PAGES


def test_every_link_of_every_file_is_accounted_for(stage):
    known = {*(fault.value for fault in RecordFault), "pages", "pages_opted_out", "texts_cut"}
    for name, counts in counts_of(stage).items():
        assert counts.rows_in == counts.rows_out + counts.dropped.total(), name
        assert set(counts.dropped) <= set(extract.DROP_REASONS), name
        assert set(counts.extra) <= known, name
        assert pq.ParquetFile(stage.folder / f"{name}.parquet").metadata.num_rows == counts.rows_out, name


def test_the_files_add_up_to_the_stage(stage):
    total = Counts()
    for shard in stage.shards():
        total.merge(Counts.from_json(read_stats(stage.folder, shard.name)["counts"]))
    found = stage.report.counts
    assert (total.rows_in, total.rows_out, total.dropped, total.extra) == (
        found.rows_in, found.rows_out, found.dropped, found.extra,
    )  # fmt: skip
    assert total.rows_out > 100
    assert Counter(total.dropped).keys() >= {"no_text"}


def test_each_pair_of_the_files_is_kept_once(stage):
    """Old crawls show the same image on page after page: more than half of the pairs are repeats."""
    uids = [
        uid
        for path in stage.folder.glob("*.parquet")
        for uid in pq.read_table(path).column("uid").to_pylist()
    ]
    *_, shards = steps = deduplicate.make_stages(stage.config_of_all)
    for step in steps:
        report = run_stage(step, InlineExecutor(), max_failed_fraction=0)
    assert report.counts.rows_out == len(set(uids)) < len(uids) / 2
    (kept,) = shards.folder.glob("*.parquet")
    assert sorted(pq.read_table(kept).column("uid").to_pylist()) == sorted(set(uids))


@pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f"{FIXTURES} is missing; put the real crawl files there to run this"
)
def test_a_real_file_that_is_cut_off_says_so(tmp_path):
    """The fixture that is called truncated ends behind a whole record, which no reader could tell from an end."""
    whole = FIXTURES / "IAH-urls-wget.warc.gz"
    cut = tmp_path / whole.name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    rows, counts = extract_file(cut, tmp_path)
    assert {name: count for name, count in counts.extra.items() if name != "pages"} == {"file_truncated": 1}
    everything, of_whole = extract_file(whole, tmp_path)
    assert "file_truncated" not in of_whole.extra
    assert 0 < len(rows) < len(everything)
    assert rows == everything[: len(rows)]
