"""The funnel of extraction over all real crawl files that are there: every link accounted for, file by file."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from crawl_files import extract_config
from toy_stages import InlineExecutor

from data_pipeline import extract
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
    config = SimpleNamespace(output_dir=str(output_dir), source=source, extract=extract_config())
    made = extract.make_stage(config)  # pyright: ignore[reportArgumentType]
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
