"""Checkpoints of a run in an object store: whole or not there, kept as locally, and found by another machine.

The store is real s3fs against a stand-in on loopback, tests/object_server.py.
"""

import logging
import shutil
import threading

import fsspec
import pytest
import torch
from object_server import worked_on_store

from crawl2clip import storage
from crawl2clip.distributed import World, single_process
from crawl2clip.errors import ConfigError, DataError
from train.checkpoints.checkpoint_folder import (
    BestConfig,
    BestMode,
    checkpoint_path,
    find_newest,
    list_checkpoints,
)
from train.checkpoints.open_published import open_published
from train.checkpoints.saving import SaveConfig, Saver
from train.checkpoints.state import Piece
from train.checkpoints.stored_checkpoints import StoredCheckpoints

pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 's3fs>=2024.2'")
PARTS = "rank-00000-of-00001.safetensors"
BEST = BestConfig(metric="score", mode=BestMode.max)


@pytest.fixture
def server(tmp_path, monkeypatch):
    with worked_on_store(tmp_path, monkeypatch) as running:
        yield running


def config(**values):
    return SaveConfig(
        **{"every_steps": 1, "every_minutes": None, "keep_last": 2, "asynchronous": False, **values}
    )


class Run:
    """A run of a process: saves a value a step, and publishes when it is told to, not in a thread."""

    def __init__(self, **values):
        self.folder = storage.local_path("s3://bucket/run")
        settings = config(**values)
        published = open_published(self.folder, settings, single_process())
        assert published is not None
        self.published = published
        self.found = find_newest(self.folder / "checkpoints", repair=True)
        self.saver = Saver(self.folder / "checkpoints", settings, single_process(), {}, follower=published)

    def save(self, *steps, value=None, publish=True, **scores):
        for step in steps:
            log = self.folder / "metrics.jsonl"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write(f'{{"step": {step}}}\n')
            state = torch.full((5,), float(step if value is None else value))
            self.saver.save(step, [Piece("weight", (5,), 0, state)], {"step": step}, scores)
            if publish:
                self.published.try_to_publish()
        return self

    def value(self):
        """That of the newest checkpoint as this process found it."""
        assert self.found is not None
        return float(self.found.read("weight")[0])


def another_machine(tmp_path):
    """Nothing of what this one knew is left but the store."""
    shutil.rmtree(tmp_path / "scratch")


def aside(tmp_path, name):
    """This machine's folder is put away, for another one to begin, or taken again."""
    scratch, kept = tmp_path / "scratch", tmp_path / name
    scratch.rename(tmp_path / "swap") if scratch.exists() else None
    kept.rename(scratch) if kept.exists() else None
    (tmp_path / "swap").rename(kept) if (tmp_path / "swap").exists() else None


def in_store(server):
    """Steps of the whole checkpoints in the store; half ones are shown with their parts."""
    folder = server.folder / "bucket" / "run" / "checkpoints"
    found = []
    for path in sorted(folder.glob("step_*")):
        files = sorted(file.name for file in path.iterdir() if file.name[0] != ".")
        if files:
            found.append(int(path.name[5:]) if "manifest.json" in files else (path.name, files))
    return found


def here(run):
    return [int(path.name[5:]) for path in list_checkpoints(run.folder / "checkpoints")]


def test_a_checkpoint_is_published_with_its_manifest_last_and_its_log_before(server):
    Run().save(1)
    puts = [path.removeprefix("/bucket/run/") for path in server.puts]
    assert puts == [
        "metrics.jsonl", f"checkpoints/step_0000001/{PARTS}", "checkpoints/step_0000001/manifest.json",
    ]  # fmt: skip


def test_the_store_keeps_what_the_folder_keeps(server, tmp_path):
    run = Run(keep_every_steps=4, keep_best=BEST)
    for step, score in enumerate([0.1, 0.9, 0.2, 0.3, 0.1, 0.1, 0.1], start=1):
        run.save(step, score=score)
    assert in_store(server) == here(run) == [2, 4, 6, 7]
    # The manifest goes first, so that no reader takes what is being removed for whole.
    removed = [path.rpartition("/")[2] for path in server.removed if "step_0000005" in path]
    assert removed[-2:] == ["manifest.json", PARTS]
    another_machine(tmp_path)
    again = Run(keep_every_steps=4, keep_best=BEST)
    assert here(again) == [2, 6, 7]  # nobody goes on from a milestone
    assert not again.saver.is_best({"score": 0.8})
    again.save(8, score=0.2)
    assert in_store(server) == [2, 4, 7, 8]


