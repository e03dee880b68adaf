"""Few-shot: a logistic regression on k training samples a class, over several draws of the samples.

The subsets are nested: for one seed the 2-shot samples contain the 1-shot ones, so a curve over k shows
more data and not other data. The L2 strength is chosen by cross-validation within the k samples; with one
sample a class there is nothing to validate on and a fixed value is used. The test set chooses nothing (the
CLIP paper's few-shot curve tuned on the full validation set).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from evaluate.intervals import seed_spread
from evaluate.results import Score
from evaluate.tasks.logistic import WarmStarts, fit, search_l2

MAX_FOLDS = 5
_SEARCH_LEVELS = (1.0,)  # to the decade: the few validation samples cannot tell finer steps apart


@dataclass(kw_only=True)
class FewShotConfig:
    """How many samples a class, and how often they are drawn."""

    shots: list[int] = MISSING  # samples a class, each at least 1
    seeds: list[int] = MISSING  # one draw of samples each; three or more show the spread
    one_shot_l2: float = MISSING  # L2 strength for a single sample a class

    def __post_init__(self) -> None:
        if self.shots != MISSING and (not self.shots or min(self.shots) < 1):
            raise ConfigError(f"few_shot.shots is {list(self.shots)}; give one or more numbers from 1 on")
        if self.seeds != MISSING and len(set(self.seeds)) < 3:
            raise ConfigError(
                f"few_shot.seeds is {list(self.seeds)}; give at least three different seeds, one draw of "
                "samples says little about the model"
            )
        if self.one_shot_l2 != MISSING and self.one_shot_l2 <= 0:
            raise ConfigError(f"few_shot.one_shot_l2 is {self.one_shot_l2}; give a number above 0")


def score_few_shot(
    train: tuple[torch.Tensor, torch.Tensor],
    test: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    config: FewShotConfig,
    device: torch.device | str = "cpu",
) -> Score:
    """Top-1 accuracy for every k: mean over the seeds and their spread.

    Args:
        train: features [N, D] float32 L2-normalised, labels [N] int64; the samples are drawn from these.
        test: the same; used for nothing but the final numbers.
        num_classes: C.
        config: shots and seeds.
        device: where the regressions run.
    """
    features, labels = train[0].to(device), train[1].to(device)
    values: dict[int, list[float]] = {k: [] for k in sorted(set(config.shots))}
    chosen: dict[int, list[float]] = {k: [] for k in values}
    for seed in config.seeds:
        subsets = nested_subsets(train[1].cpu(), list(values), seed)
        for k, rows in subsets.items():
            shot_features, shot_labels = features[rows.to(device)], labels[rows.to(device)]
            l2 = choose_l2(shot_features, shot_labels, num_classes, config.one_shot_l2)
            classifier = fit(shot_features, shot_labels, num_classes, l2)
            values[k].append(classifier.accuracy(*test))
            chosen[k].append(l2)
    short = short_classes(train[1], num_classes, list(values))
    return Score(
        metrics={
            f"acc1@{k}_shot": seed_spread(accuracies, 1 / num_classes) for k, accuracies in values.items()
        },
        details={
            "features": "after projection, L2-normalised",
            "seeds": list(config.seeds),
            "acc1_by_seed": {str(k): accuracies for k, accuracies in values.items()},
            "l2_by_seed": {str(k): strengths for k, strengths in chosen.items()},
            "classes_with_fewer_samples": {str(k): classes for k, classes in short.items() if classes},
            "num_test_samples": len(test[1]),
        },
        notes=[
            f"{len(classes)} of {num_classes} classes have fewer than {k} training samples; all they have are used"
            for k, classes in short.items()
            if classes
        ],
    )


def nested_subsets(labels: torch.Tensor, shots: Sequence[int], seed: int) -> dict[int, torch.Tensor]:
    """For each k the rows of the first k samples a class in one random order; fewer where a class has fewer.

    Args:
        labels: [N] int64 on the CPU.
        shots: the values of k.
        seed: of the order.

    Returns:
        k -> int64 row numbers, ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    rows: dict[int, list[torch.Tensor]] = {k: [] for k in shots}
    for label in torch.unique(labels):
        members = order[labels[order] == label]
        for k in shots:
            rows[k].append(members[:k])
    return {k: torch.cat(parts).sort().values for k, parts in rows.items()}


def short_classes(labels: torch.Tensor, num_classes: int, shots: Sequence[int]) -> Mapping[int, list[int]]:
    """For each k the classes with fewer than k samples, those with none included."""
    counts = torch.bincount(labels, minlength=num_classes)
    return {k: (counts < k).nonzero().squeeze(1).tolist() for k in shots}


def choose_l2(features: torch.Tensor, labels: torch.Tensor, num_classes: int, one_shot_l2: float) -> float:
    """The L2 strength with the best cross-validated accuracy on these samples alone.

    Samples of a class are dealt to the folds in turn, so every fold leaves each class of two or more samples
    some to train on.
    """
    counts = torch.bincount(labels, minlength=num_classes)
    num_folds = min(MAX_FOLDS, int(counts.max()))
    if num_folds < 2:
        return one_shot_l2
    fold = torch.empty_like(labels)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        fold[members] = torch.arange(len(members), device=labels.device) % num_folds

    masks = [fold == held_out for held_out in range(num_folds)]
    fits = [WarmStarts(features[~mask], labels[~mask], num_classes) for mask in masks]

    def accuracy_at(l2: float) -> float:
        ranks = [fits[i].fit(l2).ranks(features[mask], labels[mask]) for i, mask in enumerate(masks)]
        return float((torch.cat(ranks) == 0).double().mean())

    return search_l2(accuracy_at, _SEARCH_LEVELS).l2
