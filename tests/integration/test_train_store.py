"""Runs whose folder is in an object store, on real gloo processes: killed at the worst moments, and on other machines.

The store is real s3fs against a stand-in on loopback, tests/object_server.py.
"""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_ranks as ranks
from gloo_ranks import on_ranks
from hydra import compose, initialize_config_dir
from object_server import ObjectServer, s3_variables
from PIL import Image
from safetensors.torch import load

from crawl2clip import storage
from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.errors import DataError
from crawl2clip.shards import ShardWriter
from train.checkpoints.state_files import StateFiles
from train.config import TrainConfig
from train.monitoring.metrics import read_metrics
from train.stop_signal import STOPPED_EXIT_CODE

pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 's3fs>=2024.2'")
ROOT = Path(__file__).resolve().parents[2]
MEASURED = ("step", "samples_seen", "loss", "logit_scale", "lr", "grad_norm", "bad_draws")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "0.tar") as writer:
        for number in range(24):
            image = io.BytesIO()
            Image.new("RGB", (40, 40), (9 * number, 255 - 9 * number, number)).save(image, "PNG")
            writer.write(f"{number:04d}", {"png": image.getvalue(), "txt": f"square {number}".encode()})
    return folder


class Place:
    """A store, and a machine that works on it: runs of 12 steps with checkpoints at 4, 8 and 12."""

    def __init__(self, folder, server, shards):
        self.scratch, self._server, self._shards = folder / "scratch", server, shards
        self.variables = {
            **s3_variables(server, folder),
            storage.SCRATCH_VARIABLE: str(self.scratch),
        }

    def words(self, *overrides):
        return [
            "model=tiny", "precision=fp32", "augment=drawings", "device=cpu", "wandb.enabled=false",
            "run_name=run", "run_folder=s3://bucket/run", f"data.shards={self._shards}",
            "data.decode_size=40", "data.num_workers=0", "train.global_batch_size=8", "train.samples_seen=96",
            "train.log_every_steps=1", "checkpoint.every_steps=4", "optimizer.lr=0.003", "schedule.warmup_steps=2",
            "checkpoint.keep_last=2", "checkpoint.asynchronous=false", *overrides,
        ]  # fmt: skip

    def train(self, world_size, program, *arguments, overrides=()):
        register("train_schema", TrainConfig)
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = typed(compose("train", self.words(*overrides)), TrainConfig)
        return on_ranks(ranks.in_environment, world_size, self.variables, program, config, *arguments)

    def command(self, *overrides):
        environment = os.environ | self.variables | {"OMP_NUM_THREADS": "1"}  # as on the ranks
        return subprocess.run(
            [sys.executable, "-m", "train", *self.words(*overrides)],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def leave(self):
        """Goes on on another machine."""
        shutil.rmtree(self.scratch)

    @property
    def stored(self):
        return self._server.folder / "bucket" / "run"

    def steps(self):
        """The whole checkpoints in the store."""
        return sorted(int(path.parent.name[5:]) for path in self.stored.glob("checkpoints/*/manifest.json"))

    def curve(self):
        records = read_metrics(self.stored / "metrics.jsonl")
        return [{name: record[name] for name in MEASURED} for record in records if "loss" in record]

    def state(self, step):
        """Every tensor of a checkpoint in the store."""
        state = StateFiles(self.stored / "checkpoints" / f"step_{step:07d}")
        state.verify()
        return {name: state.read(name) for name in state.names()}

    def weights(self):
        return load((self.stored / "export" / "open_clip_model.safetensors").read_bytes())


@pytest.fixture
def place(tmp_path, shards):
    (tmp_path / "store" / "bucket").mkdir(parents=True)
    with ObjectServer(tmp_path / "store") as server:
        yield Place(tmp_path, server, shards)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, shards):
    """Runs that nothing disturbed, by number of ranks and settings."""
    done = {}

    def make(world_size, *overrides):
        key = world_size, overrides
        if key not in done:
            folder = tmp_path_factory.mktemp("unbroken")
            (folder / "store" / "bucket").mkdir(parents=True)
            with ObjectServer(folder / "store") as server:
                done[key] = Place(folder, server, shards)
                assert done[key].train(world_size, ranks.train, overrides=overrides) == [0] * world_size
        return done[key]

    return make


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_equal(place, whole):
    assert place.curve() == whole.curve()
    assert len(place.curve()) == 12
    assert place.steps() == whole.steps() == [8, 12]
    for step in (8, 12):
        assert same_bits(place.state(step), whole.state(step))
    assert same_bits(place.weights(), whole.weights())


