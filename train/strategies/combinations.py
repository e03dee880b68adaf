"""Which strategy, precision and compute go together; asked before a process group, a GPU or data is touched."""

import torch

from crawl2clip.errors import ConfigError
from train.model.compute import Compile, ComputeConfig
from train.model.precision import PrecisionConfig, PrecisionName
from train.optimization.optimizer import ELEMENTWISE, OptimizerName
from train.strategies.config import StrategyConfig, StrategyName

_ON_SHARDS_IN_HOST_MEMORY = (*ELEMENTWISE, OptimizerName.stable_adamw)


def check_combination(
    strategy: StrategyConfig,
    precision: PrecisionConfig,
    compute: ComputeConfig,
    *,
    world_size: int,
    optimizer: OptimizerName,
    has_ema: bool,
    accumulates: bool,
) -> None:
    """Refuses settings that cannot work together.

    Args:
        strategy: the settings of that name.
        precision: likewise.
        compute: likewise.
        world_size: ranks that will train.
        optimizer: which one.
        has_ema: whether a running average of the weights is kept.
        accumulates: whether a step has several micro-batches.

    Raises:
        ConfigError: what does not fit, and what to change.
    """
    _check_layout(strategy, world_size, accumulates)
    _check_offload(strategy, optimizer)
    _check_precision(strategy, precision, compute)
    if strategy.name.zero_stage is not None:
        _check_zero(strategy, compute, optimizer, has_ema)


def _check_layout(strategy: StrategyConfig, world_size: int, accumulates: bool) -> None:
    if strategy.name is StrategyName.hsdp and strategy.shard_size and world_size % strategy.shard_size:
        divisors = [size for size in range(1, world_size + 1) if world_size % size == 0]
        raise ConfigError(
            f"strategy.shard_size={strategy.shard_size} does not divide {world_size} ranks; give one of "
            f"{', '.join(map(str, divisors))}, or use strategy=fsdp2"
        )
    if strategy.static_graph and accumulates:
        raise ConfigError(
            "strategy.static_graph=true with several micro-batches a step: only the last of them averages gradients, "
            "so the graph is not the same each time; set strategy.static_graph=false, or take one micro-batch"
        )
    if strategy.sync_batchnorm and not torch.cuda.is_available():
        raise ConfigError(
            "strategy.sync_batchnorm=true, and torch sees no CUDA device, the only one it is there for; set it to false"
        )


def _check_offload(strategy: StrategyConfig, optimizer: OptimizerName) -> None:
    if strategy.cpu_offload and optimizer not in _ON_SHARDS_IN_HOST_MEMORY:
        known = ", ".join(known.value for known in _ON_SHARDS_IN_HOST_MEMORY)
        raise ConfigError(
            f"optimizer={optimizer.value} with strategy.cpu_offload=true: it talks to other ranks about shards, and "
            f"NCCL reads no host memory; use one of optimizer {known}, or strategy.cpu_offload=false"
        )


def _check_precision(strategy: StrategyConfig, precision: PrecisionConfig, compute: ComputeConfig) -> None:
    if precision.name is PrecisionName.fp16 and strategy.name.zero_stage is not None:
        raise ConfigError(
            f"precision=fp16 with strategy={strategy.name.value}: DeepSpeed would scale the loss by rules of its own; "
            "use precision=bf16, or strategy=fsdp2"
        )
    if precision.name is PrecisionName.float8:
        if strategy.name.zero_stage is not None:
            raise ConfigError(
                f"precision=float8 with strategy={strategy.name.value}: its flat buffers do not hold torchao's "
                "weights; use strategy=fsdp2 or ddp, or precision=bf16"
            )
        if compute.compile is Compile.none:
            raise ConfigError(
                "precision=float8 with compute.compile=none: the casts around each product take longer than the "
                "product saves unless they are compiled into it; use compute=compiled, or precision=bf16"
            )


def _check_zero(
    strategy: StrategyConfig, compute: ComputeConfig, optimizer: OptimizerName, has_ema: bool
) -> None:
    name = strategy.name.value
    if optimizer not in ELEMENTWISE:
        known = " or ".join(known.value for known in ELEMENTWISE)
        raise ConfigError(
            f"optimizer={optimizer.value} with strategy={name}: DeepSpeed hands it flat pieces of many parameters, and "
            f"it needs to see each parameter whole; use optimizer {known}, or strategy=ddp or fsdp2"
        )
    if strategy.name is not StrategyName.zero3:
        return
    if compute.compile is Compile.block:
        raise ConfigError(
            "compute.compile=block with strategy=zero3: the compiler would see DeepSpeed's empty weights instead of "
            "the gathered ones; set compute.compile=none, or use strategy=fsdp2"
        )
    if has_ema:
        raise ConfigError(
            "ema with strategy=zero3: a rank has no shard of a parameter that could be averaged by itself; set "
            "ema=null, or use strategy=zero2 or fsdp2"
        )
