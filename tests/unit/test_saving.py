"""Saving: when it is due, that training goes on meanwhile, what is kept, and what a failed write leaves."""

import errno
import logging
import re
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from small_disk import small_disk

import train.checkpoints.checkpoint_write
import train.checkpoints.saving
import train.checkpoints.state_parts
from crawl2clip.config import CONFIG_DIR
from crawl2clip.distributed import World, single_process
from crawl2clip.errors import ConfigError, DataError
from train.checkpoints.checkpoint_folder import (
    BestConfig,
    BestMode,
    Saved,
    checkpoint_path,
    find_newest,
    list_checkpoints,
    remove_checkpoint,
    replaced_path,
    steps_to_keep,
    temporary_path,
)
from train.checkpoints.saving import SaveConfig, Saver, is_due
from train.checkpoints.state import Piece
from train.checkpoints.state_manifest import MANIFEST_NAME
from train.checkpoints.state_parts import file_name

IDENTITY = {"model.name": "tiny", "seed": 0}
FILE = file_name(0, 1)
DiskUsage = namedtuple("DiskUsage", "total used free")


def config(**values):
    known = {"every_steps": 100, "every_minutes": None, "keep_last": 2, "asynchronous": True}
    return SaveConfig(**{**known, **values})


def saver(folder, world=None, **values):
    return Saver(folder, config(**values), world or single_process(), IDENTITY)


def pieces(value, rows=5):
    return [Piece("model/weight", (rows,), 0, torch.full((rows,), float(value)))]


def save(folder, *steps, **values):
    with saver(folder, **values) as writer:
        for step in steps:
            writer.save(step, pieces(step), {"step": step})
        writer.finish()


def waits_for_thread(writer):
    assert writer._write is not None
    writer._write.join()


def newest(folder, **asked):
    found = find_newest(folder, **{"repair": True, **asked})
    assert found is not None
    return found


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"every_steps": 0}, "checkpoint.every_steps is 0; give 1 or more steps, or null"),
        ({"every_minutes": 0.0}, "checkpoint.every_minutes is 0.0; give minutes above 0, or null"),
        ({"keep_last": 1}, "checkpoint.keep_last is 1; give 2 or more"),
        ({"keep_every_steps": 0}, "checkpoint.keep_every_steps is 0; give 1 or more steps, or null"),
    ],
)
def test_setting_errors(values, words):
    with pytest.raises(ConfigError, match=words):
        config(**values)


def test_the_settings_of_the_command():
    best = {"keep_best": {"metric": "evaluation/cifar10/zero_shot/acc1", "mode": "max"}}
    given = OmegaConf.select(OmegaConf.load(CONFIG_DIR / "train.yaml"), "checkpoint")
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SaveConfig), given, best))
    assert isinstance(made, SaveConfig)
    assert made.keep_best == BestConfig(metric="evaluation/cifar10/zero_shot/acc1", mode=BestMode.max)


def test_due_by_steps_by_time_and_by_milestone():
    by_steps = config(every_steps=100)
    assert [step for step in range(1, 301) if is_due(by_steps, step, 1e9)] == [100, 200, 300]
    by_time = config(every_steps=None, every_minutes=30.0)
    assert [is_due(by_time, 7, seconds) for seconds in (0, 1799.9, 1800, 4000)] == [False, False, True, True]
    by_both = config(every_steps=100, every_minutes=30.0, keep_every_steps=250)
    assert [is_due(by_both, step, 60) for step in (99, 100, 250, 251)] == [False, True, True, False]
    assert is_due(by_both, 99, 1800)
    neither = config(every_steps=None)
    assert not any(is_due(neither, step, 1e9) for step in range(1, 1000))


def test_what_is_kept():
    def kept(steps, scores=(), **values):
        saved = [Saved(step, dict(scores).get(step, {})) for step in steps]
        asked = {"keep_last": 2, "keep_every_steps": None, "best": None, **values}
        return sorted(steps_to_keep(saved, **asked))

    assert kept([]) == []
    assert kept([30, 10, 20]) == [20, 30]
    assert kept(range(100, 1001, 100), keep_every_steps=400) == [400, 800, 900, 1000]
    acc = {
        10: {"acc1": 0.1},
        20: {"acc1": 0.5},
        30: {"acc1": 0.5},
        40: {"loss": 1.0},
        50: {"acc1": float("nan")},
    }
    highest = BestConfig(metric="acc1", mode=BestMode.max)
    lowest = BestConfig(metric="acc1", mode=BestMode.min)
    steps = [10, 20, 30, 40, 50, 60]
    assert kept(steps, acc.items(), best=highest) == [20, 50, 60]
    assert kept(steps, acc.items(), best=lowest) == [10, 50, 60]
    assert kept(steps, best=highest) == [50, 60]