@pytest.mark.parametrize(
    ("world_size", "overrides"),
    [(1, ()), (2, ()), (2, ("strategy=fsdp2",))],
    ids=["one rank", "two ranks", "fsdp2"],
)
def test_a_run_killed_in_mid_upload_equals_an_unbroken_one_bit_for_bit(
    place, unbroken, world_size, overrides
):
    last = f"rank-{world_size - 1:05d}-of-{world_size:05d}.safetensors"
    first = place.train(
        world_size, ranks.train_and_die_publishing, f"step_0000008/{last}", overrides=overrides
    )
    assert first[0] == -9
    assert place.steps() == [4]
    place.leave()
    # All parts are there: the manifest is removed first, if there was one, and put last.
    second = place.train(
        world_size, ranks.train_and_die_publishing, "step_0000012/manifest.json", 2, overrides=overrides
    )
    assert second[0] == -9
    assert place.steps() == [4, 8]
    assert len(list(place.stored.glob("checkpoints/step_0000012/rank-*"))) == world_size
    place.leave()
    third = place.train(
        world_size, ranks.train_and_die_publishing, "export/open_clip_model.safetensors", overrides=overrides
    )
    assert third[0] == -9
    assert place.steps() == [8, 12]
    # On the same machine: all is done but the export, which is not whole in the store.
    assert place.train(world_size, ranks.train, overrides=overrides) == [0] * world_size
    assert_equal(place, unbroken(world_size, *overrides))


def test_a_complete_run_is_known_as_one_on_another_machine(place, unbroken):
    assert place.train(1, ranks.train) == [0]
    place.leave()
    puts = len(place._server.puts)
    assert place.train(1, ranks.train) == [0]
    assert not any("step_" in path or "export" in path for path in place._server.puts[puts:])
    assert_equal(place, unbroken(1))


def test_weights_to_start_from_lie_in_the_store(place, unbroken):
    shutil.copytree(unbroken(1).stored / "export", place.stored.parent / "start")
    started = [
        "train.samples_seen=8",
        "optimizer.lr=1e-12",
        "schedule.warmup_steps=0",
    ]  # one step that hardly moves anything
    assert place.train(1, ranks.train, overrides=(*started, "model.pretrained=s3://bucket/start")) == [0]
    first = unbroken(1).weights()
    assert all(torch.allclose(value, first[name], atol=1e-6) for name, value in place.weights().items())
    (error,) = place.train(
        1,
        ranks.train,
        overrides=(*started, "model.pretrained=s3://bucket/none", "run_folder=s3://bucket/other"),
    )
    assert "s3://bucket/none is neither a file nor an export folder" in str(error)


def test_training_does_not_wait_for_the_store(place, unbroken):
    assert place.train(1, ranks.train_while_put, "step_0000004/rank-00000-of-00001.safetensors", 12) == [0]
    assert_equal(place, unbroken(1))


def test_a_store_that_refuses_costs_nothing_but_a_warning(place, unbroken):
    place._server.refused_puts["manifest.json"] = 2
    done = place.command("data.num_workers=2")  # workers are forked while a thread publishes
    assert done.returncode == 0, done.stderr
    assert "publishing the run has failed (1 time so far)" in done.stderr
    whole = unbroken(1)
    assert (place.steps(), place.curve()) == ([8, 12], whole.curve())
    assert same_bits(place.weights(), whole.weights())
    stored = sorted(path.name for path in place.stored.iterdir() if path.is_file() and path.name[0] != ".")
    assert stored == ["config.yaml", "log.txt", "metrics.jsonl", "provenance.json"]


def test_a_store_that_refuses_to_the_end_is_an_error_and_the_same_command_mends_it(place, unbroken):
    place._server.refused_puts["open_clip_model.safetensors"] = 1
    (error,) = place.train(1, ranks.train)
    assert isinstance(error, DataError)
    assert "and not in the store; the same command puts it there" in str(error)
    assert place.train(1, ranks.train) == [0]
    assert_equal(place, unbroken(1))


def test_a_signal_saves_publishes_and_stops_and_another_machine_goes_on(place, unbroken):
    assert place.train(2, ranks.train_and_signal, 5, 1) == [STOPPED_EXIT_CODE] * 2
    assert place.steps() == [4, 7]
    place.leave()
    assert place.train(2, ranks.train) == [0, 0]
    assert_equal(place, unbroken(2))


def test_a_roll_back_is_one_in_the_store_too(place):
    words = ("safety=roll_back", "safety.rewind_steps=1", "safety.min_skipped_steps=1")
    assert place.train(1, ranks.train_with_nan, 10, 0, overrides=words) == [0]
    assert place.steps() == [8, 12]
    curve = place.curve()
    assert [record["step"] for record in curve] == list(range(1, 13))
    assert all(record["loss"] is not None for record in curve)
    place.leave()
    assert place.train(1, ranks.train, overrides=words) == [0]
    assert place.curve() == curve
