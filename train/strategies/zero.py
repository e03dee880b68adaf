"""DeepSpeed's ZeRO: optimizer state (1), gradients too (2), weights too (3) in shards (Rajbhandari et al. 2020).

The model stays in float32 under autocast and gradients are reduced in float32, so a run agrees with DDP's. What
DeepSpeed would do inside its step (norm, clipping, leaving out a step) is done here as for every strategy; its own
clipping is off. It keeps parameters and optimizer state in flat buffers cut without regard to rows, so `pieces`
puts each tensor together on the one rank that hands it out.

What would surprise: the optimizer sees flat pieces of many parameters at once, so only optimizers that treat each
element by itself are right (see combinations.py); and stages 2 and 3 reduce every micro-batch's gradients, since
they have nowhere to keep whole ones.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from train.checkpoints.state import Piece, StateReader
from train.model.compute import ActivationCheckpointing, ComputeConfig
from train.model.precision import PrecisionName, compute_dtype
from train.model.towers import Towers
from train.strategies.config import StrategyConfig
from train.strategies.flat_layout import (
    FlatLayout,
    GroupLayout,
    ParameterLayout,
    assemble,
    put,
)
from train.strategies.gradients import GradientScale, leaving_out
from train.strategies.named_state import (
    as_saved,
    as_tensor,
    canonical_shapes,
    check_model_state,
    deal,
    number_keys,
    owners_of,
    persistent_buffers,
    saved_keys,
)
from train.strategies.plain_copy import (
    Skeleton,
    broadcast_from_first,
    give_dimension,
    without_dimension,
)
from train.strategies.protocol import BuildOptimizer, Parts
from train.strategies.zero_shells import empty_shells

_BUCKET_ELEMENTS = 500_000_000  # DeepSpeed's own bound of a reduction; fewer when the model is smaller


class Zero:
    """See Strategy."""

    def __init__(
        self, config: StrategyConfig, precision: PrecisionName, compute: ComputeConfig, world: World
    ) -> None:
        assert config.name.zero_stage is not None
        self._config, self._world, self._precision = config, world, precision
        self._selective = compute.activation_checkpointing is ActivationCheckpointing.selective
        self._stage = config.name.zero_stage
        self._gradients = GradientScale(None, world.device)
        self.group = dist.group.WORLD
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._skeleton: Skeleton | None = None
        self._layout: FlatLayout | None = None

    def prepare(
        self, towers: Towers, build_optimizer: BuildOptimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """See Strategy; the optimizer given back is the one inside DeepSpeed's, which reads its groups at each step."""
        deepspeed = _import_deepspeed(self._world.device)
        towers = towers.to(self._world.device)
        broadcast_from_first([*towers.parameters(), *persistent_buffers(towers).values()], self.group)
        self._shapes = canonical_shapes(towers.model)
        self._skeleton = Skeleton(towers.model) if self._stage == 3 else None
        give_dimension(towers.model)
        optimizer = build_optimizer(towers.model)
        size = sum(parameter.numel() for parameter in towers.parameters())
        with redirect_stdout(io.StringIO()):  # it prints what it builds and loads
            engine, zero, _, _ = deepspeed.initialize(
                model=towers, optimizer=optimizer, config=self._settings(size), dist_init_required=False
            )
        self._layout = ParameterLayout(zero, self._world.rank) if self._stage == 3 else GroupLayout(zero)
        return engine, optimizer

    def _settings(self, num_elements: int) -> dict[str, Any]:
        """DeepSpeed's configuration; what is not named is its own default."""
        zero: dict[str, Any] = {
            "stage": self._stage,
            "reduce_bucket_size": min(_BUCKET_ELEMENTS, num_elements),
            # DeepSpeed's own linear adds the bias in place, to what selective checkpointing has kept of the product.
            # Without it a block's gathered weights live from its recomputation to the end of its backward.
            "memory_efficient_linear": not self._selective,
        }
        for option in ("offload_optimizer", "offload_param"):
            if (value := getattr(self._config, option)) is not None:
                zero[option] = value
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # counted by nobody; the loop owns the batch
            "gradient_accumulation_steps": 1,  # `backward` says which micro-batch is the last
            "gradient_clipping": 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,  # combinations.py knows which are right
            "zero_force_ds_cpu_optimizer": False,
        }
        dtype = compute_dtype(self._precision)
        if dtype is not torch.float32:
            # Without this, the engine turns autocast off; the empty list keeps gradient reduction in float32.
            name = str(dtype).removeprefix("torch.")
            settings["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
        return settings

    def plain(self, model: nn.Module) -> nn.Module:
        """See Strategy."""
        engine: Any = model
        return engine.module.model

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[nn.Module]:
        """See Strategy; the model itself for stages 1 and 2, a copy for 3."""
        plain = self.plain(model)
        broadcast_from_first(persistent_buffers(plain).values(), self.group)
        if self._skeleton is None:
            with without_dimension(plain, self._shapes):
                yield plain
            return
        with torch.no_grad():
            parameters = {name: self._gather(name, parameter) for name, parameter in plain.named_parameters()}
        with self._skeleton.filled(parameters, plain) as copied:
            yield copied

    def _gather(self, name: str, parameter: nn.Parameter) -> torch.Tensor:
        shard = self._flat_layout.weight(parameter)[1].to(self._world.device)
        everyone = shard.new_empty(shard.numel() * self._world.world_size)
        dist.all_gather_into_tensor(everyone, shard.contiguous(), group=self.group)
        shape = self._shapes[name]
        return everyone[: torch.Size(shape).numel()].clone().reshape(shape)

    @property
    def _flat_layout(self) -> FlatLayout:
        assert self._layout is not None, "prepare comes first"
        return self._layout

    def backward(self, model: nn.Module, loss: torch.Tensor, *, last: bool) -> None:
        """See Strategy; stages 2 and 3 reduce at every micro-batch."""
        engine: Any = model
        engine.set_gradient_accumulation_boundary(last)
        engine.backward(loss)

    def clip_gradients(self, model: nn.Module, max_norm: float | None) -> torch.Tensor:
        """See Strategy."""
        if self._config.offload_optimizer and self._world.device.type == "cuda":
            torch.cuda.synchronize()  # gradients are copied to the host beside the stream
        return self._gradients.clip(list(self._flat_layout.gradients()), max_norm, self.group)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
        """See Strategy. DeepSpeed goes through its step in any case, so that it is ready for the next one."""
        engine: Any = model
        with leaving_out(optimizer, skip, self._flat_layout.flats()[0].device):
            engine.step()
        self._flat_layout.forget_gradients()

    @torch.no_grad()
    def clamp(self, model: nn.Module, name: str, minimum: float, maximum: float) -> None:
        """See Strategy; also the float32 numbers that the next step starts from."""
        parameter, layout = self.plain(model).get_parameter(name), self._flat_layout
        fragment = layout.fragment(parameter, layout.flat(parameter)) if parameter.requires_grad else None
        for tensor in [parameter.data, layout.weight(parameter)[1], *([fragment[1]] if fragment else [])]:
            tensor.clamp_(minimum, maximum)

    def parts(self, model: nn.Module) -> Parts:
        """See Strategy; where DeepSpeed has no gradient it steps with zeros, and they are here."""
        layout, weights, gradients = self._flat_layout, {}, {}
        for name, parameter in self.plain(model).named_parameters():
            if not parameter.requires_grad:
                continue
            flat = layout.flat(parameter).detach()
            fragment = layout.fragment(parameter, flat)
            weights[name] = flat[:0] if fragment is None else fragment[1]
            if (gradient := layout.gradient(parameter)) is not None:
                gradients[name] = gradient
        return Parts(weights, gradients, self.group)

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """See Strategy; whole tensors, each put together on the rank that hands it out."""
        plain, layout = self.plain(model), self._flat_layout
        buffers = persistent_buffers(plain)
        broadcast_from_first(buffers.values(), self.group)
        pieces = deal(
            [(f"model/{name}", buffer) for name, buffer in buffers.items()],
            self._world.rank,
            self._world.world_size,
        )
        parts: list[tuple[str, str, tuple[int, torch.Tensor] | None]] = []
        numbers: list[tuple[str, torch.Tensor]] = []
        for name, parameter in plain.named_parameters():
            start, stretch = layout.weight(parameter)
            if self._stage < 3 and self._world.rank != 0:
                stretch = stretch[:0]  # every rank has all of it, and parts are added up
            parts.append((f"model/{name}", name, (start, stretch)))
            if not parameter.requires_grad:
                continue
            flat = layout.flat(parameter)
            for key, value in sorted(optimizer.state.get(flat, {}).items()):
                if isinstance(value, torch.Tensor) and value.shape == flat.shape:
                    parts.append((f"optimizer/{name}/{key}", name, layout.fragment(parameter, value)))
                elif (number := as_tensor(value)) is not None:
                    numbers.append((f"optimizer/{name}/{key}", number))
        sizes = [(name, torch.Size(self._shapes[parameter]).numel()) for name, parameter, _ in parts]
        owners = owners_of(sizes, self._world.world_size)
        for name, parameter, part in parts:
            whole = assemble(part, self._shapes[parameter], owners[name], self._world)
            if whole is not None:
                pieces.append(Piece(name, self._shapes[parameter], 0, whole))
        return pieces + deal(numbers, self._world.rank, self._world.world_size)

    @torch.no_grad()
    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StateReader) -> None:
        """See Strategy; every rank reads every tensor."""
        plain, layout = self.plain(model), self._flat_layout
        check_model_state(self._shapes, state)
        for name, buffer in persistent_buffers(plain).items():
            buffer.copy_(state.read(f"model/{name}"))
        for flat in layout.flats():
            optimizer.state.pop(flat, None)
        keys = saved_keys(state)
        numbers = number_keys(keys, state)
        for name, parameter in plain.named_parameters():
            value = state.read(f"model/{name}").reshape(-1)
            if (
                parameter.numel() == value.numel()
            ):  # not a shard: stages 1 and 2, and what stage 3 keeps gathered
                parameter.copy_(value.reshape(parameter.shape))
            put(layout.weight(parameter), value)
            if parameter.requires_grad:
                put(layout.fragment(parameter, layout.flat(parameter)), value)
                for key in keys.get(name, []):
                    saved = state.read(f"optimizer/{name}/{key}").clone()  # the optimizer writes to it
                    self._remember(optimizer, parameter, key, saved, is_number=key in numbers)

    def _remember(
        self,
        optimizer: torch.optim.Optimizer,
        parameter: nn.Parameter,
        key: str,
        saved: torch.Tensor,
        *,
        is_number: bool,
    ) -> None:
        """Puts what an optimizer remembered of one parameter into the state of its flat buffer."""
        flat = self._flat_layout.flat(parameter)
        remembered = optimizer.state[flat]
        if not is_number:
            whole = remembered.setdefault(key, torch.zeros_like(flat))
            put(self._flat_layout.fragment(parameter, whole), saved.reshape(-1))
        elif key == "step" and any(g.get("fused") or g.get("capturable") for g in optimizer.param_groups):
            remembered[key] = saved.to(flat.device, torch.float32)  # as torch wants it beside the weights
        else:
            remembered[key] = as_saved(saved)  # one for the whole buffer: the parameters in it step together

    def scaler_state(self) -> dict[str, float]:
        """See Strategy; fp16 is refused."""
        return {}

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """See Strategy."""

    def close(self, model: nn.Module) -> None:
        """See Strategy; of stage 3, modules and parameters stay as empty shells, see zero_shells.py."""
        engine: Any = model
        engine.destroy()
        if self._stage == 3:
            empty_shells(engine.module)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed with its logger quiet; its import takes seconds and writes to standard output."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # it would take CUDA also for a run on the CPU
    try:
        import deepspeed
    except ImportError as error:
        raise ConfigError(
            f"strategy=zero1, zero2 and zero3 need the package deepspeed, which cannot be imported ({error}); "
            "pip install deepspeed, or use strategy=fsdp2"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # For inference on a CPU alone, and every first run would compile it: minutes, and a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
