"""How the model is spread over ranks: chosen once, so that the loop never asks.

DDP keeps a whole model on every rank (replicated.py), FSDP2 and HSDP keep shards (sharded.py), DeepSpeed's ZeRO
keeps shards of ever more (zero.py). All of them give and take the same state, so a checkpoint of any strategy on
any number of ranks loads into any other.
"""

import torch.distributed as dist

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from train.model.compute import ComputeConfig
from train.model.precision import LossScaler, PrecisionConfig, PrecisionName, compute_dtype
from train.strategies.combinations import check_combination
from train.strategies.config import StrategyConfig, StrategyName
from train.strategies.protocol import BuildOptimizer, Strategy

__all__ = [
    "BuildOptimizer",
    "Strategy",
    "StrategyConfig",
    "StrategyName",
    "build_strategy",
    "check_combination",
]


def build_strategy(
    config: StrategyConfig, precision: PrecisionConfig, compute: ComputeConfig, world: World
) -> Strategy:
    """The strategy that a config names; the process group is up.

    Raises:
        ConfigError: a sharding strategy on a process without a group.
    """
    if config.name is not StrategyName.ddp and not dist.is_initialized():
        raise ConfigError(
            f"strategy={config.name.value} needs a process group, and this process was started by itself; start it "
            "with torchrun --nproc_per_node=1 -m train ..., or use strategy=ddp"
        )
    scaler = LossScaler(world.device) if precision.name is PrecisionName.fp16 else None
    if config.name is StrategyName.ddp:
        from train.strategies.replicated import Replicated

        return Replicated(config, scaler, world)
    if config.name.zero_stage is not None:
        from train.strategies.zero import Zero

        return Zero(config, precision.name, compute, world)
    from train.strategies.sharded import Sharded

    return Sharded(config, scaler, compute_dtype(precision.name), world)