def test_a_score_that_is_not_a_number_is_put_once(server):
    run = Run(keep_best=BEST).save(1, score=float("nan"))
    count = len(server.puts)
    run.published.try_to_publish()
    assert not any("step_" in path for path in server.puts[count:])


def test_another_machine_goes_on_from_the_newest_whole_one(server, tmp_path):
    Run().save(1, 2)
    # Killed while step 3 was put: the parts are there, the manifest is not.
    shutil.copytree(
        server.folder / "bucket/run/checkpoints/step_0000002",
        server.folder / "bucket/run/checkpoints/step_0000003",
        ignore=shutil.ignore_patterns("manifest.json", ".*"),
    )
    assert in_store(server) == [1, 2, ("step_0000003", [PARTS])]
    another_machine(tmp_path)
    run = Run()
    assert (run.value(), here(run)) == (2, [1, 2])
    assert (run.folder / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert in_store(server) == [1, 2]
    run.save(3)
    assert in_store(server) == [2, 3]


def test_a_refused_checkpoint_is_told_counted_and_put_with_the_next(server, caplog):
    server.refused_puts["manifest.json"] = 2
    run = Run().save(1, 2)
    assert run.published.failures == 2
    assert (
        "publishing the run has failed (1 time so far): s3://bucket/run/checkpoints/step_0000001/"
        in caplog.text
    )
    assert "publishing the run has failed (2 times so far)" in caplog.text
    assert "the store refuses" in caplog.text
    assert "the next checkpoint tries again" in caplog.text
    assert "No checkpoint is in the store" in caplog.text
    assert in_store(server) == [("step_0000002", [PARTS])]  # what there was of the first is cleared away
    run.save(3)
    assert in_store(server) == here(run) == [2, 3]


def test_the_end_of_a_run_does_not_pass_over_a_refusal(server):
    run = Run().save(1, publish=False)
    server.refused_puts["manifest.json"] = 1
    with pytest.raises(
        DataError, match=r"The run is whole in .*, and not in the store; the same command puts"
    ):
        run.published.publish()
    Run().published.publish()
    assert in_store(server) == [1]


def test_an_export_is_whole_with_its_settings(server, tmp_path):
    run = Run().save(1)
    export = run.folder / "export"
    export.mkdir()
    (export / "open_clip_config.json").write_text("{}")
    (export / "weights.safetensors").write_bytes(b"old")
    run.published.publish()
    count = len(server.puts)
    run.published.publish()
    assert [path for path in server.puts[count:] if "export" in path] == []
    (export / "open_clip_config.json").write_text('{"a": 1}')
    (export / "weights.safetensors").write_bytes(b"new")
    server.refused_puts["weights.safetensors"] = 1
    with pytest.raises(DataError):
        run.published.publish()
    assert not (server.folder / "bucket/run/export/open_clip_config.json").exists()
    another_machine(tmp_path)
    assert not (Run().folder / "export").exists()
    export.mkdir()
    (export / "open_clip_config.json").write_text('{"a": 1}')
    (export / "weights.safetensors").write_bytes(b"new")
    run.published.publish()
    another_machine(tmp_path)
    assert (Run().folder / "export" / "weights.safetensors").read_bytes() == b"new"


def test_a_slow_store_holds_up_no_save_and_loses_no_checkpoint(server):
    """Step 1 is on its way while 2 to 5 are saved: it stays until it is whole in the store, then the newest go."""
    arrived, go_on = threading.Event(), threading.Event()

    def slow(path):
        if path.endswith(f"step_0000001/{PARTS}"):
            arrived.set()
            assert go_on.wait(60)

    server.arriving = slow
    run = Run()
    run.published.start()
    run.save(1, publish=False)
    assert arrived.wait(60)
    run.save(2, 3, 4, 5, publish=False)
    assert here(run) == [1, 4, 5]
    go_on.set()
    run.published.close()
    assert f"/bucket/run/checkpoints/step_0000001/{PARTS}" in server.puts
    assert in_store(server) == [4, 5]
    run.save(6, publish=False)
    assert here(run) == [5, 6]


def test_a_checkpoint_removed_while_it_is_put_leaves_nothing(server):
    run = Run().save(1)

    def removed(path):
        if path.endswith(f"step_0000002/{PARTS}"):
            shutil.rmtree(checkpoint_path(run.folder / "checkpoints", 2))

    server.arriving = removed
    run.save(2)
    assert (in_store(server), run.published.failures) == ([1], 0)


def test_a_machine_that_was_away_takes_what_another_did_since(server, tmp_path, caplog):
    Run().save(1, 2).save(3, publish=False)
    aside(tmp_path, "first")
    other = Run()
    assert other.value() == 2
    other.save(3, 4, value=7)
    aside(tmp_path, "first")  # the other's folder is put away, and the first is back
    run = Run()
    assert (run.value(), here(run)) == (7, [3, 4])
    assert "step_0000003 is not what the store has, where the run went on, and is removed" in caplog.text
    assert (run.folder / "metrics.jsonl").read_text().count("\n") == 4


def test_a_machine_that_could_not_publish_goes_on_from_its_own(server, caplog):
    run = Run().save(1, 2)
    server.refused_puts["manifest.json"] = 9
    run.save(3, 4, 5)
    server.refused_puts.clear()
    again = Run()
    assert (again.value(), in_store(server)) == (5, [1, 2])
    again.published.try_to_publish()
    assert in_store(server) == [4, 5]


def test_what_was_put_and_not_noted_to_the_end_is_still_this_machines(server, monkeypatch):
    run = Run().save(1, 2)

    def fails(*_):
        raise DataError("the store does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(StoredCheckpoints, "keep", fails)
        run.save(3)
    run.save(4, 5, publish=False)
    assert in_store(server) == [1, 2, 3]
    assert Run().value() == 5


def test_a_damaged_local_checkpoint_is_brought_again(server, caplog):
    run = Run().save(1, 2)
    part = checkpoint_path(run.folder / "checkpoints", 2) / PARTS
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert Run().value() == 2
    assert "step_0000002 is not whole" in caplog.text


def test_nobody_goes_on_from_behind_a_roll_back(server, tmp_path):
    run = Run(keep_last=3).save(1, 2, 3)
    for step in (2, 3):
        shutil.rmtree(checkpoint_path(run.folder / "checkpoints", step))
    run.published.roll_back(1)
    # Killed before the store knew of it.
    assert in_store(server) == [1, 2, 3]
    again = Run(keep_last=3)
    assert (again.value(), in_store(server)) == (1, [1])
    again.save(2, value=9)
    another_machine(tmp_path)
    assert Run(keep_last=3).value() == 9


def test_a_store_that_does_not_answer_stops_the_start(server, monkeypatch, tmp_path):
    Run().save(1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    storage._system.cache_clear()
    with pytest.raises(DataError, match="the store does not answer as it should"):
        Run()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.SCRATCH_VARIABLE, str(tmp_path))

    def missing(*_, **__):
        raise ImportError("No module named 's3fs'", name="s3fs")

    monkeypatch.setattr(fsspec, "filesystem", missing)  # what it does when the scheme's package is not there
    storage._system.cache_clear()
    with pytest.raises(
        ConfigError, match=r"s3:// addresses need the package s3fs; pip install 'crawl2clip\[remote\]'"
    ):
        Run()
    storage._system.cache_clear()


def test_ranks_that_do_not_see_the_folder_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv(storage.SCRATCH_VARIABLE, str(tmp_path))

    class Blind(World):
        def all_gather_object(self, value):
            return [value, False] if value is True else [value, value]

        def barrier(self):
            pass

    world = Blind(0, 2, 0, torch.device("cpu"))
    with pytest.raises(
        ConfigError, match=r"rank 1 does not see .*s3://bucket/run is worked on; set CRAWL2CLIP_SCR"
    ):
        open_published(storage.local_path("s3://bucket/run"), config(), world)


def test_a_large_file_goes_in_parts(server, tmp_path, monkeypatch):
    path = storage.local_path("s3://bucket/large")
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(101 << 20)
        file.seek(100 << 20)
        file.write(b"end")
    storage.publish(path)
    assert (server.folder / "bucket" / "large").read_bytes() == path.read_bytes()
    assert server.parts == {}


@pytest.fixture(autouse=True)
def tells(caplog):
    caplog.set_level(logging.INFO)
