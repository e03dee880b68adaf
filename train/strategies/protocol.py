"""What the loop needs to know about the spread of a model over ranks; nothing else in training asks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn

from train.checkpoints.state import Piece, StateReader
from train.model.towers import Towers

BuildOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parts:
    """What one rank holds of the trainable parameters, by their names in the plain model; live tensors, to be read.

    Attributes:
        weights: the float32 numbers that the optimizer changes; empty where this rank holds none.
        gradients: between backward and step, of the parameters that have one.
        shards: the ranks that hold the other parts, so that each element counts once; None: every rank has all.
    """

    weights: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    shards: dist.ProcessGroup | None


class Strategy(Protocol):
    """One way of spreading a model; every method is called by every rank, in the same order.

    A step is: forward of the prepared module, `backward` for each micro-batch, `clip_gradients`, `step`. The step
    clears the gradients, so nothing calls `zero_grad`. Learning rates are set in `optimizer.param_groups`, whose
    dictionaries the strategy's own optimizer shares.

    Attributes:
        group: the ranks whose rows make up the global batch; None for one process without a process group.
    """

    group: dist.ProcessGroup | None

    def prepare(
        self, towers: Towers, build_optimizer: BuildOptimizer
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The module whose forward the loop calls, on its device, and the optimizer of its parameters.

        Every rank starts with rank 0's weights and buffers. `build_optimizer` gets the plain open_clip model once
        its parameters are what will be trained.
        """
        ...

    def plain(self, model: nn.Module) -> nn.Module:
        """The open_clip model inside: its methods and settings. Its parameters may be shards."""
        ...

    def whole(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A plain open_clip model with all parameters on this rank's device, for evaluation and export.

        Its forward talks to no other rank. It is the trained model itself or a copy that is freed at the end of the
        block; do not train it. Buffers are rank 0's.
        """
        ...

    def backward(self, model: nn.Module, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradients of one micro-batch's scalar; they are averaged over ranks at the last one."""
        ...

    def clip_gradients(self, model: nn.Module, max_norm: float | None) -> torch.Tensor:
        """Scales the gradient down to L2 norm `max_norm`; its norm before that, [] float32, equal on all ranks.

        The norm is not finite when a gradient is not; with fp16 that is an overflow, which `step` skips by itself.
        """
        ...

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
        """The optimizer's step, then clears the gradients.

        Args:
            model: as prepared.
            optimizer: as prepared.
            skip: [] float32 on the device, equal on all ranks; 1.0 leaves weights and optimizer state as they are.
                A fused optimizer reads it on the device; others wait for it.
        """
        ...

    def clamp(self, model: nn.Module, name: str, minimum: float, maximum: float) -> None:
        """Keeps one parameter of the open_clip model between two values, in place, wherever it lies."""
        ...

    def parts(self, model: nn.Module) -> Parts:
        """This rank's weights and gradients, for measuring them."""
        ...

    def pieces(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Piece]:
        """This rank's share of model and optimizer state under the names of checkpoints/state.py, still on the device.

        Each row of each tensor is on exactly one rank. Some tensors are the live ones: copy them before the next step.
        """
        ...

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: StateReader) -> None:
        """Takes up the state that any strategy on any number of ranks gave.

        Raises:
            DataError: the state is of another model.
        """
        ...

    def scaler_state(self) -> dict[str, float]:
        """The fp16 loss scaler as plain numbers; empty for other precisions."""
        ...

    def load_scaler_state(self, state: dict[str, float]) -> None:
        """Takes back what `scaler_state` gave; nothing of it is used for other precisions."""
        ...

    def close(self, model: nn.Module) -> None:
        """Lets go of what would outlive the model; neither it nor its optimizer may be used afterwards.

        Hooks and replaced forwards are in reference cycles: memory is free when these have been collected.
        """
        ...
