"""Accuracy from scores: where the true class ranks, which class ranks first, and what follows from it.

Every classification task (zero-shot, linear probe, few-shot, k-NN) ends here, so they share one tie rule: of two
classes with the same score the one with the lower index ranks first, which is what argmax does. ImageNet
has two pairs of classes with the same name, so exact ties do occur. (CLIP_benchmark's acc1 and acc5 take what
torch.topk returns, which leaves the order of equal scores open.)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.intervals import Estimate, bootstrap_mean_per_class, wilson
from evaluate.results import Score
from evaluate.tasks.groups import score_sample_groups
from evaluate.tasks.macro_f1 import macro_f1
from evaluate.tasks.roc_auc import roc_auc

CHUNK_ROWS = 1024
"""Samples scored at a time; fixed, so that the arithmetic does not depend on how the work was shared out."""


@dataclass(frozen=True)
class Predictions:
    """What a classifier said about each sample, all on the CPU."""

    ranks: torch.Tensor  # [N] int64, classes that rank before the true one
    predicted: torch.Tensor  # [N] int64, the class that ranks first
    margin: torch.Tensor | None = (
        None  # [N] float64, score of class 1 minus that of class 0; two classes only
    )
    confidence: torch.Tensor | None = (
        None  # [N] float32, softmax probability of `predicted`; None without a scale
    )


def true_class_ranks(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Number of classes that rank before the true one.

    Args:
        scores: [N, C] floating point.
        labels: [N] int64, the true class of each row.

    Returns:
        [N] int64, 0 where the true class ranks first.
    """
    own = scores.gather(1, labels[:, None])
    ranks = (scores > own).sum(dim=1)
    tied = ((scores == own).sum(dim=1) > 1).nonzero().flatten()  # rare; each class ties with itself
    if len(tied):
        classes = torch.arange(scores.shape[1], device=scores.device)
        earlier = (scores[tied] == own[tied]) & (classes < labels[tied, None])
        ranks[tied] += earlier.sum(dim=1)
    return ranks


def linear_predictions(
    features: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    logit_scale: float | None = None,
) -> Predictions:
    """What the linear scores features @ weight.T + bias say, a chunk of rows at a time.

    Args:
        features: [N, D], labels: [N] int64, weight: [C, D], bias: [C] or None; one dtype and device.
        logit_scale: factor that makes logits of the scores, already exponentiated; gives the confidences.
    """
    ranks, predicted, margin, confidence = [], [], [], []
    for rows in _chunks(len(features)):
        scores = features[rows] @ weight.T
        if bias is not None:
            scores = scores + bias
        ranks.append(true_class_ranks(scores, labels[rows]).cpu())
        best, first = scores.max(dim=1)  # of equal scores the first index, as documented for max
        predicted.append(first.cpu())
        if len(weight) == 2:
            margin.append((scores[:, 1].double() - scores[:, 0].double()).cpu())
        if logit_scale is not None:
            logits = scores * logit_scale
            confidence.append((best * logit_scale - logits.logsumexp(dim=1)).exp().cpu())
    return Predictions(
        ranks=torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64),
        predicted=torch.cat(predicted) if predicted else torch.empty(0, dtype=torch.int64),
        margin=torch.cat(margin) if margin else None,
        confidence=torch.cat(confidence) if confidence else None,
    )


def _chunks(num: int) -> Iterator[slice]:
    for start in range(0, num, CHUNK_ROWS):
        yield slice(start, min(start + CHUNK_ROWS, num))


def classification_metrics(
    ranks: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    predicted: torch.Tensor | None = None,
    margin: torch.Tensor | None = None,
) -> dict[str, Estimate]:
    """acc1, acc5 (from five classes on), mean_per_class_recall, and what the further arguments allow.

    Args:
        ranks: [N] int64 from `true_class_ranks`.
        labels: [N] int64.
        num_classes: classes that a sample was told apart from; sets the chance level.
        predicted: [N] int64, the class that ranks first; gives macro_f1.
        margin: [N] floating point, how much class 1 is preferred to class 0; gives roc_auc for two classes.

    Returns:
        name -> estimate; acc1 and acc5 with Wilson intervals, the others with a bootstrap over samples.
    """
    num = len(ranks)
    metrics = {"acc1": wilson(int((ranks == 0).sum()), num, 1 / num_classes)}
    if num_classes >= 5:
        metrics["acc5"] = wilson(int((ranks < 5).sum()), num, 5 / num_classes)
    metrics["mean_per_class_recall"] = bootstrap_mean_per_class(
        np.asarray(ranks == 0), np.asarray(labels), num_classes, chance=1 / num_classes
    )
    if predicted is not None:
        metrics["macro_f1"] = macro_f1(np.asarray(labels), np.asarray(predicted))
    if margin is not None and num_classes == 2:
        metrics["roc_auc"] = roc_auc(np.asarray(margin), np.asarray(labels == 1))
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


def classification_score(
    predictions: Predictions,
    labels: torch.Tensor,
    num_classes: int,
    *,
    groups: Mapping[str, Sequence[int]] | None = None,
    sample_groups: Sequence[str] | None = None,
) -> Score:
    """Everything that follows from predictions: metrics, groups, notes on what is missing, per-sample arrays.

    Args:
        predictions: of [N] samples.
        labels: [N] int64 on the CPU.
        num_classes: C.
        groups: name -> class indices whose samples are also reported apart.
        sample_groups: [N] the group of each sample, for worst_group_*; "" for a sample without one.

    Raises:
        DataError: sample groups that are not one a sample, or that are called like a group of classes.
    """
    ranks = predictions.ranks
    metrics = classification_metrics(
        ranks, labels, num_classes, predicted=predictions.predicted, margin=predictions.margin
    )
    present = set(labels.tolist())
    missing = num_classes - len(present)
    notes = [f"{missing} of {num_classes} classes have no sample"] if missing else []
    groups = groups or {}
    sampled = {name: classes for name, classes in groups.items() if present.intersection(classes)}
    notes += [f"group {name} has no sample" for name in groups if name not in sampled]
    score = Score(
        metrics=metrics,
        groups=group_metrics(ranks, labels, num_classes, sampled),
        notes=notes,
        predictions={
            "predicted": np.asarray(predictions.predicted),
            "correct": np.asarray(ranks == 0),
            "rank": np.asarray(ranks),
        },
    )
    if sample_groups is not None:
        score_sample_groups(score, np.asarray(ranks), sample_groups, num_classes)
    return score
