"""A running average of the weights, for evaluation and export.

The shadow is float32 and lies where the weights lie: on DDP replicas whole on every rank, under FSDP2 as the same
shards. Parameters that do not train are their own average and have no shadow. What has one is every trainable
parameter and every floating-point buffer of the state dict (BatchNorm statistics).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import MISSING
from torch import nn
from torch.distributed.tensor import DTensor

from crawl2clip.errors import ConfigError
from train.checkpoints.state import Piece, StateReader

_ops: Any = torch  # its _foreach_ functions, one launch for many tensors, have no public names
_SCALARS = ("logit_scale", "logit_bias")  # [] in a checkpoint, though some strategies train them as [1]


@dataclass(kw_only=True)
class EmaConfig:
    """The running average: shadow = decay * shadow + (1 - decay) * weights."""

    decay: float = MISSING  # of one update, above 0 and below 1
    every_steps: int = MISSING  # optimizer steps between updates, 1 or more
    warmup_steps: int = MISSING  # optimizer steps until the decay is reached; 0 has it from the start

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ConfigError(f"ema.decay is {self.decay}; give a number above 0 and below 1, such as 0.9999")
        if self.every_steps < 1:
            raise ConfigError(f"ema.every_steps is {self.every_steps}; give 1 or more steps")
        if self.warmup_steps < 0:
            raise ConfigError(f"ema.warmup_steps is {self.warmup_steps}; give 0 or more steps")


def decay_at(step: int, config: EmaConfig) -> float:
    """The decay of the update at optimizer step `step`, counted from 1.

    The span of the average, 1 / (1 - decay) updates, grows in proportion to the steps done until warmup_steps
    (ema_rampup of Karras et al. 2020, StyleGAN2-ADA), so that the first weights are soon forgotten.
    """
    if step >= config.warmup_steps:
        return config.decay
    span = step / config.warmup_steps / (1 - config.decay)
    return 1 - 1 / max(span, 1.0)


class Ema:
    """The running average of one model's weights; starts as a copy of them."""

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        """Takes the plain model, after the strategy has placed (and sharded) its parameters."""
        self._config = config
        self._shadow = {
            name: _local(tensor).detach().to(torch.float32, copy=True)
            for name, tensor in _averaged(model).items()
        }

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after optimizer step `step`, every so many steps."""
        if step % self._config.every_steps:
            return
        tensors = _averaged(model)
        shadows = [self._shadow[name] for name in tensors]
        weights = [_local(tensor).detach().float() for tensor in tensors.values()]
        _ops._foreach_lerp_(shadows, weights, 1 - decay_at(step, self._config))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights for a block, bit for bit itself again after it.

        Under a strategy that gathers weights, enter this first and the gathering within it.
        """
        tensors = {name: _local(tensor).detach() for name, tensor in _averaged(model).items()}
        saved = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            _copy(self._shadow, tensors)
            yield
        finally:
            _copy(saved, tensors)

    def pieces(self, model: nn.Module, rank: int, world_size: int) -> list[Piece]:
        """This rank's share of the shadow as `ema/<name>`; over all ranks, each row once.

        Shards are given by the rank that holds them; of a parameter that every rank holds whole, each gives some rows.
        Buffers are rank 0's, as in the model's own state: every rank has statistics of its own.
        """
        found = []
        for name, tensor in _averaged(model).items():
            shadow, shape = self._shadow[name], tuple(tensor.shape)
            if isinstance(tensor, DTensor):
                start, own = _shard_start(tensor), _is_first_replica(tensor)
            elif isinstance(tensor, nn.Parameter):
                start, shadow = _own_rows(shadow, rank, world_size)
                own = rank == 0 if not shape else len(shadow) > 0
            else:
                start, own = 0, rank == 0
            if name in _SCALARS:
                shape, shadow = (), shadow.reshape(()) if shadow.numel() else shadow
            if own and shadow.numel():
                found.append(Piece(f"ema/{name}", shape, start if shape else 0, shadow))
        return found

    @torch.no_grad()
    def load(self, model: nn.Module, state: StateReader) -> None:
        """Takes up a saved average.

        Raises:
            ConfigError: the state holds no average, so the run was started without one.
        """
        held = set(state.names())
        for name, tensor in _averaged(model).items():
            shadow = self._shadow[name]
            if f"ema/{name}" not in held:
                raise ConfigError(
                    f"the checkpoint has no running average of {name}: it was written with ema=null, or with other "
                    "parameters frozen; go on with the settings it was started with, or start another run_name"
                )
            if not shadow.numel():
                continue
            if shadow.ndim == 0 or name in _SCALARS:
                rows = state.read(f"ema/{name}")
            else:
                start = _shard_start(tensor) if isinstance(tensor, DTensor) else 0
                rows = state.read(f"ema/{name}", start, start + len(shadow))
            shadow.copy_(rows.reshape(shadow.shape))


def _averaged(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trainable parameters and floating-point buffers of the state dict, by name, in its order."""
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if tensor.is_floating_point() and (tensor.requires_grad or not isinstance(tensor, nn.Parameter))
    }


@torch.no_grad()
def _copy(source: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    _ops._foreach_copy_(list(target.values()), [source[name] for name in target])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _own_rows(tensor: torch.Tensor, rank: int, world_size: int) -> tuple[int, torch.Tensor]:
    """A rank's even share of the rows of a tensor that all ranks hold; rank 0 has those without rows."""
    if tensor.ndim == 0:
        return 0, tensor
    start, stop = (len(tensor) * number // world_size for number in (rank, rank + 1))
    return start, tensor[start:stop]


def _shard_start(tensor: DTensor) -> int:
    """The first row of this rank's shard: FSDP2 cuts dimension 0 as torch.chunk does."""
    for mesh_dim, place in enumerate(tensor.placements):
        if place.is_shard():
            assert place.is_shard(0), f"{tensor.placements}: only dimension 0 is sharded"
            chunk = -(-len(tensor) // tensor.device_mesh.size(mesh_dim))
            return min(chunk * tensor.device_mesh.get_local_rank(mesh_dim), len(tensor))
    return 0


def _is_first_replica(tensor: DTensor) -> bool:
    """Whether this rank is the one, of those that hold the same rows, that gives them."""
    ranks = [
        tensor.device_mesh.get_local_rank(mesh_dim)
        for mesh_dim, place in enumerate(tensor.placements)
        if not place.is_shard()
    ]
    return not any(ranks)
