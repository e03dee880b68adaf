"""A run whose folder is in an object store: the same bytes as in a local one, whatever is refused or killed.

The store is real s3fs against a stand-in on loopback, tests/object_server.py.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawl_files import image, member, wat_record, wat_value
from object_server import worked_on_store
from toy_stages import InlineExecutor, ToyStage, outputs

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from crawl2clip.shards import read_manifest as read_shard_manifest
from data_pipeline import reshard, select, tag
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.language import LanguageDetector
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.reshard import ReshardConfig
from data_pipeline.stage import (
    MANIFEST,
    STATS_SUFFIX,
    TooManyFailures,
    finished_shards,
    is_finished,
    progress_of,
    read_stats,
    run_stage,
)
from data_pipeline.tag import TagConfig

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 's3fs>=2024.2'")


@pytest.fixture
def server(tmp_path, monkeypatch):
    with worked_on_store(tmp_path, monkeypatch) as running:
        yield running


def another_machine(tmp_path):
    """Nothing of what this one knew is left but the store."""
    shutil.rmtree(tmp_path / "scratch")


def stage_at(address, **settings):
    return ToyStage(storage.local_path(address), **settings)


def run(stage, executor=None):
    return run_stage(stage, executor or InlineExecutor(), max_failed_fraction=0.0)


def objects(server, suffix=""):
    folder = server.folder / "bucket"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name.endswith(suffix)
    }


def test_addresses_and_paths_stand_for_each_other(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.SCRATCH_VARIABLE, str(tmp_path))
    path = storage.local_path("s3://bucket/run/raw/")
    assert path == tmp_path / "s3:" / "bucket" / "run" / "raw"
    assert storage.address_of(path / "0.tar") == "s3://bucket/run/raw/0.tar"
    assert storage.address_of("/data/run/0.tar") is None
    assert storage.local_path("/data/run") == storage.local_path(storage.local_path("/data/run"))
    assert storage.public({"a": [str(path), 3], str(path): "/data"}) == {
        "a": ["s3://bucket/run/raw", 3],
        "s3://bucket/run/raw": "/data",
    }
    with pytest.raises(ValueError, match=r"'s3://' names no bucket; give s3://bucket/folder"):
        storage.local_path("s3://")


def test_a_stage_in_a_store_is_the_same_for_every_machine(server, tmp_path):
    report = run(stage_at("s3://bucket/run/toy"), LocalExecutor(num_workers=2, retries=0, shard_timeout_s=60))
    assert (report.done, report.counts.rows_out) == (4, 36)
    assert {name: data for name, data in objects(server, ".txt").items() if "log" not in name} == {
        f"run/toy/{shard}.txt": f"contents of {shard}\n".encode() for shard in ("000", "001", "002", "003")
    }
    for shard in ("000", "001", "002", "003"):  # the marker after what it describes
        names = [path.rpartition("/")[2] for path in server.puts if f"/{shard}." in path]
        assert names == [f"{shard}.txt", f"{shard}{STATS_SUFFIX}"]
    another_machine(tmp_path)
    folder = storage.local_path("s3://bucket/run/toy")
    assert progress_of(folder) == (4, 4)
    assert finished_shards(folder) == ["000", "001", "002", "003"]
    assert read_stats(folder, "002")["files"]["002.txt"]["bytes"] == 16
    again = run(stage_at("s3://bucket/run/toy"))
    assert (again.done, again.skipped, again.counts) == (0, 4, report.counts)


def test_inputs_are_brought_and_the_manifest_names_addresses(server, tmp_path):
    run(stage_at("s3://bucket/run/first", num_shards=1))
    another_machine(tmp_path)
    first = storage.local_path("s3://bucket/run/first/000.txt")

    class Reader(ToyStage):
        def run(self, context, shard, temporary):
            assert first.read_text() == "contents of 000\n"
            return super().run(context, shard, temporary)

    second = Reader(storage.local_path("s3://bucket/run/second"), num_shards=2, inputs=(str(first),))
    assert run(second).done == 2
    assert not first.exists()  # scratch space holds what is worked on
    manifest = read_json(server.folder / "bucket" / "run" / "second" / MANIFEST)
    assert manifest["shards"][0] == {"name": "000", "inputs": ["s3://bucket/run/first/000.txt"]}
    assert list(manifest["upstream"]) == ["s3://bucket/run/first"]
    stats = read_json(server.folder / "bucket" / "run" / "second" / ("001" + STATS_SUFFIX))
    assert stats["inputs"] == ["s3://bucket/run/first/000.txt"]


def test_an_input_that_was_made_again_is_brought_again(server):
    folder = server.folder / "bucket" / "run"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    path = storage.local_path("s3://bucket/run/a.txt")
    assert [storage.fetch(path), storage.fetch(path), path.read_text()] == [True, False, "one\n"]
    (folder / "a.txt").write_text("two\n")
    assert [storage.fetch(path), path.read_text()] == [True, "two\n"]
    storage.drop(path)
    assert list(path.parent.iterdir()) == []
    (folder / "a.txt").unlink()
    with pytest.raises(
        DataError,
        match=r"s3://bucket/run/a\.txt is not in the store; check the address, or run what writes it",
    ):
        storage.fetch(path)


def test_a_marker_that_the_store_refuses_is_no_finished_shard(server, tmp_path):
    server.refused_puts["002" + STATS_SUFFIX] = 1
    with pytest.raises(DataError, match=r"s3://bucket/run/toy/002\.stats\.json: the store refuses"):
        run(stage_at("s3://bucket/run/toy"))
    folder = storage.local_path("s3://bucket/run/toy")
    assert finished_shards(folder) == ["000", "001"]
    assert not is_finished(folder, "002")
    another_machine(tmp_path)
    assert (run(stage_at("s3://bucket/run/toy")).done, progress_of(folder)) == (2, (4, 4))


def test_failures_are_seen_from_elsewhere_and_a_removed_marker_means_again(server, tmp_path):
    from data_pipeline.completion import read_failures

    with pytest.raises(TooManyFailures):
        run(stage_at("s3://bucket/run/toy", faults={"001": "raise"}))
    another_machine(tmp_path)
    folder = storage.local_path("s3://bucket/run/toy")
    assert read_failures(folder) == {"001": "RuntimeError: shard 001 is cursed"}
    run(stage_at("s3://bucket/run/toy"))
    assert read_failures(folder) == {}
    (server.folder / "bucket" / "run" / "toy" / ("003" + STATS_SUFFIX)).unlink()  # by hand
    assert run(stage_at("s3://bucket/run/toy")).done == 1


def test_a_store_that_does_not_answer_is_an_error_that_names_it(server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    storage._system.cache_clear()
    with pytest.raises(DataError, match=r"s3://bucket/run/toy.*the store does not answer.*AWS_ENDPOINT_URL"):
        run(stage_at("s3://bucket/run/toy"))


def write_raw(folder):
    """Two raw shards of ten pairs, as the download stage leaves them."""
    folder.mkdir(parents=True)
    for number in range(2):
        name, rows = f"{number:08d}", []
        blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text_source": "alt", "status": "success"}
        with ShardWriter(folder / f"{name}.tar") as writer:
            for pair in range(10):
                text = f"a photo of object number {10 * number + pair}"
                rows.append({**blank, "uid": uid_of(str(pair), text), "text": text, "bytes": 9})
                writer.write(rows[-1]["uid"], {"jpg": b"not looked at", "txt": text.encode(), "json": b"{}"})
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{name}.parquet")
        counts = {"rows_in": 10, "rows_out": 10, "dropped": {}, "extra": {}}
        write_json(folder / (name + STATS_SUFFIX), {"counts": counts, "seconds": 1.0})
    write_json(folder / MANIFEST, {"stage": "download", "settings": {}, "shards": [
        {"name": f"{number:08d}", "inputs": []} for number in range(2)
    ]})  # fmt: skip


def stages_of(output_dir):
    settings = SimpleNamespace(
        output_dir=str(output_dir),
        tagger=TagConfig(
            taggers=["language"], language_detector=LanguageDetector.fasttext, min_language_probability=0.3,
            device="cpu", precision="fp32", image_batch_size=8,
        ),
        recipe=RecipeConfig(
            name="half", version="1", source="-", min_text_length=0, min_bytes=0, taggers=["language"],
            rules=[RuleConfig(reason="not_english", keep="language_bucket = 'en'"),
                   RuleConfig(reason="low", top_fraction=0.5, of="bytes", by="language_bucket")],
        ),
        select=select.SelectConfig(phash_distance=0), reshard=ReshardConfig(samples_per_shard=4, seed=3),
    )  # fmt: skip
    return [*tag.make_stages(settings), select.make_stage(settings), *reshard.make_stages(settings)]


def test_tags_selection_and_training_shards_are_those_of_a_local_run(server, tmp_path):
    write_raw(tmp_path / "run" / "raw")
    for stage in stages_of(tmp_path / "run"):
        run(stage)
    shutil.copytree(tmp_path / "run" / "raw", server.folder / "bucket" / "run" / "raw")
    for number in range(6):  # each step on a machine that has seen nothing
        stage = stages_of(storage.local_path("s3://bucket/run"))[number]
        assert run(stage).failed == {}
        another_machine(tmp_path)
    local = {
        f"run/{name}": data for name, data in outputs(tmp_path / "run").items() if "manifest" not in name
    }
    stored = {name: data for name, data in objects(server).items() if name in local}
    assert stored == local
    assert len([name for name in local if name.startswith("run/shards/")]) == 3
    manifest = read_shard_manifest(server.folder / "bucket" / "run" / "shards")
    assert manifest == read_shard_manifest(tmp_path / "run" / "shards")
    # The tars first: until the manifest is there, it is no data set.
    puts = [path.rpartition("/")[2] for path in server.puts if path.startswith("/bucket/run/shards/")]
    assert puts[-1] == "manifest.json"
    assert run(stages_of(storage.local_path("s3://bucket/run"))[-1]).done == 0


def test_the_command_runs_in_a_store_and_tells_its_status(server, tmp_path):
    values = [wat_value([image(f"{page}.jpg")], url=f"https://h{page}.org/") for page in range(10)]
    (tmp_path / "a.wat.gz").write_bytes(b"".join(member(wat_record(value)) for value in values))
    words = ["recipe=laion400m", f"source.files=['{tmp_path}/a.wat.gz']", "executor.num_workers=1"]
    for stage in ("extract", "deduplicate"):
        done = command(*words, f"stage={stage}", "output_dir=s3://bucket/crawl")
        assert done.returncode == 0, done.stderr
        another_machine(tmp_path)
    names = {name.removeprefix("crawl/") for name in objects(server) if name.startswith("crawl/")}
    assert {
        "candidates/a_wat.parquet",
        "deduplicated/00000000.parquet",
        "funnel.json",
        "config.yaml",
    } <= names
    assert "funnel/deduplicate/ranges.parquet" in names
    assert not (ROOT / "s3:").exists()
    said = command("status", "output_dir=s3://bucket/crawl").stdout.splitlines()
    assert sorted(line.split()[0] for line in said[1:]) == [
        "deduplicate/ranges", "deduplicate/runs", "deduplicate/shards", "extract",
    ]  # fmt: skip
    assert all(line.endswith("complete") for line in said[1:])


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
