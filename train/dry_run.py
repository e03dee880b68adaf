"""`dry_run=true`: a run's real settings checked on one CPU, for as many nodes as one likes, before any is allocated.

The model has shapes and no data, of the shards only headers are read, nothing is written and no process group
starts. `preflight.num_nodes` and `preflight.gpus_per_node` say what machines the run will have.
"""

import dataclasses
import os

import torch

from crawl2clip import storage
from crawl2clip.distributed import pick_device
from crawl2clip.models import architecture_of
from train.checkpoints.checkpoint_folder import list_checkpoints
from train.config import TrainConfig, make_plan, model_of, validate
from train.data.remote import RemoteShards, list_all_shards
from train.losses.loss import check_trainable
from train.memory_estimate import MemoryRequest, spread_of
from train.model.meta_model import build_on_meta
from train.model.packed_text import packs
from train.model.precision import compute_dtype
from train.optimization.optimizer import build_optimizer, freeze_parameters
from train.preflight import Report, check_disk, check_memory, check_shards, device_bytes
from train.stages import Stage
from train.startup import ASSUMED_TEXT_TOKENS, budget_of

_ASSUMED_SAMPLES = 10**12
"""Where the length is given in samples, how many the data has is not counted here."""


def dry_run(config: TrainConfig) -> Report:
    """Everything that can be known of the run before it starts.

    Raises:
        ConfigError: settings that do not fit each other, the model or the imagined machines.
    """
    here = int(os.environ.get("WORLD_SIZE", "1"))
    world_size = config.preflight.world_size(here)
    validate(config, world_size)
    device = pick_device(config.device)
    report = Report()
    report.rows.append(("run", f"{config.run_name} in {config.run_folder}"))
    report.rows.append(("ranks", f"{world_size}, strategy {config.strategy.name.value}"))
    remote = RemoteShards(config.data.remote)  # opens nothing before it is asked
    shards = [shard for source in config.data.source_list for shard in list_all_shards(source.shards, remote)]
    check_shards(report, shards, remote)
    plan = make_plan(config, _ASSUMED_SAMPLES, world_size) if config.train.samples_seen is not None else None
    stages = (
        plan.stages
        if plan
        else make_plan(_one_step(config), config.train.global_batch_size, world_size).stages
    )
    _check_model(report, config, _heaviest(stages), device, world_size)
    if plan:
        report.rows.append(("length", f"{plan.total_steps} steps, {plan.total_samples} samples seen"))
        report.rows.append(("budget", budget_of(config, plan, device)))
    return report


def _one_step(config: TrainConfig) -> TrainConfig:
    """The settings of a run of one step, for those whose length in epochs is known only when the data is counted."""
    duration = dataclasses.replace(config.train, epochs=None, samples_seen=config.train.global_batch_size)
    schedule = dataclasses.replace(config.schedule, warmup_steps=0)
    return dataclasses.replace(config, train=duration, schedule=schedule, stages=None)


def _heaviest(stages: list[Stage]) -> Stage:
    """The stage whose activations are most: pixels that the image tower sees in one forward."""
    return max(
        stages, key=lambda stage: stage.per_rank_batch_size * stage.image_size**2 * (1 - stage.patch_dropout)
    )


def _check_model(
    report: Report, config: TrainConfig, stage: Stage, device: torch.device, world_size: int
) -> None:
    architecture = architecture_of(model_of(config, stage))
    model = build_on_meta(architecture)
    text_tokens = stage.context_length
    if packs(model) is None:
        # As if made for captions of the mean length: what packing leaves of them.
        text_tokens = architecture["text_cfg"]["context_length"] = min(ASSUMED_TEXT_TOKENS, text_tokens)
        model = build_on_meta(architecture)
    check_trainable(model, config.model.name, config.loss)
    freeze_parameters(model, config.optimizer)
    strategy = config.strategy
    parts = config.train.accumulation_steps
    request = MemoryRequest(
        image_size=stage.image_size,
        text_tokens=text_tokens,
        decode_size=config.data.decode_size or stage.image_size,
        global_batch_size=stage.global_batch_size,
        per_rank_batch_size=stage.per_rank_batch_size,
        micro_batch_size=stage.per_rank_batch_size // parts,
        dtype=compute_dtype(config.precision.name),
        checkpointing=config.compute.activation_checkpointing.value,
        ema=config.ema is not None,
        tile_size=config.loss.tile_size,
        on_cuda=device.type == "cuda" or config.preflight.device_memory_gb is not None,
    )
    offloaded = [
        part
        for part, option in (("weights", strategy.offload_param), ("optimizer", strategy.offload_optimizer))
        if (option or {}).get("device", "none") == "cpu"
    ]
    spread = spread_of(
        strategy.name.value,
        world_size,
        shard_size=strategy.shard_size,
        on_host=("weights", "gradients", "optimizer") if strategy.cpu_offload else tuple(offloaded),
        keeps_gathered=strategy.reshard_after_forward is False,
    )
    given = config.preflight.device_memory_gb
    room = int(given * 1e9) if given is not None else device_bytes(device, max(1, world_size))
    check_memory(report, model, request, spread, lambda plain: build_optimizer(plain, config.optimizer), room)
    folder = storage.local_path(config.run_folder)
    check_disk(
        report,
        folder,
        model,
        lambda plain: build_optimizer(plain, config.optimizer),
        ema=config.ema is not None,
        kept=config.checkpoint.keep_last + (config.checkpoint.keep_best is not None),
        saved_already=len(list_checkpoints(folder / "checkpoints")),
    )
