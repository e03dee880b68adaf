"""Before the first step: what a run may go on from, and saying what is about to run."""

import hashlib
import json
import logging
import math
from typing import Any

import torch

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig, architecture_of
from train.checkpoints.state_files import StateFiles
from train.config import Plan, TrainConfig
from train.data.text_mask import TextMask
from train.model.flops import PairFlops, context_length_of, describe_budget, pair_flops, total_budget
from train.model.meta_model import build_on_meta
from train.model.packed_text import packs
from train.optimization.optimizer import freeze_parameters
from train.optimization.parameter_rules import trained_towers
from train.stages import Stage, budget_parts, stage_of

ASSUMED_TEXT_TOKENS = 18
"""Mean tokens of an alt text with its two marks, for the budget; the log counts the real ones."""

logger = logging.getLogger(__name__)


def identity_of(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """What must be the same for a run to go on from a checkpoint: other values would have made other steps.

    How many ranks there are and by which strategy they train is not part of it.
    """
    architecture = json.dumps(architecture_of(config.model), sort_keys=True)
    return {
        "model.name": config.model.name,
        "model.architecture": hashlib.sha256(architecture.encode()).hexdigest()[:16],
        "usable samples of the data": plan.samples_per_epoch,
        "data.shuffle_window_shards": config.data.shuffle_window_shards,
        "shares of data.sources": _shares(config),
        "train.global_batch_size": config.train.global_batch_size,
        "seed": config.seed,
        "optimizer.name": config.optimizer.name.value,
        "loss.name": config.loss.name.value,
        "ema": config.ema is not None,
    }


def _shares(config: TrainConfig) -> list[float] | None:
    """Of the samples drawn; None where they follow from the sizes. One in 65,536 is the least that weights tell."""
    weights = [source.weight for source in config.data.source_list if source.weight is not None]
    return [round(weight / sum(weights), 6) for weight in weights] if len(weights) > 1 else None


def check_resume(state: StateFiles, identity: dict[str, Any], plan: Plan) -> None:
    """Refuses to go on from a run whose steps were not the ones this run would have done.

    What a checkpoint of an earlier version does not tell is not compared: those have no order of the data.

    Raises:
        ConfigError: naming each setting that differs, with both values.
    """
    then = state.identity
    unknown = sorted(identity.keys() - then.keys())
    if unknown:
        logger.info(
            "%s does not tell %s; they are taken to be as they were", state.folder, ", ".join(unknown)
        )
    differ = [name for name in sorted(then) if identity.get(name) != then[name]]
    listed = [f"{name}: checkpoint {then[name]}, now {identity.get(name)}" for name in differ]
    position = state.progress["position"] - state.progress["skipped_samples"]
    planned = plan.samples_seen(state.step)
    if not listed and position != planned:
        listed = [
            f"samples seen by step {state.step}: checkpoint {position}, now {planned}, by batches and stages"
        ]
    if listed:
        raise ConfigError(
            f"{state.folder} was written by another run than the one asked for ({'; '.join(listed)}); give the "
            "settings it was started with, or another run_name"
        )


class Flops:
    """FLOPs of a pair by architecture and caption length; counted once for each whole number of tokens."""

    def __init__(self, teacher: ModelConfig | None = None) -> None:
        self._known: dict[tuple[str, int], PairFlops] = {}
        self._teacher = teacher

    def forward(self, model: ModelConfig, text_tokens: float) -> PairFlops:
        """Of one image and one caption of so many tokens, rounded."""
        architecture = architecture_of(model)
        key = json.dumps(architecture, sort_keys=True), round(text_tokens)
        if key not in self._known:
            self._known[key] = pair_flops(architecture, text_tokens=key[1])
        return self._known[key]

    def training(self, model: ModelConfig, text_tokens: float, trains: tuple[bool, bool]) -> float:
        """Of a step on one pair, with the forward of a teacher; `trains` as `trained_towers` gives it."""
        image_trains, text_trains = trains
        student = self.forward(model, text_tokens).training(
            image_trains=image_trains, text_trains=text_trains
        )
        return student + self.of_teacher()

    def of_teacher(self) -> float:
        """Of the teacher's forward on one pair, which reads padded captions; 0 without one."""
        if self._teacher is None:
            return 0.0
        return self.forward(self._teacher, context_length_of(architecture_of(self._teacher))).total


def budget_of(config: TrainConfig, plan: Plan, device: torch.device) -> str:
    """What the run costs, in words."""
    model = build_on_meta(architecture_of(config.model))
    freeze_parameters(model, config.optimizer)
    image_trains, text_trains = trained_towers(model)
    packed = packs(model) is None
    flops = total_budget(
        budget_parts(plan.stages, architecture_of(config.model)),
        text_tokens=ASSUMED_TEXT_TOKENS if packed else math.inf,
        image_trains=image_trains,
        text_trains=text_trains,
    )
    flops += plan.total_samples * Flops(config.loss.teacher).of_teacher()
    cost = describe_budget(flops, device_name(device), config.precision.name.value)
    return f"{cost}, at {ASSUMED_TEXT_TOKENS} tokens a caption" if packed else f"{cost}, with padded captions"


def device_name(device: torch.device) -> str:
    """As people call it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def log_startup(config: TrainConfig, plan: Plan, state: StateFiles | None, world: World) -> None:
    """One block that says what is about to run, on rank 0."""
    if not world.is_main:
        return
    ranks = f"{world.world_size} rank{'s' if world.world_size > 1 else ''}"
    now = stage_of(plan.stages, (state.step if state else 0) + 1)
    parts = config.train.accumulation_steps
    lines = {
        "run": f"{config.run_name} in {config.run_folder}",
        "model": config.model.name,
        "device": f"{device_name(world.device)}, {ranks}, strategy {config.strategy.name.value}",
        "precision": config.precision.name.value,
        "compute": f"compile {config.compute.compile.value}, activation checkpointing "
        f"{config.compute.activation_checkpointing.value}",
        "loss": f"{config.loss.name.value}, features by {config.loss.exchange.value}",
        "batch": f"{now.global_batch_size} global = {now.per_rank_batch_size} x {ranks}, in {parts} part"
        f"{'s' if parts > 1 else ''}",
        "data": f"{_data_of(config)}: {plan.samples_per_epoch} samples",
        "length": f"{plan.total_steps} steps, {plan.total_samples} samples seen, "
        f"{plan.total_samples / plan.samples_per_epoch:.2f} epochs",
        "budget": budget_of(config, plan, world.device),
        "starts from": f"step {state.step} of {state.folder}" if state else "the beginning",
    }
    if len(plan.stages) > 1:
        lines["stages"] = "; ".join(
            f"{stage.num_steps} steps of {stage.global_batch_size} at {stage.image_size} px and "
            f"{stage.context_length} tokens{_masked(stage)}, patch dropout {stage.patch_dropout:g}, "
            f"peak lr {stage.peak_lr:g}"
            for stage in plan.stages
        )
    width = max(map(len, lines))
    logger.info("training\n%s", "\n".join(f"  {name:<{width}}  {text}" for name, text in lines.items()))


def _masked(stage: Stage) -> str:
    return "" if stage.text_mask is TextMask.cut else f" chosen by {stage.text_mask.value}"


def _data_of(config: TrainConfig) -> str:
    return " + ".join(source.shards for source in config.data.source_list)
