"""Weights, gradients and optimizer state in shards, gathered block by block (FSDP2; Zhao et al. 2023, and HSDP).

Every transformer block of both towers is one unit, and what is left (embeddings, projections, logit_scale) is the
root's. Shards are rows of dimension 0, as even as ceil(rows / ranks) allows, so the last ranks may hold none. With
hsdp, ranks of one shard group share a copy and the groups hold equal ones.

Two things would surprise. On CUDA, blocks are gathered in the precision of autocast, but the root in float32: a
logit_scale in bfloat16 would be off by up to 1%. And FSDP2 takes no parameter without dimensions, so logit_scale and
logit_bias are trained as [1]; their state is [] again in `pieces`, `load` and `whole`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from train.checkpoints.state import Piece, StateReader
from train.model.compute import blocks_of, has_batch_norm
from train.model.precision import LossScaler
from train.model.towers import Towers
from train.strategies.config import StrategyConfig, StrategyName
from train.strategies.gradients import GradientScale
from train.strategies.named_state import (
    canonical_shapes,
    check_model_state,
    deal,
    load_optimizer,
    optimizer_entries,
    persistent_buffers,
)
from train.strategies.plain_copy import Skeleton, broadcast_from_first, give_dimension
from train.strategies.protocol import BuildOptimizer, Parts


class Sharded:
    """See Strategy."""

    def __init__(
        self, config: StrategyConfig, scaler: LossScaler | None, dtype: torch.dtype, world: World
    ) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self._config, self._world, self._dtype = config, world, dtype
        self._gradients = GradientScale(scaler, world.device)
        self.group = dist.group.WORLD
        size = (
            config.shard_size if config.name is StrategyName.hsdp and config.shard_size else world.world_size
        )
        if world.world_size % size:
            raise ConfigError(
                f"strategy.shard_size={size} does not divide {world.world_size} ranks; give a divisor of it"
            )
        replicas = world.world_size // size
        names = ("replicate", "shard") if replicas > 1 else ("shard",)
        shape = (replicas, size) if replicas > 1 else (size,)
        self._mesh: Any = init_device_mesh(world.device.type, shape, mesh_dim_names=names)
        self._shards: dist.ProcessGroup = self._mesh.get_group("shard")
        self._shard, self._num_shards = self._mesh.get_local_rank("shard"), size
        self._first_replica = replicas == 1 or self._mesh.get_local_rank("replicate") == 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._skeleton: Skeleton | None = None

    def prepare(
        self, towers: Towers, build_optimizer: BuildOptimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See Strategy."""
        towers = towers.to(self._world.device)
        broadcast_from_first([*towers.parameters(), *persistent_buffers(towers).values()], self.group)
        self._shapes = canonical_shapes(towers.model)
        self._skeleton = Skeleton(towers.model)
        give_dimension(towers.model)
        self._shard_modules(towers)
        return towers, build_optimizer(towers.model)

    def _shard_modules(self, towers: Towers) -> None:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        on_cuda = self._world.device.type == "cuda"
        offload = CPUOffloadPolicy(pin_memory=on_cuda) if self._config.cpu_offload else OffloadPolicy()
        # Inputs are left to autocast, which casts at each operation; cast at the block's door, a float32 residual
        # stream would be rounded once a block.
        low = MixedPrecisionPolicy(
            param_dtype=self._dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        full = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
        reshard = bool(self._config.reshard_after_forward)
        for block in blocks_of(towers.model).values():
            # Only CUDA's autocast casts layer norms, and nothing casts batch norms: their weights must be float32.
            policy = low if on_cuda and not has_batch_norm(block) else full
            fully_shard(
                block,
                mesh=self._mesh,
                reshard_after_forward=reshard,
                mp_policy=policy,
                offload_policy=offload,
            )
        # Backward begins with the root's parameters, so they stay.
        fully_shard(
            towers, mesh=self._mesh, reshard_after_forward=False, mp_policy=full, offload_policy=offload
        )

    def plain(self, model: nn.Module) -> nn.Module:
        """See Strategy."""
        towers: Any = model
        return towers.model

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """See Strategy; a copy."""
        assert self._skeleton is not None, "prepare comes first"
        plain = self._resharded(model)
        broadcast_from_first(persistent_buffers(plain).values(), self.group)
        with torch.no_grad():
            parameters = {
                name: self._gather(parameter, self._shapes[name])
                for name, parameter in plain.named_parameters()
            }
        with self._skeleton.filled(parameters, plain) as copied:
            yield copied

    def _gather(self, parameter: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A whole parameter on the device, from every rank's rows; written out because NCCL takes no CPU shards."""
        rows, rest = (shape[0], shape[1:]) if shape else (1, ())
        each = -(-rows // self._num_shards)
        mine = torch.zeros((each, *rest), dtype=parameter.dtype, device=self._world.device)
        local = _local(parameter)
        mine[: len(local)] = local
        everyone = mine.new_empty((each * self._num_shards, *rest))
        dist.all_gather_into_tensor(everyone, mine, group=self._shards)
        return everyone[:rows].clone().reshape(shape)

    def backward(self, model: nn.Module, loss: torch.Tensor, *, last: bool) -> None:
        """See Strategy."""
        sharded: Any = model
        sharded.set_requires_gradient_sync(last)
        sharded.set_is_last_backward(last)
        self._gradients.scaled(loss).backward()

    def clip_gradients(self, model: nn.Module, max_norm: float | None) -> torch.Tensor:
        """See Strategy."""
        gradients = [_local(parameter.grad) for parameter in model.parameters() if parameter.grad is not None]
        return self._gradients.clip(gradients, max_norm, self._shards)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
        """See Strategy."""
        self._gradients.step(optimizer, skip)

    @torch.no_grad()
    def clamp(self, model: nn.Module, name: str, minimum: float, maximum: float) -> None:
        """See Strategy."""
        _local(self._resharded(model).get_parameter(name)).clamp_(minimum, maximum)

    def parts(self, model: nn.Module) -> Parts:
        """See Strategy."""
        trainable = {name: p for name, p in self._resharded(model).named_parameters() if p.requires_grad}
        gradients = {name: _local(p.grad) for name, p in trainable.items() if p.grad is not None}
        return Parts({name: _local(p.detach()) for name, p in trainable.items()}, gradients, self._shards)

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """See Strategy; rows of parameters and what is like them, the rest dealt over ranks."""
        plain = self._resharded(model)
        buffers = persistent_buffers(plain)
        broadcast_from_first(buffers.values(), self.group)
        names = {parameter: name for name, parameter in plain.named_parameters()}
        pieces, whole = [], [(f"model/{name}", buffer) for name, buffer in buffers.items()]
        for parameter, name in names.items():
            pieces += self._rows(f"model/{name}", parameter, self._shapes[name])
        for parameter, name, tensor in optimizer_entries(optimizer, names):
            if _is_sharded(tensor):
                pieces += self._rows(name, tensor, self._shapes[names[parameter]])
            else:
                whole.append((name, tensor))
        return pieces + deal(whole, self._world.rank, self._world.world_size)

    def _rows(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> list[Piece]:
        """This rank's rows as a piece; none where it has none, or where another group has the same."""
        local = _local(tensor).detach()
        if len(local) == 0 or not self._first_replica:
            return []
        start = self._start(shape)
        return [Piece(name, shape, start, local if shape else local.reshape(()))]

    def _start(self, shape: tuple[int, ...]) -> int:
        rows = shape[0] if shape else 1
        return min(self._shard * -(-rows // self._num_shards), rows)

    @torch.no_grad()
    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StateReader) -> None:
        """See Strategy; each rank reads its own rows."""
        plain = self._resharded(model)
        check_model_state(self._shapes, state)
        for name, buffer in persistent_buffers(plain).items():
            buffer.copy_(state.read(f"model/{name}"))
        names = {parameter: name for name, parameter in plain.named_parameters()}
        for parameter, name in names.items():
            local = _local(parameter)
            local.copy_(self._read(state, f"model/{name}", self._shapes[name], local))

        def make(parameter: nn.Parameter, name: str) -> torch.Tensor:
            shape = self._shapes[names[parameter]]
            if tuple(state.shape(name)) != shape:
                return state.read(name).clone()
            made = torch.empty_like(parameter)  # which stays in host memory where the parameter does
            local = _local(made)
            local.copy_(self._read(state, name, shape, local))
            return made

        load_optimizer(optimizer, names, state, make)

    def _read(
        self, state: StateReader, name: str, shape: tuple[int, ...], local: torch.Tensor
    ) -> torch.Tensor:
        if prod(local.shape) == 0:
            return local
        start = self._start(shape)
        return (state.read(name, start, start + len(local)) if shape else state.read(name)).reshape(
            local.shape
        )

    def _resharded(self, model: nn.Module) -> nn.Module:
        """The plain model with its shards in place; a forward without backward leaves the root gathered."""
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return self.plain(model)

    def scaler_state(self) -> dict[str, float]:
        """See Strategy."""
        return self._gradients.state()

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """See Strategy."""
        self._gradients.load(state)

    def close(self, model: nn.Module) -> None:
        """See Strategy; nothing outlives it."""


def _is_sharded(tensor: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def _local(tensor: Any) -> torch.Tensor:
    """This rank's rows, sharing memory with the whole's."""
    return tensor.to_local() if _is_sharded(tensor) else tensor
