"""Accuracy from scores: where the true class ranks, and what follows from it.

Every classification task (zero-shot, linear probe, few-shot) ends here, so they share one tie rule: of two
classes with the same score the one with the lower index ranks first, which is what argmax does. ImageNet
has two pairs of classes with the same name, so exact ties do occur.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from evaluate.intervals import Estimate, bootstrap_mean_per_class, wilson

CHUNK_ROWS = 1024
"""Samples scored at a time; fixed, so that the arithmetic does not depend on how the work was shared out."""


def true_class_ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Number of classes that rank before the true one.

    Args:
        scores: [N, C] floating point.
        labels: [N] int64, the true class of each row.

    Returns:
        [N] int64, 0 where the true class ranks first.
    """
    own = scores.gather(1, labels[:, None])
    classes = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (classes < labels[:, None]))
    return before.sum(dim=1)


def linear_ranks(
    features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`true_class_ranks` of the linear scores features @ weight.T + bias, a chunk of rows at a time.

    Args:
        features: [N, D], labels: [N] int64, weight: [C, D], bias: [C] or None; one dtype and device.

    Returns:
        [N] int64 on the CPU.
    """
    ranks = []
    for rows in _chunks(len(features)):
        scores = features[rows] @ weight.T
        if bias is not None:
            scores = scores + bias
        ranks.append(true_class_ranks(scores, labels[rows]).cpu())
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64)


def _chunks(num: int) -> Iterator[slice]:
    for start in range(0, num, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, num))


def classification_metrics(
    ranks: torch.Tensor, labels: torch.Tensor, num_classes: int
) -> dict[str, Estimate]:
    """acc1, acc5 (from five classes on) and mean_per_class_recall.

    Args:
        ranks: [N] int64 from `true_class_ranks`.
        labels: [N] int64.
        num_classes: classes that a sample was told apart from; sets the chance level.

    Returns:
        name -> estimate; acc1 and acc5 with Wilson intervals, mean_per_class_recall with a bootstrap.
    """
    num = len(ranks)
    metrics = {"acc1": wilson(int((ranks == 0).sum()), num, 1 / num_classes)}
    if num_classes >= 5:
        metrics["acc5"] = wilson(int((ranks < 5).sum()), num, 5 / num_classes)
    metrics["mean_per_class_recall"] = bootstrap_mean_per_class(
        np.asarray(ranks == 0), np.asarray(labels), num_classes, chance=1 / num_classes
    )
    return metrics


def group_metrics(
    ranks: torch.Tensor, labels: torch.Tensor, num_classes: int, groups: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, Estimate]]:
    """The same metrics on the samples whose true class is in a group, still told apart from all classes."""
    found = {}
    for name, classes in groups.items():
        mask = torch.isin(labels, torch.tensor(list(classes), dtype=labels.dtype))
        found[name] = classification_metrics(ranks[mask], labels[mask], num_classes)
    return found
