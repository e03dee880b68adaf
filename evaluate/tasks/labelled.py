"""Labelled features of a split: checked before anything is fitted to them, and drawn from class by class."""

import torch

from crawl2clip.errors import DataError

Labelled = tuple[torch.Tensor, torch.Tensor]
"""Features [N, D] floating point and labels [N] int64."""


def check_labelled(parts: dict[str, Labelled], num_classes: int) -> None:
    """Refuses what no classifier can be fitted to or scored on.

    Args:
        parts: name of a split -> its samples.
        num_classes: C; labels are 0 to C - 1.

    Raises:
        DataError: a split is empty, has features that are not finite, labels that no class stands for or that
            are not as many as the features, or another width than the first split.
    """
    width = next(iter(parts.values()))[0].shape[1]
    for name, (features, labels) in parts.items():
        if not len(labels) or len(labels) != len(features):
            raise DataError(
                f"the {name} split has {len(features)} rows and {len(labels)} labels; a probe needs one label a "
                "row and at least one of them. Check that the split exists and was read to its end"
            )
        if features.shape[1] != width:
            raise DataError(
                f"the {name} split's features are {features.shape[1]} wide, the first split's {width}; both must come "
                "from one model and one layer. Encode the splits again"
            )
        # Row by row, so that no second copy of the features is made to look at them.
        bad = int((~torch.isfinite(features.sum(dim=1))).sum())
        if bad:
            raise DataError(
                f"{bad} of {len(features)} features of the {name} split are not finite; nothing is fitted to them. "
                "Encode with precision=fp32, or repair the weights"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"labels of the {name} split run from {low} to {high}, but there are {num_classes} classes; labels "
                f"must be 0 to {num_classes - 1}. Check that the class names belong to this data set"
            )


def places_in_class(labels: torch.Tensor, seed: int | None) -> torch.Tensor:
    """Where each sample stands, from 0, among those of its class in a random order.

    Taking the samples with a place below k draws k of each class, and more for a larger k: nested subsets.

    Args:
        labels: [N] int64 on the CPU.
        seed: of the order; None keeps the order of the samples.

    Returns:
        [N] int64.
    """
    num = len(labels)
    if seed is None:
        order = torch.arange(num)
    else:
        order = torch.randperm(num, generator=torch.Generator().manual_seed(seed))
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    places = torch.empty(num, dtype=torch.int64)
    places[by_class] = torch.arange(num) - starts[labels[by_class]]
    return places


def stratified_rows(labels: torch.Tensor, num: int, seed: int) -> torch.Tensor:
    """About `num` row numbers, ascending, of each class its share and at least one; all rows when there are fewer.

    Args:
        labels: [N] int64 on the CPU.
        num: rows wanted.
        seed: of the draw.
    """
    if len(labels) <= num:
        return torch.arange(len(labels))
    counts = torch.bincount(labels)
    quota = (counts.double() * num / len(labels)).round().long().clamp(min=1)
    return (places_in_class(labels, seed) < quota[labels]).nonzero().squeeze(1)
