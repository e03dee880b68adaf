"""Settings across components: what is refused before anything runs, and the numbers derived from them."""

import logging
from types import SimpleNamespace

import pytest
from train_settings import TWO_EPOCHS, train_settings

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.models import ModelConfig
from train.config import image_size_of, make_plan, model_of, validate
from train.loop import Progress, check_bad_draws
from train.startup import check_resume, identity_of


def config(*overrides):
    return train_settings(*TWO_EPOCHS, *overrides)


def test_good_settings_pass():
    validate(config(), 4)
    validate(config("train.epochs=null", "train.samples_seen=80"), 4)


@pytest.mark.parametrize(
    ("overrides", "world_size", "message"),
    [
        (
            ["train.epochs=null", "train.samples_seen=80"],
            3,
            "global batch 8 .*is not divisible by 3 ranks; set it to 6",
        ),
        (
            ["data.decode_size=31"],
            1,
            "data.decode_size=31 is below the 32 pixels that model 'tiny' takes; give 32 or",
        ),
        (
            ["train.epochs=null", "train.samples_seen=80", "schedule.warmup_steps=10"],
            1,
            "schedule.warmup_steps=10 .* the 10 steps of the run",
        ),
        (
            ["train.epochs=null", "train.samples_seen=80", "train.accumulation_steps=3"],
            2,
            "train.accumulation_steps=3 does not divide a rank's 4 samples of a batch of 8; give a divisor",
        ),
        (
            [
                "loss=distillation",
                "loss.teacher={name: ViT-B-32, pretrained: openai}",
                "train.accumulation_steps=2",
            ],
            1,
            "train.accumulation_steps=2 with loss=distillation: .* or take loss=infonce or sigmoid",
        ),
        (
            ["stages=[{fraction: 1.0, image_size: 16}]", "model.pretrained=weights.pt"],
            1,
            "model.pretrained=weights.pt with stages of another image size or context length",
        ),
        (["strategy=hsdp", "strategy.shard_size=3"], 4, "strategy.shard_size=3 does not divide 4 ranks"),
    ],
)
def test_settings_that_do_not_fit(overrides, world_size, message):
    with pytest.raises(ConfigError, match=message):
        validate(config(*overrides), world_size)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["train.samples_seen=100"],
            "train.samples_seen is 100 and train.epochs is 2; give exactly one of them",
        ),
        (["train.epochs=null"], "train.samples_seen is None and train.epochs is None"),
        (["train.epochs=0"], "train.epochs is 0; give 1 or more"),
        (["train.global_batch_size=0"], "train.global_batch_size is 0"),
        (["train.accumulation_steps=0"], "train.accumulation_steps is 0"),
        (["train.epochs=null", "train.samples_seen=7"], "train.samples_seen=7 is less than one batch"),
        (["seed=-1"], "seed is -1; give 0 or more"),
        (["evaluation.every_steps=0"], "evaluation.every_steps is 0; give 1 or more"),
        (["evaluation.num_workers=-1"], "evaluation.num_workers is -1; give 0 or more"),
    ],
)
def test_numbers_that_make_no_sense(overrides, message):
    with pytest.raises(ConfigError, match=message):
        config(*overrides)


def test_images_that_are_not_square():
    wide = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": [32, 64], "patch_size": 16, "width": 8, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    with pytest.raises(
        ConfigError, match=r"model 'wide' takes images of \[32, 64\] pixels; training takes square"
    ):
        image_size_of(ModelConfig(name="wide", architecture=wide))
    square = {**wide, "vision_cfg": {**wide["vision_cfg"], "image_size": [48, 48]}}
    assert image_size_of(ModelConfig(name="square", architecture=square)) == 48


def test_the_plan_of_epochs_and_of_samples_seen():
    plan = make_plan(config(), 30, 2)
    assert (plan.total_steps, plan.total_samples, plan.samples_per_epoch) == (7, 56, 30)
    assert plan.samples_seen(3) == 24
    assert make_plan(config("train.epochs=null", "train.samples_seen=100"), 30, 1).total_steps == 12


def test_the_plan_of_a_curriculum():
    stages = "stages=[{fraction: 0.5, image_size: 16}, {fraction: 0.5, global_batch_size: 4}]"
    plan = make_plan(config(stages), 40, 1)
    assert [stage.num_steps for stage in plan.stages] == [5, 10]
    assert [plan.samples_seen(step) for step in (5, 6, 15)] == [40, 44, 80]
    sizes = [
        model_of(config(stages), stage).architecture["vision_cfg"]["image_size"] for stage in plan.stages
    ]
    assert sizes == [16, 32]


