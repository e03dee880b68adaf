"""A whole model on every rank, gradients averaged while backward still runs (DistributedDataParallel).

DDP is told nothing at forward: whether gradients are to be averaged is known only at `backward`, and the forward
that accumulation runs without a graph must not count as one. So its reducer is made ready there, just before the
last micro-batch's backward. What would surprise: batch-norm statistics are not sent around at each forward, since
training does not read them; rank 0's are everybody's when the model is evaluated or saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from crawl2clip.distributed import World
from train.checkpoints.state import Piece, StateReader
from train.model.precision import LossScaler
from train.model.towers import Towers
from train.strategies.config import StrategyConfig
from train.strategies.gradients import GradientScale
from train.strategies.named_state import (
    canonical_shapes,
    check_model_state,
    deal,
    load_optimizer,
    optimizer_entries,
    persistent_buffers,
)
from train.strategies.plain_copy import broadcast_from_first
from train.strategies.protocol import BuildOptimizer, Parts


class Replicated:
    """See Strategy. On one process without a group, nothing is wrapped."""

    def __init__(self, config: StrategyConfig, scaler: LossScaler | None, world: World) -> None:
        self._config, self._world = config, world
        self._gradients = GradientScale(scaler, world.device)
        self.group = dist.group.WORLD if world.world_size > 1 else None
        self._scalars: list[nn.Parameter] = []
        self._accumulated = False

    def prepare(
        self, towers: Towers, build_optimizer: BuildOptimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See Strategy."""
        if self._config.sync_batchnorm:
            towers.model = nn.SyncBatchNorm.convert_sync_batchnorm(towers.model)
        towers = towers.to(self._world.device)
        optimizer = build_optimizer(towers.model)
        if self.group is None:
            return towers, optimizer
        wrapped = DistributedDataParallel(  # which also sends rank 0's weights and buffers to all
            towers,
            device_ids=[self._world.device.index] if self._world.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            static_graph=bool(self._config.static_graph),
        )
        wrapped.require_backward_grad_sync = False
        wrapped.require_forward_param_sync = False
        self._scalars = [p for p in towers.parameters() if p.requires_grad and p.numel() == 1]
        return wrapped, optimizer

    def plain(self, model: nn.Module) -> nn.Module:
        """See Strategy."""
        towers: Any = model.module if isinstance(model, DistributedDataParallel) else model
        return towers.model

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """See Strategy; the model itself."""
        plain = self.plain(model)
        broadcast_from_first(persistent_buffers(plain).values(), self.group)
        yield plain

    def backward(self, model: nn.Module, loss: torch.Tensor, *, last: bool) -> None:
        """See Strategy."""
        if last and isinstance(model, DistributedDataParallel):
            if self._accumulated:
                # The surrogate loss of a micro-batch may leave out logit_scale, and the reducer waits for everyone.
                loss = loss + 0.0 * torch.stack([scalar.sum() for scalar in self._scalars]).sum()
            # What DDP does around a forward that it is to average gradients of (its _pre_forward, _post_forward).
            model.reducer.prepare_for_forward()
            model.reducer.prepare_for_backward([])
        self._accumulated = not last
        self._gradients.scaled(loss).backward()

    def clip_gradients(self, model: nn.Module, max_norm: float | None) -> torch.Tensor:
        """See Strategy."""
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return self._gradients.clip(gradients, max_norm)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
        """See Strategy."""
        self._gradients.step(optimizer, skip)

    @torch.no_grad()
    def clamp(self, model: nn.Module, name: str, minimum: float, maximum: float) -> None:
        """See Strategy."""
        self.plain(model).get_parameter(name).clamp_(minimum, maximum)

    def parts(self, model: nn.Module) -> Parts:
        """See Strategy."""
        trainable = {name: p for name, p in self.plain(model).named_parameters() if p.requires_grad}
        gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        return Parts({name: p.detach() for name, p in trainable.items()}, gradients, shards=None)

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """See Strategy."""
        plain = self.plain(model)
        broadcast_from_first(persistent_buffers(plain).values(), self.group)
        named = [(f"model/{name}", tensor) for name, tensor in plain.named_parameters()]
        named += [(f"model/{name}", tensor) for name, tensor in persistent_buffers(plain).items()]
        names = {parameter: name for name, parameter in plain.named_parameters()}
        named += [(name, tensor) for _, name, tensor in optimizer_entries(optimizer, names)]
        return deal(named, self._world.rank, self._world.world_size)

    @torch.no_grad()
    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StateReader) -> None:
        """See Strategy."""
        plain = self.plain(model)
        check_model_state(canonical_shapes(plain), state)
        for name, tensor in {**dict(plain.named_parameters()), **persistent_buffers(plain)}.items():
            tensor.copy_(state.read(f"model/{name}"))
        names = {parameter: name for name, parameter in plain.named_parameters()}
        load_optimizer(optimizer, names, state, lambda _, name: state.read(name).clone())

    def scaler_state(self) -> dict[str, float]:
        """See Strategy."""
        return self._gradients.state()

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """See Strategy."""
        self._gradients.load(state)

    def close(self, model: nn.Module) -> None:
        """See Strategy; nothing outlives it."""