def test_the_newest_is_found_and_the_oldest_removed(tmp_path):
    save(tmp_path, 9, 10, 100, 12_345_678, keep_last=3)
    assert names(tmp_path) == ["step_0000010", "step_0000100", "step_12345678"]
    found = newest(tmp_path)
    assert (found.step, found.identity, found.progress) == (12_345_678, IDENTITY, {"step": 12_345_678})
    assert found.read("model/weight").tolist() == [12_345_678.0] * 5
    assert newest(tmp_path, repair=True, up_to=100).step == 100
    assert find_newest(tmp_path, repair=True, up_to=5) is None


def test_nothing_there(tmp_path):
    assert find_newest(tmp_path, repair=True) is None
    assert find_newest(tmp_path / "missing", repair=True) is None


def test_the_best_and_the_milestones_stay_over_restarts(tmp_path):
    best = BestConfig(metric="acc1", mode=BestMode.max)
    with saver(tmp_path, keep_best=best) as writer:
        for step, score in ((10, 0.3), (20, 0.9), (30, 0.5)):
            assert writer.is_best({"acc1": score}) == (step != 30)
            writer.save(step, pieces(step), {}, {"acc1": score})
        writer.finish()
    with saver(tmp_path, keep_best=best, keep_every_steps=25) as writer:
        assert not writer.is_best({"acc1": 0.8})
        assert not writer.is_best({})
        with pytest.raises(
            ConfigError, match=r"unknown score in checkpoint.keep_best 'acc1'.*Known: acc5.*=null"
        ):
            writer.is_best({"acc5": 0.8})
        for step in (40, 50, 60, 70, 80):
            writer.save(step, pieces(step), {})
        writer.finish()
        assert names(tmp_path) == ["step_0000020", "step_0000050", "step_0000070", "step_0000080"]
        remove_checkpoint(checkpoint_path(tmp_path, 20))  # as a roll back does
        assert writer.is_best({"acc1": 0.8})


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch, caplog):
    """The writer is held at its first byte: save has returned, the tensor changes, the file has the old values."""
    go_on, writing = threading.Event(), threading.Event()
    write_part = train.checkpoints.checkpoint_write.write_part

    def held(*arguments):
        writing.set()
        assert go_on.wait(30)
        write_part(*arguments)

    monkeypatch.setattr(train.checkpoints.checkpoint_write, "write_part", held)
    weight, progress = torch.full((5,), 1.0), {"counters": {"bad_draws": 3}}
    with caplog.at_level(logging.INFO), saver(tmp_path) as writer:
        stood_ms = writer.save(1, [Piece("model/weight", (5,), 0, weight)], progress)
        assert writing.wait(30)
        weight.fill_(2.0)
        progress["counters"]["bad_draws"] = 4
        assert list_checkpoints(tmp_path) == []
        go_on.set()
        writer.finish()
    found = newest(tmp_path)
    assert found.read("model/weight").tolist() == [1.0] * 5
    assert found.progress == {"counters": {"bad_draws": 3}}
    assert stood_ms >= 0
    assert "checkpoint of step 1: training stood still for" in caplog.text


def test_the_next_save_waits_for_the_one_in_flight(tmp_path, monkeypatch):
    """Events in order: the first is committed before the second is staged into the same memory."""
    events, started = [], threading.Event()
    write_part, stage = (
        train.checkpoints.checkpoint_write.write_part,
        train.checkpoints.saving.StagingMemory.stage,
    )

    def slow(*arguments):
        started.wait(0.2)  # nobody sets it: a pause in which a second save could wrongly begin
        write_part(*arguments)
        events.append("written")

    def noted(self, rows):
        events.append("staged")
        return stage(self, rows)

    monkeypatch.setattr(train.checkpoints.checkpoint_write, "write_part", slow)
    monkeypatch.setattr(train.checkpoints.saving.StagingMemory, "stage", noted)
    save(tmp_path, 1, 2)
    assert events == ["staged", "written", "staged", "written"]
    assert [newest(tmp_path, repair=False, up_to=step).progress["step"] for step in (1, 2)] == [1, 2]