def test_fewer_samples_than_a_batch():
    with pytest.raises(
        ConfigError, match=r"global batch 8 .* more than the 7 usable samples of the data; set it to 6"
    ):
        make_plan(config(), 7, 2)


def saved(settings, num_samples, step, **progress):
    plan = make_plan(settings, num_samples, 1)
    position = plan.samples_seen(step)
    return SimpleNamespace(
        identity=identity_of(settings, plan), step=step, folder="step_7",
        progress={"position": position, "skipped_samples": 0, **progress},
    )  # fmt: skip


def test_a_run_may_be_made_longer_and_goes_on_after_a_roll_back():
    state = saved(config(), 30, 5)
    longer = config("train.epochs=5")
    check_resume(state, identity_of(longer, make_plan(longer, 30, 1)), make_plan(longer, 30, 1))
    rolled = saved(config(), 30, 5, position=88, skipped_samples=48)
    check_resume(rolled, identity_of(config(), make_plan(config(), 30, 1)), make_plan(config(), 30, 1))


def mixed(*weights):
    sources = ", ".join(f"{{shards: shards, weight: {weight}}}" for weight in weights)
    return ["data.shards=null", f"data.sources=[{sources}]"]


def test_the_same_shares_by_other_weights_are_the_same_order():
    state, doubled = saved(config(*mixed(1, 3)), 30, 5), config(*mixed(2, 6))
    plan = make_plan(doubled, 30, 1)
    check_resume(state, identity_of(doubled, plan), plan)
    assert identity_of(config(*mixed(2)), plan) == identity_of(
        config(), plan
    )  # one source has no turns to take


def test_a_checkpoint_from_before_the_order_was_told_goes_on(caplog):
    state, windows = saved(config(), 30, 5), config("data.shuffle_window_shards=8")
    for name in ("data.shuffle_window_shards", "shares of data.sources"):
        del state.identity[name]
    plan = make_plan(windows, 30, 1)
    with caplog.at_level(logging.INFO):
        check_resume(state, identity_of(windows, plan), plan)
    assert "step_7 does not tell data.shuffle_window_shards, shares of data.sources" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "num_samples", "words"),
    [
        ([], 31, r"usable samples of the data: checkpoint 30, now 31"),
        (["seed=1"], 30, r"seed: checkpoint 0, now 1"),
        (["train.global_batch_size=4"], 30, r"train.global_batch_size: checkpoint 8, now 4"),
        (["model.name=other"], 30, r"model.name: checkpoint tiny, now other"),
        (["model.architecture.embed_dim=16"], 30, r"model.architecture: checkpoint"),
        (["optimizer=stable_adamw"], 30, r"optimizer.name: checkpoint adamw, now stable_adamw"),
        (["data.shuffle_window_shards=8"], 30, r"data.shuffle_window_shards: checkpoint None, now 8"),
        (mixed(1, 3), 30, r"shares of data.sources: checkpoint None, now \[0.25, 0.75\]"),
        (["ema=standard"], 30, r"ema: checkpoint False, now True"),
        (
            ["stages=[{fraction: 0.2}, {fraction: 0.8, global_batch_size: 4}]"],
            30,
            r"samples seen by step 5: checkpoint 40, now 24, by batches and stages",
        ),
    ],
)
def test_another_run_is_refused(overrides, num_samples, words):
    state, other = saved(config(), 30, 5), config(*overrides)
    plan = make_plan(other, num_samples, 1)
    with pytest.raises(
        ConfigError, match=rf"{words}.*give the settings it was started with, or another run_name"
    ):
        check_resume(state, identity_of(other, plan), plan)


def test_too_many_replaced_samples_stop_the_run():
    settings = config("data.max_bad_fraction=0.25")
    plan = make_plan(settings, 30, 1)
    check_bad_draws(settings, plan, Progress(bad_draws=8), 1)  # all of a batch, but too early to judge
    check_bad_draws(settings, plan, Progress(bad_draws=8), 4)
    with pytest.raises(
        DataError, match=r"9 of 32 samples drawn up to step 4 .* more than data.max_bad_fraction=0.25"
    ):
        check_bad_draws(settings, plan, Progress(bad_draws=9), 4)
