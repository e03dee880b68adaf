"""Every composed training config: it composes, its settings fit together, and its model can be built."""

from pathlib import Path

import open_clip
import pytest
from hydra.errors import MissingConfigException
from train_settings import train_settings

from crawl2clip.config import CONFIG_DIR
from crawl2clip.models import architecture_of
from evaluate.config import register_zoo
from train.config import make_plan, validate
from train.losses.loss import check_trainable
from train.model.meta_model import build_on_meta
from train.optimization.optimizer import build_optimizer, freeze_parameters

GIVEN = ("run_name=x", "data.shards=shards")
LENGTH = ("train.global_batch_size=4096", "train.samples_seen=1000000000")

GROUPS = (
    "model", "data", "augment", "loss", "optimizer", "schedule", "curriculum", "strategy", "precision", "compute",
    "safety", "ema", "profile",
)  # fmt: skip
REQUIRED = {
    ("loss", "sigmoid"): ["+model.architecture.init_logit_bias=-10"],
    ("loss", "coca"): ["model=vit_b_32", "model.name=coca_ViT-B-32"],
    ("loss", "distillation"): [
        "model=vit_b_32",
        "loss.teacher.name=ViT-B-32",
        "loss.teacher.pretrained=openai",
    ],
    ("model", "siglip_b_16"): ["loss=sigmoid"],
    ("precision", "float8"): ["compute=compiled"],
    ("curriculum", "clipa"): ["model=vit_b_16"],
    ("curriculum", "flip"): ["model=vit_b_16"],
}
"""What a choice needs beside it."""


def choices(group):
    return sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml"))


def composed(*overrides):
    return train_settings(*GIVEN, *overrides)


def check(config, world_size=8):
    """Settings that fit together, and a model (with shapes and no data) that the loss and the optimizer take."""
    if config.data.shards is not None:
        validate(config, world_size)
    model = build_on_meta(architecture_of(config.model))
    check_trainable(model, config.model.name, config.loss)
    freeze_parameters(model, config.optimizer)
    assert build_optimizer(model, config.optimizer).param_groups


@pytest.mark.parametrize("experiment", choices("experiment"))
def test_every_experiment(experiment):
    config = composed(f"experiment={experiment}")
    check(config, 64)
    plan = make_plan(config, 3_000_000_000, 64)
    assert 0 < config.schedule.warmup_steps < plan.total_steps


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_of_every_group(group, choice):
    needed = REQUIRED.get((group, choice), [])
    model = [] if group == "model" or any(word.startswith("model=") for word in needed) else ["model=tiny"]
    check(composed(*LENGTH, *model, f"{group}={choice}", *needed))


@pytest.mark.parametrize("overlay", choices("debug"))
def test_every_debug_overlay_alone_and_over_every_experiment(overlay):
    check(composed(f"debug={overlay}"), 1)
    for experiment in choices("experiment"):
        check(composed(f"experiment={experiment}", f"debug={overlay}"), 1)


@pytest.mark.parametrize("suite", choices("suite"))
def test_every_suite_can_be_scored_in_the_loop(suite):
    config = composed(*LENGTH, f"suite@evaluation.suite={suite}")
    assert config.evaluation.suite is not None
    assert config.evaluation.suite.datasets


def test_models_of_open_clips_zoo_go_by_their_names():
    register_zoo()
    config = composed(*LENGTH, "model=ViT-B-16-quickgelu")
    assert config.model.name == "ViT-B-16-quickgelu"
    assert config.model.name in open_clip.list_models()


def test_a_mistyped_choice_names_the_known_ones():
    with pytest.raises(MissingConfigException, match=r"(?s)Could not find 'optimizer/adam'.*adamw_clip"):
        composed(*LENGTH, "optimizer=adam")
