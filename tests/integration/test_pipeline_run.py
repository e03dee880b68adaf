"""The pipeline as a command: its table of stages, and every error found before work starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from crawl_files import image, member, wat_record, wat_value
from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.errors import ConfigError
from crawl2clip.files import read_json, write_json
from data_pipeline.config import PipelineConfig
from data_pipeline.executors import EXECUTORS
from data_pipeline.pipeline import STAGES, run_pipeline, validate
from data_pipeline.stage import MANIFEST, STATS_SUFFIX, Outcome, TooManyFailures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def crawl(tmp_path):
    """Two WAT files of ten pages; the second repeats the first."""
    values = [
        wat_value([image(f"{page}.jpg"), image("x.jpg", "")], url=f"https://h{page}.org/")
        for page in range(10)
    ]
    data = b"".join(member(wat_record(value)) for value in values)
    for name in ("a", "b"):
        (tmp_path / f"{name}.wat.gz").write_bytes(data)
    return tmp_path


def config(crawl, *overrides, recipe="datacomp_basic"):
    register("data_pipeline_schema", PipelineConfig)
    fixed = [
        f"output_dir={crawl}/out",
        f"recipe={recipe}",
        f"source.files=['{crawl}/*.wat.gz']",
        "executor.num_workers=1",
        "download.user_agent='tests/1.0 (+https://example.org/bot)'",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("data_pipeline", [*fixed, *overrides]), PipelineConfig)


def test_stages_run_one_by_one_and_share_a_funnel(crawl):
    assert "extract" in run_pipeline(config(crawl, "stage=extract"))
    table = run_pipeline(config(crawl, "stage=deduplicate", "deduplicate.rows_per_shard=4"))
    assert [line.split()[0] for line in table.splitlines()] == [
        "stage", "-" * len(table.splitlines()[1]), "extract", "no_text", "deduplicate", "duplicate",
    ]  # fmt: skip
    rows = read_json(crawl / "out" / "funnel.json")["stages"]
    assert [(row["stage"], row["rows_in"], row["rows_out"]) for row in rows] == [
        ("extract", 40, 20),
        ("deduplicate", 20, 10),
    ]
    assert sorted(path.name for path in (crawl / "out" / "deduplicated").glob("*.parquet")) == [
        "00000000.parquet", "00000001.parquet", "00000002.parquet",
    ]  # fmt: skip
    assert run_pipeline(config(crawl, "stage=deduplicate", "deduplicate.rows_per_shard=4")) == table


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["stage=extrakt"],
            r"unknown stage 'extrakt'; did you mean 'extract'.* Known: deduplicate, documents, download, .*Leave",
        ),
        (
            ["executor.kind=slrm"],
            r"unknown executor\.kind 'slrm'; did you mean 'slurm'\? Known: local, ray, slurm",
        ),
        (["source.files=[nothing.wat]"], "'nothing.wat' gives no crawl file"),
        (["source.files=[]", "stage=extract"], r"source\.files is empty"),
        (
            ["stage=deduplicate"],
            "needs the output of stage=extract, which has not finished: .*candidates holds nothing yet. Run",
        ),
        (
            ["download.user_agent=null"],
            r"download\.user_agent is None; site owners must be able to see who fetches .* give download\.user_agent=",
        ),
        (["stage=report"], "stage=report needs the output of stage=download"),
    ],
)
def test_errors_come_before_any_work(crawl, overrides, message):
    with pytest.raises(ConfigError, match=message):
        run_pipeline(config(crawl, *overrides))
    assert not (crawl / "out").exists()


def test_a_stage_needs_the_finished_ones_it_reads(crawl):
    raw = crawl / "out" / "raw"
    raw.mkdir(parents=True)
    write_json(raw / MANIFEST, {"shards": [{"name": "0"}, {"name": "1"}]})
    write_json(raw / f"0{STATS_SUFFIX}", {})
    with pytest.raises(
        ConfigError, match=r"stage=tag needs the output of stage=download.*raw has 1 of 2 shards"
    ):
        validate(config(crawl, "stage=tag"))
    assert list(validate(config(crawl, "stage=tag", "executor.max_failed_fraction=0.5"))) == ["tag"]
    with pytest.raises(
        ConfigError, match=r"stage=select needs the output of stage=tag, .*tags/language holds nothing"
    ):
        validate(config(crawl, "stage=select", "executor.max_failed_fraction=0.5"))


def test_a_recipe_without_taggers_has_nothing_to_tag(crawl):
    (crawl / "out" / "raw").mkdir(parents=True)
    write_json(crawl / "out" / "raw" / MANIFEST, {"shards": [{"name": "0"}]})
    write_json(crawl / "out" / "raw" / f"0{STATS_SUFFIX}", {})
    assert run_pipeline(config(crawl, "stage=tag", "tagger.taggers=[]")).startswith("stage ")


def test_all_stages_are_checked_before_the_first_runs(crawl):
    in_order = ["extract", "deduplicate", "download", "tag", "select", "reshard", "report"]
    assert list(validate(config(crawl))) == in_order
    assert list(STAGES) == [*in_order, "index", "documents"]


class FullDisk:
    """An executor with which nothing succeeds."""

    def __init__(self, config):
        pass

    def run(self, stage, shards):
        return (Outcome(shard, "no space left on device") for shard in shards)


def test_failures_over_the_limit_are_in_the_funnel(crawl, monkeypatch):
    monkeypatch.setitem(EXECUTORS, "local", FullDisk)
    with pytest.raises(TooManyFailures, match=r"'extract': 2 of 2 shards failed \(.*no space left on device"):
        run_pipeline(config(crawl, "stage=extract"))
    (row,) = read_json(crawl / "out" / "funnel.json")["stages"]
    assert (row["stage"], row["shards"], sorted(row["failed"])) == ("extract", 0, ["a_wat", "b_wat"])


def command(*arguments):
    run = subprocess.run(
        [sys.executable, "-m", "data_pipeline", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, run.stdout, run.stderr


def test_the_command_prints_the_funnel_and_leaves_its_settings(crawl):
    status, printed, _ = command(
        f"output_dir={crawl}/out",
        f"source.files=['{crawl}/*.wat.gz']",
        "stage=extract",
        "executor.num_workers=2",
    )
    assert status == 0
    assert printed.splitlines()[2].split()[:3] == ["extract", "40", "20"]
    assert "min_text_length: 5" in (crawl / "out" / "config.yaml").read_text()
    assert "stage=extract" in read_json(crawl / "out" / "provenance.json")["command"]


def test_the_command_ends_with_an_error_line_and_status_2(crawl):
    status, printed, errors = command(
        f"output_dir={crawl}/out", f"source.files=['{crawl}/*.wat.gz']", "stage=tagg"
    )
    assert (status, printed) == (2, "")
    assert "error: unknown stage 'tagg'; did you mean 'tag'" in errors
    assert "Traceback" not in errors