def test_without_asynchronous_the_checkpoint_is_there_at_once(tmp_path):
    with saver(tmp_path, asynchronous=False) as writer:
        writer.save(1, pieces(1), {})
        assert names(tmp_path) == ["step_0000001"]


def test_a_step_saved_again_is_replaced(tmp_path):
    with saver(tmp_path) as writer:
        writer.save(1, pieces(1), {})
        writer.save(1, pieces(2), {})
        writer.finish()
    assert names(tmp_path) == ["step_0000001"]
    assert newest(tmp_path, repair=False).read("model/weight").tolist() == [2.0] * 5


def test_what_json_cannot_hold_is_refused_at_once(tmp_path):
    with saver(tmp_path) as writer, pytest.raises(TypeError, match="Tensor is not JSON serializable"):
        writer.save(1, pieces(1), {"scale": torch.tensor(1.0)})


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def other_step(file):
    file.write_text(file.read_text().replace('"step": 20', '"step": 21'))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (FILE, flip, "does not have the hash that its manifest says"),
        (FILE, lambda file: file.write_bytes(file.read_bytes()[:-1]), "its manifest says"),
        (FILE, lambda file: file.unlink(), "has no bytes, its manifest says"),
        (MANIFEST_NAME, lambda file: file.write_bytes(file.read_bytes()[:-9]), "is not valid JSON"),
        (MANIFEST_NAME, lambda file: file.unlink(), "manifest.json is missing"),
        (MANIFEST_NAME, other_step, "its manifest is of step 21"),
    ],
)  # fmt: skip
def test_a_damaged_newest_gives_way_to_the_one_before(tmp_path, caplog, name, damage, words):
    save(tmp_path, 10, 20)
    damage(checkpoint_path(tmp_path, 20) / name)
    assert newest(tmp_path, repair=False).step == 10
    assert names(tmp_path) == ["step_0000010", "step_0000020"]
    assert newest(tmp_path).step == 10
    assert "step_0000020 is passed over for an older one" in caplog.text
    assert words in caplog.text
    assert names(tmp_path) == ["step_0000010", "step_0000020.broken"]
    save(tmp_path, 20)
    assert newest(tmp_path).step == 20


def test_a_run_does_not_start_over_by_itself(tmp_path):
    save(tmp_path, 10, 20)
    for step in (10, 20):
        flip(checkpoint_path(tmp_path, step) / FILE)
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"has 2 checkpoint\(s\) and none is whole \(step_0000020: .*remove them all to start",
        ):
            find_newest(tmp_path, repair=True)


def test_what_a_killed_writer_left_is_cleared_away(tmp_path):
    save(tmp_path, 10)
    left = tmp_path / "step_0000020.tmp-abcd1234-1"
    left.mkdir()
    (left / FILE).write_bytes(b"half")
    assert newest(tmp_path, repair=False).step == 10
    assert left.exists()
    assert newest(tmp_path).step == 10
    assert names(tmp_path) == ["step_0000010"]


def test_a_checkpoint_whose_successor_did_not_come_is_put_back(tmp_path):
    """Killed between two renames, the only checkpoint of a run would be lost."""
    save(tmp_path, 10)
    (tmp_path / "step_0000010").rename(replaced_path(temporary_path(tmp_path / "step_0000010", "abcd1234-1")))
    assert newest(tmp_path).step == 10
    assert names(tmp_path) == ["step_0000010"]


def disk_full(words="No space left on device"):
    return OSError(errno.ENOSPC, words)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("where", ["write_part", "write_manifest"])
def test_a_failed_write_stops_the_run_and_leaves_the_one_before(tmp_path, monkeypatch, where, asynchronous):
    save(tmp_path, 10)

    def fail(*_):
        raise disk_full()

    with saver(tmp_path, asynchronous=asynchronous) as writer:
        monkeypatch.setattr(train.checkpoints.checkpoint_write, where, fail)
        with pytest.raises(DataError) as caught:  # noqa: PT012 # finish raises, where save has not waited
            writer.save(20, pieces(20, rows=1000), {})
            waits_for_thread(writer)
            assert writer.failed
            writer.finish()
        assert not writer.failed
        writer.finish()
    words = str(caught.value)
    assert "the checkpoint of step 20 could not be written: rank 0: No space left on device" in words
    assert f"{tmp_path}/step_0000020.tmp-" in words
    assert re.search(r"its part needs 41\d\d bytes, \d+ bytes are free there", words)
    assert "run the same command again" in words
    assert "step_0000010 and those before it are untouched" in words
    assert names(tmp_path) == ["step_0000010"]
    monkeypatch.undo()
    save(tmp_path, 20)
    assert newest(tmp_path).step == 20


