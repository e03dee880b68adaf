"""Every composed training config: it composes, its settings fit together, and its model can be built."""

import re
from pathlib import Path

import open_clip
import pytest
from hydra.errors import MissingConfigException
from train_settings import train_settings

from crawl2clip.config import CONFIG_DIR
from crawl2clip.models import architecture_of
from evaluate.config import register_zoo
from train.config import make_plan, validate
from train.dry_run import dry_run
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


MACHINES = re.compile(r"^# Memory: +(\d+) x (\d+) GPUs of (\d+) GB: ([\d.]+) GB each, by a dry run", re.M)
COMMAND = re.compile(r"^# Command: +(?:sbatch --nodes=(\d+)|torchrun --nproc_per_node=(\d+))", re.M)


def head_of(experiment):
    return (Path(CONFIG_DIR) / "experiment" / f"{experiment}.yaml").read_text()


def test_experiments_without_gpus_say_so():
    without = [name for name in choices("experiment") if not MACHINES.search(head_of(name))]
    assert without == ["emoji", "emoji_filter"]
    assert all("# Hardware: 2 cores" in head_of(name) for name in without)


@pytest.mark.parametrize(
    "experiment", [name for name in choices("experiment") if MACHINES.search(head_of(name))]
)
def test_every_experiment_fits_the_machines_in_its_head(experiment, tmp_path):
    """As its dry run estimates it, with room to spare, since an estimate is no upper bound."""
    machines, command = MACHINES.search(head_of(experiment)), COMMAND.search(head_of(experiment))
    assert machines is not None
    assert command is not None
    nodes, gpus, device_gb, told_gb = machines.groups()
    assert command.groups() in ((nodes, None), (None, gpus))
    (tmp_path / "0.tar").touch()  # nothing in it, which is a problem of the report and no warning
    report = dry_run(
        composed(
            f"experiment={experiment}", f"data.shards={tmp_path}", f"run_folder={tmp_path}",
            f"preflight.num_nodes={nodes}", f"preflight.gpus_per_node={gpus}",
            f"preflight.device_memory_gb={device_gb}",
        )
    )  # fmt: skip
    assert report.warnings == []  # one would say that it does not fit
    estimate_gb, of_gb = dict(report.rows)["memory a rank"].split(" GB")[0].split(" of ")
    assert float(of_gb) == float(device_gb)
    assert float(estimate_gb) == pytest.approx(float(told_gb), abs=0.06)


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
