"""What all strategies do to gradients: one norm over all ranks, one factor for clipping and undoing a loss scale."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from train.model.precision import LossScaler

_NORM_FLOOR = 1e-6  # as torch.nn.utils.clip_grad_norm_ adds it to the norm it divides by


class GradientScale:
    """Clipping and, for fp16, loss scaling, the same for gradients that are whole and for shards of them."""

    def __init__(self, scaler: LossScaler | None, device: torch.device) -> None:
        self.scaler = scaler
        self._device = device
        self._overflowed: torch.Tensor | None = None

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss as backward must start from it."""
        return loss if self.scaler is None else loss * self.scaler.scale

    @torch.no_grad()
    def clip(
        self,
        gradients: Sequence[torch.Tensor],
        max_norm: float | None,
        shards: dist.ProcessGroup | None = None,
    ) -> torch.Tensor:
        """Undoes the loss scale and clips, in place; the norm before clipping.

        Args:
            gradients: this rank's, whole or shards, float32, each element once.
            max_norm: what the norm is scaled down to; None does not clip.
            shards: the ranks that hold the other shards; None when the gradients are whole.

        Returns:
            [] float32 on the device.
        """
        norm = torch.nn.utils.get_total_norm(gradients).float().to(self._device)
        if shards is not None:
            square = norm.square()
            dist.all_reduce(square, group=shards)
            norm = square.sqrt()
        factor = None
        if self.scaler is not None:
            factor = 1.0 / self.scaler.scale
            norm = norm * factor
            self._overflowed = 1.0 - torch.isfinite(norm).float()
        if max_norm is not None:
            clip = (max_norm / (norm + _NORM_FLOOR)).clamp(max=1.0)
            factor = clip if factor is None else factor * clip
        if factor is not None and gradients:
            for device in {gradient.device for gradient in gradients}:
                there = [gradient for gradient in gradients if gradient.device == device]
                torch._foreach_mul_(there, factor.to(device))  # pyright: ignore[reportPrivateImportUsage]
        return norm

    def step(self, optimizer: torch.optim.Optimizer, skip: torch.Tensor) -> None:
        """One optimizer step, left out where `skip` ([] float32) is 1.0 or fp16 overflowed; the loss scale follows."""
        if self._overflowed is not None:
            skip = torch.maximum(skip, self._overflowed)
        with leaving_out(optimizer, skip, optimizer.param_groups[0]["params"][0].device):
            optimizer.step()
        if self.scaler is not None and self._overflowed is not None:
            self.scaler.update(self._overflowed)
            self._overflowed = None
        optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, float]:
        """The scaler as plain numbers, or nothing."""
        return {} if self.scaler is None else self.scaler.state()

    def load(self, state: dict[str, float]) -> None:
        """Takes back what `state` gave; a run that changed to fp16 starts with a fresh scale."""
        if self.scaler is not None and state:
            self.scaler.load(state)


@contextmanager
def leaving_out(optimizer: torch.optim.Optimizer, skip: torch.Tensor, device: torch.device) -> Iterator[None]:
    """Inside the block, `optimizer.step()` changes neither weights nor optimizer state where `skip` is 1.0.

    Fused kernels take the flag as torch.amp.GradScaler hands it to them, on `device`, where the parameters lie. Others
    make the host wait, and so do parameters in host memory: torch would send the flag there without waiting for it, and
    a kernel of the CPU read it before it has arrived.
    """
    flags: Any = optimizer
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        flags.found_inf = skip.to(device)
        try:
            yield
        finally:
            del flags.found_inf
    elif skip.item() == 0.0:
        yield
    else:
        flags.step = _do_nothing
        try:
            yield
        finally:
            del flags.step


def _do_nothing(closure: Any = None) -> None:
    del closure
