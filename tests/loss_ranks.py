"""Losses on one or more gloo ranks, each a process of its own: all cases of a number of ranks in one start.

The file is imported under its bare name, because a test module's own name means nothing in another process.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from gloo_ranks import results_on_ranks

from crawl2clip.distributed import World
from train.losses.coca import caption_loss
from train.losses.distillation import TeacherFeatures, distillation_loss
from train.losses.exchange import Exchange, gather_with_gradient
from train.losses.infonce import contrastive_loss
from train.losses.sigmoid import sigmoid_loss


@dataclass(frozen=True)
class Case:
    """One loss at one setting."""

    loss: str
    exchange: str = "gather"
    per_rank: int = 5
    tile_size: int = 3
    scale: float = 14.0
    magnitude: float = 1.0  # of the features, which are of length 1 otherwise
    dtype: torch.dtype = torch.float64
    groups_of_two: bool = False  # every other rank is of another batch: ranks 0 and 2, ranks 1 and 3


def global_inputs(case: Case, size: int) -> dict[str, torch.Tensor]:
    """Features [size, 6] and [size, 4] of a batch, and the learned numbers."""
    generator = torch.Generator().manual_seed(size)

    def features(width: int) -> torch.Tensor:
        rows = torch.randn(size, width, generator=generator, dtype=torch.float64)
        return (case.magnitude * torch.nn.functional.normalize(rows, dim=1)).to(case.dtype)

    return {
        "images": features(6), "texts": features(6), "teacher_images": features(4), "teacher_texts": features(4),
        "scale": torch.tensor([case.scale], dtype=torch.float64), "bias": torch.tensor(-1.5, dtype=torch.float64),
    }  # fmt: skip


def global_captions(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [size, 4, 7] and labels [size, 4] of captions that are the shorter the later they come."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(size, 4, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(1, 7, (size, 4), generator=generator)
    lengths = torch.arange(size, 0, -1)[:, None] * 4 // size
    return logits, labels * (torch.arange(4) < lengths)


def run_cases(world: World, cases: list[Case]) -> list[dict[str, Any]]:
    """Value and gradients of every case on this rank, as plain numbers and arrays."""
    # Every rank makes every group, as torch wants it.
    halves = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])] if world.world_size == 4 else []
    whole = dist.group.WORLD if dist.is_initialized() else None
    return [_run(case, halves[world.rank % 2] if case.groups_of_two else whole) for case in cases]


def _run(case: Case, group: Any) -> dict[str, Any]:
    ranks, rank = (dist.get_world_size(group), dist.get_rank(group)) if dist.is_initialized() else (1, 0)
    own = slice(rank * case.per_rank, (rank + 1) * case.per_rank)
    if case.loss == "caption":
        logits, labels = global_captions(ranks * case.per_rank)
        leaves = {"logits": logits[own].requires_grad_()}
        loss = caption_loss(leaves["logits"], labels[own], group=group)
    else:
        inputs = global_inputs(case, ranks * case.per_rank)
        leaves = {
            name: value[own] if value.ndim == 2 else value
            for name, value in inputs.items()
            if not name.startswith("teacher")
        }
        leaves = {name: value.clone().requires_grad_() for name, value in leaves.items()}
        teacher = TeacherFeatures(
            inputs["teacher_images"][own], inputs["teacher_texts"][own], inputs["scale"] / 2
        )
        loss = _loss(case, leaves, teacher, group)
    loss.backward()
    gradients = {name: leaf.grad.double().numpy() for name, leaf in leaves.items() if leaf.grad is not None}
    return {"loss": loss.item(), **gradients}


def _loss(case: Case, leaves: dict[str, Any], teacher: TeacherFeatures, group: Any) -> torch.Tensor:
    images, texts, scale, bias = (leaves[name] for name in ("images", "texts", "scale", "bias"))
    options: Any = {"group": group, "tile_size": case.tile_size}
    if case.loss.startswith("open_clip"):
        return _peer(case.loss, images, texts, scale, bias)
    if case.loss == "gathered_sum":  # not a loss: weighs each rank's rows, to see whose gradients arrive
        rows = gather_with_gradient(images, group)
        return (rows * torch.arange(1, len(rows) + 1, dtype=rows.dtype)[:, None]).sum()
    options["exchange"] = Exchange(case.exchange)
    if case.loss == "infonce":
        return contrastive_loss(images, texts, scale, **options)
    if case.loss == "sigmoid":
        return sigmoid_loss(images, texts, scale, bias, **options)
    return distillation_loss(images, texts, scale, teacher, 0.7, 1.3, **options)


def _peer(name: str, images: Any, texts: Any, scale: Any, bias: Any) -> torch.Tensor:
    from open_clip.loss import ClipLoss, SigLipLoss

    of_ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    if name == "open_clip_infonce":
        return ClipLoss(local_loss=True, gather_with_grad=True, **of_ranks)(images, texts, scale)
    return SigLipLoss(**of_ranks)(images, texts, scale, bias).sum()


def measure(world_size: int, cases: list[Case]) -> list[dict[str, np.ndarray]]:
    """For every case, what each rank measured, stacked: [ranks, ...]."""
    by_rank = results_on_ranks(run_cases, world_size, cases)
    return [
        {name: np.stack([of_rank[name] for of_rank in of_case]) for name in of_case[0]}
        for of_case in zip(*by_rank, strict=True)
    ]
