"""Where DeepSpeed keeps a parameter's float32 numbers: flat buffers, one or more for each parameter group.

Stages 1 and 2 lay a whole group end to end and cut it into as many runs as there are ranks, so a rank holds a
stretch of some parameters. Stage 3 cuts each parameter by itself. Both keep the optimizer's state in flat tensors
of the same layout, under the flat weights as key.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn

from crawl2clip.distributed import World


class FlatLayout(Protocol):
    """One stage's way of keeping parameters."""

    def flat(self, parameter: nn.Parameter) -> torch.Tensor:
        """This rank's flat float32 weights of the parameter's group: the key of the optimizer's state."""
        ...

    def fragment(self, parameter: nn.Parameter, flat: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """The parameter's stretch of a tensor laid out as `flat`, and where in the flattened parameter it begins."""
        ...

    def weight(self, parameter: nn.Parameter) -> tuple[int, torch.Tensor]:
        """What this rank holds of the weights that forward uses, frozen ones too, and where it begins."""
        ...

    def gradients(self) -> Iterator[torch.Tensor]:
        """This rank's averaged gradients, after the last backward of a step."""
        ...

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The parameter's stretch of these gradients; None where this rank has none of it."""
        ...

    def flats(self) -> list[torch.Tensor]:
        """All keys of the optimizer's state on this rank."""
        ...

    def forget_gradients(self) -> None:
        """Called after a step, before the next backward."""
        ...


class GroupLayout:
    """Stages 1 and 2. `zero` is DeepSpeed's DeepSpeedZeroOptimizer (runtime/zero/stage_1_and_2.py)."""

    def __init__(self, zero: Any) -> None:
        self._zero = zero
        self._group = {
            parameter: index for index, group in enumerate(zero.bit16_groups) for parameter in group
        }

    def flat(self, parameter: nn.Parameter) -> torch.Tensor:
        """See FlatLayout."""
        return self._zero.single_partition_of_fp32_groups[self._group[parameter]]

    def fragment(self, parameter: nn.Parameter, flat: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """See FlatLayout."""
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        there = mapping.get_hp_fragment_address()
        return mapping.lp_fragment_address.start, flat.narrow(0, there.start, there.numel)

    def weight(self, parameter: nn.Parameter) -> tuple[int, torch.Tensor]:
        """See FlatLayout; whole on every rank."""
        return 0, parameter.data.view(-1)

    def gradients(self) -> Iterator[torch.Tensor]:
        """See FlatLayout."""
        yield from (part for group in range(len(self.flats())) for part in self._gradients(group))

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """See FlatLayout."""
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is None:
            return None
        there = mapping.get_hp_fragment_address()
        return _stretch(self._gradients(self._group[parameter]), there.start, there.numel)

    def _gradients(self, group: int) -> Sequence[torch.Tensor]:
        """End to end they are laid out as the group's flat weights."""
        if self._zero.cpu_offload:
            gradient = self.flats()[group].grad
            return () if gradient is None else (gradient,)
        return self._zero.averaged_gradients.get(group) or ()

    def flats(self) -> list[torch.Tensor]:
        """See FlatLayout."""
        return list(self._zero.single_partition_of_fp32_groups)

    def forget_gradients(self) -> None:
        """See FlatLayout; DeepSpeed's step has dropped them, but for those of earlier micro-batches in host memory.

        DeepSpeed 0.19 adds these to a later micro-batch's, also for a parameter that the first one did not use, as
        logit_scale: without this, the last step's gradient counts again.
        """
        if self._zero.cpu_offload:
            for kept in self._zero.accumulated_grads_in_cpu.values():
                kept.zero_()


class ParameterLayout:
    """Stage 3. `zero` is DeepSpeed's DeepSpeedZeroOptimizer_Stage3 (runtime/zero/stage3.py)."""

    def __init__(self, zero: Any, rank: int) -> None:
        self._zero, self._rank = zero, rank

    def flat(self, parameter: nn.Parameter) -> torch.Tensor:
        """See FlatLayout."""
        return self._zero.fp32_partitioned_groups_flat[self._position(parameter)[0]]

    def fragment(self, parameter: nn.Parameter, flat: torch.Tensor) -> tuple[int, torch.Tensor] | None:
        """See FlatLayout; without what fills up the last shards, which DeepSpeed leaves as it found the memory."""
        _, start, first, length = self._position(parameter)
        return first, flat.narrow(0, start, length)

    def weight(self, parameter: nn.Parameter) -> tuple[int, torch.Tensor]:
        """See FlatLayout."""
        shard: torch.Tensor = parameter.ds_tensor.data  # pyright: ignore[reportAttributeAccessIssue] # DeepSpeed's
        return self._rank * shard.numel(), shard.view(-1)

    def gradients(self) -> Iterator[torch.Tensor]:
        """See FlatLayout."""
        yield from (part for group in range(len(self.flats())) for part in self._gradients(group))

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """See FlatLayout."""
        group, start, _, length = self._position(parameter)
        return _stretch(self._gradients(group), start, length)

    def _gradients(self, group: int) -> Sequence[torch.Tensor]:
        """End to end they are laid out as the group's flat weights."""
        if self._zero.offload_optimizer:
            gradient = self.flats()[group].grad
            return () if gradient is None else (gradient,)
        return self._zero.averaged_gradients.get(group) or ()

    def flats(self) -> list[torch.Tensor]:
        """See FlatLayout."""
        return list(self._zero.fp32_partitioned_groups_flat)

    def forget_gradients(self) -> None:
        """See FlatLayout.

        DeepSpeed 0.19 adds a later micro-batch's gradient to what the buffer holds, also for a parameter that the
        first micro-batch did not use, as logit_scale: without this, the last step's gradient counts again.
        """
        self._zero.grad_partitions_flat_buffer.zero_()

    def _position(self, parameter: Any) -> tuple[int, int, int, int]:
        """Of this rank's shard: group, where in the group and where in the parameter it begins, and its length."""
        group, start, each = self._zero.grad_position[self._zero.get_param_id(parameter)]
        first = self._rank * each
        return group, start, first, max(0, min(each, parameter.ds_numel - first))


def _stretch(parts: Sequence[torch.Tensor], start: int, length: int) -> torch.Tensor | None:
    """Elements of what `parts` are end to end; they are within one part. None when there are no parts."""
    for part in parts:
        if start < part.numel():
            return part.reshape(-1).narrow(0, start, length)
        start -= part.numel()
    return None


def assemble(
    part: tuple[int, torch.Tensor] | None, shape: tuple[int, ...], owner: int, world: World
) -> torch.Tensor | None:
    """A float32 tensor of which every rank holds one stretch or none: whole on rank `owner`, None elsewhere."""
    size = torch.Size(shape).numel()
    # Stage 3 fills up the last shards, so a stretch may reach past the parameter's end, or lie behind it.
    total = torch.zeros(size + world.world_size, dtype=torch.float32, device=world.device)
    if part is not None:
        start, stretch = part
        stretch = stretch[: max(0, len(total) - start)]
        total[start : start + len(stretch)] = stretch
    dist.reduce(total, dst=owner)
    return total[:size].reshape(shape) if world.rank == owner else None


def put(part: tuple[int, torch.Tensor] | None, value: torch.Tensor) -> None:
    """Copies the stretch of a flattened parameter that a rank holds; what lies behind its end stays."""
    if part is not None:
        start, stretch = part
        there = value[start : start + len(stretch)]
        stretch[: len(there)].copy_(there)