def test_too_little_space_is_seen_before_the_disk_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(
        train.checkpoints.state_parts.shutil, "disk_usage", lambda _: DiskUsage(10**6, 10**6 - 100, 100)
    )
    monkeypatch.setattr(
        train.checkpoints.state_parts.hashlib, "sha256", lambda: pytest.fail("it began to write")
    )
    with saver(tmp_path) as writer:
        writer.save(20, pieces(20), {})
        with pytest.raises(
            DataError, match=r"No space left.* 100 bytes are free there.* there is no earlier one"
        ):
            writer.finish()
    assert names(tmp_path) == []


@pytest.mark.parametrize("announced", [True, False], ids=["seen before", "met while writing"])
def test_a_full_disk(tmp_path, monkeypatch, announced):
    """On a real file system, 400 kB a checkpoint: the third does not fit beside two, and the run goes on with room."""
    if not announced:
        usage = train.checkpoints.state_parts.shutil.disk_usage

        def boasting(folder):
            found = usage(folder)
            return DiskUsage(found.total, 0, 1 << 40) if "tmp-" in str(folder) else found

        monkeypatch.setattr(train.checkpoints.state_parts.shutil, "disk_usage", boasting)
    with small_disk(tmp_path / "small", 1) as disk:
        with saver(disk, keep_last=3) as writer, pytest.raises(DataError) as caught:  # noqa: PT012 # either step
            for step in (1, 2, 3):
                writer.save(step, pieces(step, rows=100_000), {})
            writer.finish()
        assert "the checkpoint of step 3 could not be written: rank 0: No space left on device" in str(
            caught.value
        )
        assert re.search(r"its part needs 4001\d\d bytes, 2\d{5} bytes are free there", str(caught.value))
        assert names(disk) == ["step_0000001", "step_0000002"]
        assert newest(disk).read("model/weight")[0] == 2
        remove_checkpoint(checkpoint_path(disk, 2))  # room is made
        with saver(disk, keep_last=3) as writer:
            writer.save(3, pieces(3, rows=100_000), {})
            writer.finish()
        assert newest(disk).step == 3


def test_a_fault_of_ours_leaves_its_traceback_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train.checkpoints.checkpoint_write, "write_manifest", lambda *_: {}["missing key"])
    with saver(tmp_path) as writer:
        writer.save(1, pieces(1), {})
        with pytest.raises(DataError, match=r"rank 0: KeyError\('missing key'\)"):
            writer.finish()
    assert "Traceback" in caplog.text


class TwoRanks(World):
    """Rank 0 of two whose other rank says nothing; its part never comes unless the test writes it."""

    def all_gather_object(self, value):
        return [value, None if not isinstance(value, tuple) else value]


def two_ranks():
    return TwoRanks(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"))


def test_a_part_that_does_not_come_names_its_rank(tmp_path):
    writer = Saver(tmp_path, config(), two_ranks(), IDENTITY, timeout_s=0.2)
    writer.save(1, pieces(1), {})
    with pytest.raises(
        DataError,
        match=r"no part came from rank 1 within 0.2 s; see that rank's log, and that .* all ranks share",
    ):
        writer.finish()
    assert names(tmp_path) == []


def test_closing_after_an_error_does_not_wait_for_a_dead_rank(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(train.checkpoints.saving, "_GRACE_S", 0.1)
    with saver(tmp_path, two_ranks()) as writer:
        writer.save(1, pieces(1), {})
    assert "the checkpoint of step 1 could not be written: no part came from rank 1" in caplog.text
    assert names(tmp_path) == []


class SecondNode(TwoRanks):
    """Rank 1 of two, with another disk than rank 0."""

    def all_gather_object(self, value):
        return [["step_0000010"] if value is None else (True, ""), value]


def test_a_rank_that_does_not_see_the_folder_says_what_it_needs(tmp_path: Path):
    world = SecondNode(rank=1, world_size=2, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(
        DataError,
        match=r"rank 1 does not see .*step_0000010; put run_folder on a file system that all nodes share",
    ):
        find_newest(tmp_path, repair=True, world=world)
