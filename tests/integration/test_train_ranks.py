"""Training on real gloo processes: the loss and its gradient, equal curves, kills, signals, NaNs, resumes."""

import io
from pathlib import Path

import pytest
import torch
import train_ranks as ranks
from gloo_ranks import on_ranks
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.errors import ConfigError
from crawl2clip.shards import ShardWriter
from evaluate.config import SuiteConfig
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.data.prompts import CLASS_NAMES_FILE, TEMPLATES_FILE
from train.config import TrainConfig
from train.loop import UnstableError
from train.monitoring.metrics import read_metrics
from train.run import exported_step
from train.stop_signal import STOPPED_EXIT_CODE

MEASURED = (
    "step",
    "samples_seen",
    "loss",
    "logit_scale",
    "lr",
    "grad_norm",
    "bad_draws",
    "bad_draws/undecodable",
)


def square(shade):
    data = io.BytesIO()
    Image.new("RGB", (40, 40), (shade, 255 - shade, shade // 6)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two shards of 20 coloured squares with captions; one image is broken."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for number in range(20 * shard, 20 * shard + 20):
                image = b"junk" if number == 7 else square(6 * number)
                writer.write(f"{number:04d}", {"png": image, "txt": f"square number {number}".encode()})
    return folder


@pytest.fixture(scope="module")
def settings(shards, tmp_path_factory):
    """Makes the settings of a run of 12 steps with checkpoints at 4, 8 and 12; `name` is its folder."""
    register("train_schema", TrainConfig)
    runs = tmp_path_factory.mktemp("runs")

    def make(name, *overrides):
        words = [
            "model=tiny", "precision=fp32", "augment=drawings", "device=cpu", "wandb.enabled=false",
            f"run_name={name}", f"run_folder={runs / name}", f"data.shards={shards}",
            "data.decode_size=40", "data.num_workers=0", "train.global_batch_size=8", "train.samples_seen=96",
            "train.log_every_steps=1", "checkpoint.every_steps=4", "optimizer.lr=0.003", "schedule.warmup_steps=2",
            "optimizer.max_grad_norm=1.0", "checkpoint.asynchronous=false",
            "+model.architecture.vision_cfg.patch_dropout=0.25", *overrides,
        ]  # fmt: skip
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return typed(compose("train", words), TrainConfig)

    return make


@pytest.fixture(scope="module")
def unbroken(settings):
    """The settings of a run that nothing disturbed, by number of ranks; each is done once."""
    done = {}

    def make(world_size):
        if world_size not in done:
            done[world_size] = settings(f"unbroken_{world_size}")
            assert on_ranks(ranks.train, world_size, done[world_size]) == [0] * world_size
        return done[world_size]

    return make


def curve(config):
    """The measured numbers of every step in metrics.jsonl."""
    records = read_metrics(Path(config.run_folder) / "metrics.jsonl")
    return [{name: record[name] for name in MEASURED} for record in records if "loss" in record]


def weights(config):
    return load_file(Path(config.run_folder) / "export" / "open_clip_model.safetensors")


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def saved_steps(config):
    return sorted(path.name for path in (Path(config.run_folder) / "checkpoints").iterdir())


PLAIN = ("model.architecture.vision_cfg.patch_dropout=0.0",)
"""Nothing random that depends on ranks; the order of samples, crops and augmentation do not."""


def close(first, second, rel):
    """Whether two curves agree to a relative tolerance in what is computed."""
    for name in ("loss", "logit_scale", "grad_norm"):
        assert [r[name] for r in first] == pytest.approx([r[name] for r in second], rel=rel)


def samples(config):
    """Sample numbers of each step, in no order."""
    files = sorted(Path(config.run_folder).glob("samples_*"), key=lambda path: int(path.name[8:]))
    return [sorted(map(int, path.read_text().split())) for path in files]


def test_two_ranks_one_rank_two_ranks_train_as_one_process_and_draw_each_sample_once(settings):
    alone, together = settings("alone", *PLAIN), settings("together", *PLAIN)
    for config in (alone, together):
        Path(config.run_folder).mkdir()
    assert on_ranks(ranks.train_and_note, 1, alone, None) == [0]
    assert on_ranks(ranks.train_and_note, 2, together, 4) == [-9, -9]
    assert on_ranks(ranks.train_and_note, 1, together, 8) == [-9]
    assert on_ranks(ranks.train_and_note, 2, together, None) == [0, 0]
    # float32 sums in another order; Adam divides by small second moments, which enlarges that a little each step.
    close(curve(together)[:4], curve(alone)[:4], rel=1e-4)
    close(curve(together), curve(alone), rel=1e-3)
    assert samples(together) == samples(alone)
    # 39 usable samples: each once in the first epoch, but that number 8 stands in for the broken 7 too.
    drawn = sorted(number for step in samples(together)[:5] for number in step)
    assert drawn == sorted([*range(7), 8, *range(8, 40)])


def test_micro_batches_give_the_curve_of_one_large_one(settings):
    whole, parts = settings("whole", *PLAIN), settings("parts", *PLAIN, "train.accumulation_steps=2")
    assert on_ranks(ranks.train, 2, whole) == on_ranks(ranks.train, 2, parts) == [0, 0]
    close(curve(parts), curve(whole), rel=1e-3)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_killed_three_times_equals_an_unbroken_one_bit_for_bit(settings, unbroken, world_size):
    broken = settings(f"killed_{world_size}")
    assert on_ranks(ranks.train_and_die, world_size, broken, 7) == [-9] * world_size
    # A step is read while the next one runs.
    assert [record["step"] for record in curve(broken)] == [1, 2, 3, 4, 5]
    assert on_ranks(ranks.train_and_die_saving, world_size, broken, 8)[0] == -9
    assert saved_steps(broken)[0] == "step_0000004"
    assert saved_steps(broken)[1].startswith("step_0000008.tmp-")
    assert on_ranks(ranks.train_and_die, world_size, broken, 11) == [-9] * world_size
    assert on_ranks(ranks.train, world_size, broken) == [0] * world_size
    assert curve(broken) == curve(unbroken(world_size))
    assert len(curve(broken)) == 12
    last = curve(broken)[-1]
    assert last["bad_draws"] == last["bad_draws/undecodable"] > 0
    assert same_bits(weights(broken), weights(unbroken(world_size)))
    assert saved_steps(broken) == ["step_0000004", "step_0000008", "step_0000012"]


def test_scoring_and_a_decoded_cache_on_two_ranks_change_no_step(settings, tmp_path):
    (tmp_path / "shades" / "test").mkdir(parents=True)
    with ShardWriter(tmp_path / "shades" / "test" / "0.tar") as writer:
        for label in range(3):
            writer.write(f"{label:04d}", {"png": square(60 * label), "cls": str(label).encode()})
    (tmp_path / "shades" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "shades" / CLASS_NAMES_FILE).write_text("dark\nmiddle\nlight")
    (tmp_path / "shades" / TEMPLATES_FILE).write_text("a {c} square")
    unscored = settings("unscored", "data.random_crop=null")
    assert on_ranks(ranks.train, 2, unscored) == [0, 0]
    config = settings(
        "scored", "data.random_crop=null", "data.cache_decoded=true", "evaluation.every_steps=6",
        f"evaluation.data_root={tmp_path}",
        "evaluation.num_workers=0",
    )  # fmt: skip
    shades = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    config.evaluation.suite = SuiteConfig(name="loop", datasets={"shades": shades})
    assert on_ranks(ranks.train, 2, config) == [0, 0]
    assert curve(config) == curve(unscored)
    scores = [
        record for record in read_metrics(Path(config.run_folder) / "metrics.jsonl") if "loss" not in record
    ]
    assert [record["step"] for record in scores] == [6, 12]
    assert all(0 <= record["evaluation/shades/zero_shot/acc1"] <= 1 for record in scores)


def test_a_signal_to_one_rank_saves_and_stops_all(settings, unbroken):
    stopped = settings("stopped")
    assert on_ranks(ranks.train_and_signal, 2, stopped, 5, 1) == [STOPPED_EXIT_CODE] * 2
    # Received in step 5, told to all in step 6, read while step 7 runs.
    assert saved_steps(stopped) == ["step_0000004", "step_0000007"]
    assert on_ranks(ranks.train, 2, stopped) == [0, 0]
    assert curve(stopped) == curve(unbroken(2))
    assert same_bits(weights(stopped), weights(unbroken(2)))


@pytest.mark.parametrize("often", ["checkpoint.every_steps=1", "evaluation.every_steps=1"])
def test_a_signal_is_heard_where_every_step_is_saved_or_scored(settings, often):
    stopped = settings(f"stopped-{often.split('.')[0]}", often)
    assert on_ranks(ranks.train_and_signal, 2, stopped, 5, 1) == [STOPPED_EXIT_CODE] * 2
    assert saved_steps(stopped)[-1] == "step_0000006"  # which told all, and whose numbers are read at once


def test_a_nan_on_one_rank_is_skipped_by_all(settings):
    skipped = settings("skipped")
    assert on_ranks(ranks.train_with_nan, 2, skipped, 7, 1) == [0, 0]
    records = curve(skipped)
    assert [record["step"] for record in records if record["loss"] is None] == [7]
    assert all(torch.isfinite(tensor).all() for tensor in weights(skipped).values())


def test_a_nan_on_one_rank_stops_all_and_leaves_the_last_checkpoint_good(settings, unbroken):
    poisoned = settings("poisoned", "safety=stop")
    outcomes = on_ranks(ranks.train_with_nan, 2, poisoned, 7, 1)
    assert [type(outcome) for outcome in outcomes] == [UnstableError] * 2
    assert all("step 7: loss is nan" in str(outcome) for outcome in outcomes)
    assert saved_steps(poisoned) == ["step_0000004"]
    assert on_ranks(ranks.train, 2, poisoned) == [0, 0]
    assert curve(poisoned) == curve(unbroken(2))


def test_a_nan_on_one_rank_rolls_all_back_and_other_samples_follow(settings, unbroken):
    rolled = settings(
        "rolled",
        "safety=roll_back",
        "safety.rewind_steps=1",
        "safety.min_skipped_steps=1",
        "train.samples_seen=96",
    )
    assert on_ranks(ranks.train_with_nan, 2, rolled, 7, 1) == [0, 0]
    records = curve(rolled)
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[:4] == curve(unbroken(2))[:4]
    assert records[4]["loss"] != curve(unbroken(2))[4]["loss"]  # later samples in the steps done anew
    assert all(record["loss"] is not None for record in records)
    last = read_metrics(Path(rolled.run_folder) / "metrics.jsonl")[-1]
    assert last["roll_backs"] == 1
    replaced = sum(int(path.read_text()) for path in Path(rolled.run_folder).glob("bad_*"))
    assert last["bad_draws"] == replaced > 0


def test_a_nan_before_the_first_checkpoint_leaves_nothing_to_roll_back_to(settings):
    outcomes = on_ranks(ranks.train_with_nan, 2, settings("early", "safety=roll_back"), 2, 1)
    assert [type(outcome) for outcome in outcomes] == [UnstableError] * 2
    assert "is from before step 2, so there is nothing to roll back to; start again with a lower" in str(
        outcomes[0]
    )


def test_a_curriculum_killed_in_each_stage_equals_an_unbroken_one(settings):
    stages = (
        "stages=[{fraction: 0.5, image_size: 16, context_length: 8, text_mask: random}, "
        "{fraction: 0.5, image_size: 32, global_batch_size: 4, lr: 0.001, warmup_steps: 1}]"
    )
    words = (stages, "checkpoint.every_steps=3", "ema=standard", "ema.decay=0.9", "ema.warmup_steps=0")
    whole, broken = settings("curriculum", *words), settings("curriculum_killed", *words)
    assert on_ranks(ranks.train, 2, whole) == [0, 0]
    assert on_ranks(ranks.train_and_die, 2, broken, 5) == [-9, -9]
    assert on_ranks(ranks.train_and_die, 2, broken, 8) == [-9, -9]
    assert on_ranks(ranks.train_and_die, 2, broken, 14) == [-9, -9]
    assert on_ranks(ranks.train, 2, broken) == [0, 0]
    records = curve(broken)
    assert records == curve(whole)
    assert [record["step"] for record in records] == list(range(1, 19))  # 6 steps of 8, then 12 of 4
    assert records[-1]["samples_seen"] == 96
    assert same_bits(weights(broken), weights(whole))


@pytest.mark.parametrize(
    ("strategy", "compute", "shells"),
    [
        ("ddp", "plain", []),
        ("ddp", "low_memory", []),
        ("fsdp2", "low_memory", []),
        ("zero2", "plain", []),
        ("zero3", "plain", ["plain"]),  # DeepSpeed keeps modules, without a tensor in them
    ],
)
def test_a_stage_leaves_no_memory_taken(settings, strategy, compute, shells):
    stages = "stages=[{fraction: 0.25}, {fraction: 0.25}, {fraction: 0.5}]"
    config = settings(f"border_{strategy}_{compute}", stages, f"strategy={strategy}", f"compute={compute}")
    for found in on_ranks(ranks.train_and_weigh, 2, config):
        assert [stage["alive"] for stage in found] == [[], shells, 2 * shells]
        # The first checkpoint's copy stays for the next one: weights and two moments. A model would add a third;
        # some bytes come and go with the loader's thread.
        assert found[2]["bytes"] == pytest.approx(found[1]["bytes"], rel=0.01)


def test_a_torn_checkpoint_and_one_of_another_model(settings, unbroken):
    config = settings("torn")
    assert on_ranks(ranks.train_and_die, 1, config, 10) == [-9]
    state = Path(config.run_folder) / "checkpoints" / "step_0000008" / "rank-00000-of-00001.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    other = settings("torn", "model.name=wide", "model.architecture.embed_dim=48")
    outcomes = on_ranks(ranks.train, 2, other)
    assert [type(outcome) for outcome in outcomes] == [ConfigError] * 2
    assert "model.name: checkpoint tiny, now wide" in str(outcomes[0])
    assert "or another run_name" in str(outcomes[0])
    assert on_ranks(ranks.train, 1, config) == [0]
    assert curve(config) == curve(unbroken(1))


def test_a_complete_run_has_nothing_to_do_and_a_longer_one_goes_on(settings):
    config = settings("complete")
    assert on_ranks(ranks.train, 1, config) == [0]
    before = curve(config)
    assert on_ranks(ranks.train, 1, config) == [0]
    assert curve(config) == before
    assert on_ranks(ranks.train, 1, settings("complete", "train.samples_seen=112")) == [0]
    assert [record["step"] for record in curve(config)] == list(range(1, 15))
    assert exported_step(Path(config.run_folder) / "export") == 14
