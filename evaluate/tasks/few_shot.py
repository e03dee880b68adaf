"""Few-shot: a logistic regression on k training samples a class, over several draws of the samples.

The subsets are nested: for one seed the 2-shot samples contain the 1-shot ones, so a curve over k shows
more data and not other data. The L2 strength is chosen by cross-validation within the k samples; with one
sample a class there is nothing to validate on and a fixed value is used. The test set chooses nothing (the
CLIP paper's few-shot curve tuned on the full validation set, openai/CLIP#128).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from evaluate.intervals import seed_spread
from evaluate.results import Score
from evaluate.tasks.classification import Predictions, classification_score
from evaluate.tasks.labelled import Labelled, check_labelled, places_in_class, stratified_rows
from evaluate.tasks.logistic import SEARCH_TOLERANCE, LogisticRegression
from evaluate.tasks.penalty_search import search_l2

MAX_FOLDS = 5
CROSS_VALIDATED_SAMPLES = 10_000
"""Above so many samples a fifth of them alone says enough: only the first fold is held out."""
FOLD_TRAIN_SAMPLES = 50_000
"""Training samples that a fold sees at most, as many as the linear probe's search."""

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
    train: Labelled,
    test: Labelled,
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

    Returns:
        acc1@<k>_shot; the predictions are those of the largest k with the first seed.

    Raises:
        DataError: a split is empty, not finite, of another width, or labelled with what is no class.
    """
    check_labelled({"train": train, "test": test}, num_classes)
    features, labels = train[0].to(device), train[1].to(device)
    test_on_device = test[0].to(device), test[1].to(device)
    shots = sorted(set(config.shots))
    values: dict[int, list[float]] = {k: [] for k in shots}
    chosen: dict[int, list[float]] = {k: [] for k in shots}
    shown: Predictions | None = None
    for seed in config.seeds:
        predictions, l2, num_drawn = None, config.one_shot_l2, 0
        for k, rows in nested_subsets(train[1].cpu(), shots, seed).items():
            # A subset that no class could add to is the one before, and so is its classifier.
            if predictions is None or len(rows) > num_drawn:
                drawn = features[rows.to(device)], labels[rows.to(device)]
                l2 = choose_l2(*drawn, num_classes, config.one_shot_l2)
                fitted = LogisticRegression(*drawn, num_classes).fit(l2)
                predictions, num_drawn = fitted.classifier.predict(*test_on_device), len(rows)
            values[k].append(float((predictions.ranks == 0).double().mean()))
            chosen[k].append(l2)
        shown = shown or predictions
    assert shown is not None
    short = short_classes(train[1].cpu(), num_classes, shots)
    score = classification_score(shown, test[1].cpu(), num_classes)
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
            "predictions_of": {"shots": shots[-1], "seed": config.seeds[0]},
        },
        notes=[
            *score.notes,
            *(
                f"{len(classes)} of {num_classes} classes have fewer than {k} training samples; all they have are used"
                for k, classes in short.items()
                if classes
            ),
        ],
        predictions=score.predictions,
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
    places = places_in_class(labels, seed)
    return {k: (places < k).nonzero().squeeze(1) for k in shots}


def short_classes(labels: torch.Tensor, num_classes: int, shots: Sequence[int]) -> Mapping[int, list[int]]:
    """For each k the classes with fewer than k samples, those with none included."""
    counts = torch.bincount(labels, minlength=num_classes)
    return {k: (counts < k).nonzero().squeeze(1).tolist() for k in shots}


def choose_l2(features: torch.Tensor, labels: torch.Tensor, num_classes: int, one_shot_l2: float) -> float:
    """The L2 strength with the best cross-validated accuracy on these samples alone.

    Samples of a class are dealt to the folds in turn, so every fold leaves each class of two or more samples
    some to train on.

    Args:
        features: [N, D], labels: [N] int64, on one device.
        num_classes: C.
        one_shot_l2: the answer where no class has two samples.
    """
    places = places_in_class(labels.cpu(), seed=None)
    num_folds = min(MAX_FOLDS, int(places.max()) + 1)
    if num_folds < 2:
        return one_shot_l2
    fold = (places % num_folds).to(labels.device)
    masks = [
        fold == held_out for held_out in range(num_folds if len(labels) <= CROSS_VALIDATED_SAMPLES else 1)
    ]
    fits = []
    for mask in masks:
        rows = (~mask).nonzero().squeeze(1)
        rows = rows[stratified_rows(labels[rows].cpu(), FOLD_TRAIN_SAMPLES, seed=0).to(rows.device)]
        fits.append(LogisticRegression(features[rows], labels[rows], num_classes))

    def accuracy_at(l2: float) -> float:
        hits = [
            regression.fit(l2, tolerance=SEARCH_TOLERANCE)
            .classifier.predict(features[mask], labels[mask])
            .ranks
            == 0
            for regression, mask in zip(fits, masks, strict=True)
        ]
        return float(torch.cat(hits).double().mean())

    return search_l2(accuracy_at, _SEARCH_LEVELS).l2
