"""How the model is spread over ranks, as settings: the strategies there are and the options each one reads."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from omegaconf import MISSING

from crawl2clip.errors import ConfigError


class StrategyName(Enum):
    """ddp: whole copies; fsdp2: all in shards; hsdp: shards within groups, copies between them; zeroN: DeepSpeed."""

    ddp = "ddp"
    fsdp2 = "fsdp2"
    hsdp = "hsdp"
    zero1 = "zero1"
    zero2 = "zero2"
    zero3 = "zero3"

    @property
    def zero_stage(self) -> int | None:
        """DeepSpeed's stage, 1 to 3; None for the strategies of torch."""
        return int(self.value.removeprefix("zero")) if self.value.startswith("zero") else None


_FSDP = (StrategyName.fsdp2, StrategyName.hsdp)
_ZERO = (StrategyName.zero1, StrategyName.zero2, StrategyName.zero3)
_READ_BY = {
    "static_graph": (StrategyName.ddp,),
    "sync_batchnorm": (StrategyName.ddp,),
    "reshard_after_forward": _FSDP,
    "cpu_offload": _FSDP,
    "shard_size": (StrategyName.hsdp,),
    "offload_optimizer": _ZERO,
    "offload_param": (StrategyName.zero3,),
}
_OPTIONAL = ("offload_optimizer", "offload_param")
_OFFLOAD_DEVICES = ("none", "cpu")


@dataclass(kw_only=True)
class StrategyConfig:
    """How the model is spread over ranks. An option is null under the strategies that do not read it."""

    name: StrategyName = MISSING
    static_graph: bool | None = (
        None  # ddp: every step uses the same parameters; needed if some are never used
    )
    sync_batchnorm: bool | None = None  # ddp: batch-norm statistics over all ranks' samples; CUDA only
    reshard_after_forward: bool | None = (
        None  # fsdp2, hsdp: free gathered blocks between forward and backward
    )
    cpu_offload: bool | None = None  # fsdp2, hsdp: weights, gradients and optimizer state live in host memory
    shard_size: int | None = (
        None  # hsdp: ranks that share one copy, usually those of a node; divides the world
    )
    offload_optimizer: dict[str, Any] | None = None  # zeroN: DeepSpeed's mapping, such as {device: cpu}
    offload_param: dict[str, Any] | None = None  # zero3: likewise, for the weights

    def __post_init__(self) -> None:
        for option, readers in _READ_BY.items():
            value = getattr(self, option)
            if self.name not in readers and value is not None:
                names = " and ".join(reader.value for reader in readers)
                raise ConfigError(
                    f"strategy.{option}={value} is set with strategy={self.name.value}, which does not read it; "
                    f"it is for {names}: leave it null, or choose one of those"
                )
            if self.name in readers and value is None and option not in _OPTIONAL:
                raise ConfigError(f"strategy.{option} has no value; strategy={self.name.value} needs one")
        if self.shard_size is not None and self.shard_size < 1:
            raise ConfigError(
                f"strategy.shard_size is {self.shard_size}; give the number of ranks of a shard group"
            )
        for option in _OPTIONAL:
            device = (getattr(self, option) or {}).get("device", "none")
            if device not in _OFFLOAD_DEVICES:
                raise ConfigError(
                    f"strategy.{option}.device is {device!r}; checkpoints are written for "
                    f"{' and '.join(_OFFLOAD_DEVICES)}: give one of them"
                )
        if (ratio := (self.offload_optimizer or {}).get("ratio", 1.0)) != 1.0:
            raise ConfigError(
                f"strategy.offload_optimizer.ratio is {ratio}: DeepSpeed steps what stays on the GPU by another "
                "optimizer, which neither a skipped step nor a checkpoint reaches; leave it out, which offloads all"
            )
