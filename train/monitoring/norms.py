"""L2 norms of gradients, weights and updates, for the image tower, the text tower and the rest.

They show which tower a spike came from and whether updates are small beside the weights (big_vision logs the
same three). Measured every N steps only: the update needs a copy of the weights from before the step, made
after backward, where the memory of the activations is free again. All sums run in foreach kernels; nothing
waits for the host until `NormWatch.after` hands out tensors and the caller reads them.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

from train.strategies.protocol import Parts

TOWERS = ("image_tower", "text_tower", "rest")
"""`rest` holds logit_scale, logit_bias and CoCa's caption decoder."""

# torch's only public way to this kernel is through its optimizers.
_foreach_sub_ = torch._foreach_sub_  # pyright: ignore[reportPrivateImportUsage]

_TEXT_PREFIXES = ("text.", "transformer.", "token_embedding.", "ln_final.")
_TEXT_NAMES = ("positional_embedding", "text_projection", "text_projection.weight", "cls_emb")


def tower_of(name: str) -> str:
    """The tower that a parameter of a plain open_clip model belongs to, by its name."""
    if name.startswith("visual."):
        return "image_tower"
    if name.startswith(_TEXT_PREFIXES) or name in _TEXT_NAMES:
        return "text_tower"
    return "rest"


def l2_norms(
    by_tower: dict[str, list[torch.Tensor]], device: torch.device, shards: dist.ProcessGroup | None
) -> dict[str, torch.Tensor]:
    """The L2 norm of each group of tensors, over all ranks: [] float32 each, on the device.

    Args:
        by_tower: group name -> this rank's tensors, which may lie in host memory. Every rank must give the same groups.
        device: of the process group's collectives.
        shards: the ranks that hold the other parts; None when each rank has all.
    """
    squares = torch.stack([_square(tensors, device) for tensors in by_tower.values()])
    if shards is not None:
        dist.all_reduce(squares, group=shards)
    return dict(zip(by_tower, squares.sqrt().unbind(), strict=True))


def _square(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    if not tensors:
        return torch.zeros((), device=device)
    return torch.nn.utils.get_total_norm(tensors).float().to(device).square()


class NormWatch:
    """The norms of one model's gradients, weights and updates; every rank asks at the same steps.

    Args:
        parts: gives this rank's weights and gradients (`Strategy.parts`).
        device: of the results.
        every_steps: steps between measurements; 0 measures never.
    """

    def __init__(self, parts: Callable[[], Parts], device: torch.device, every_steps: int) -> None:
        self._parts, self._device, self._every_steps = parts, device, every_steps
        self._gradients: dict[str, torch.Tensor] = {}
        self._before: dict[str, torch.Tensor] = {}

    def due(self, step: int) -> bool:
        """Whether a step is one to measure."""
        return self._every_steps > 0 and step % self._every_steps == 0

    @torch.no_grad()
    def before(self) -> None:
        """To be called between backward and the optimizer step: measures gradients, copies weights.

        Gradients are measured as they are, so before or after clipping is the caller's choice.
        """
        parts = self._parts()
        by_tower = {tower: [] for tower in _by_tower(parts.weights)} | _by_tower(parts.gradients)
        self._gradients = l2_norms(by_tower, self._device, parts.shards)
        self._before = {name: weight.clone() for name, weight in parts.weights.items()}

    @torch.no_grad()
    def after(self) -> dict[str, torch.Tensor]:
        """To be called after the optimizer step: "grad_norm/<tower>", "param_norm/..." and "update_norm/...".

        Returns:
            [] float32 on the device, equal on all ranks. The update is 0 in a skipped step. Towers without a
            trainable parameter are left out.
        """
        parts = self._parts()
        updates, self._before = self._before, {}
        _foreach_sub_(list(updates.values()), [parts.weights[name] for name in updates])
        measured = {
            "grad_norm": self._gradients,
            "param_norm": l2_norms(_by_tower(parts.weights), self._device, parts.shards),
            "update_norm": l2_norms(_by_tower(updates), self._device, parts.shards),
        }
        return {
            f"{kind}/{name}": value for kind, values in measured.items() for name, value in values.items()
        }


def _by_tower(named: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """The tensors of each tower that has any, in the order of TOWERS."""
    found = {tower: [tensor for name, tensor in named.items() if tower_of(name) == tower] for tower in TOWERS}
    return {tower: tensors for tower, tensors in found.items() if tensors}
