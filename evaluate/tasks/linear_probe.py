"""Linear probe: a linear classifier on frozen image features (Radford et al. 2021, A.3).

The L2 strength is searched on validation samples and the classifier is fitted again on training and
validation samples together; the test set is scored once. The paper's probe takes features from before the
projection as they are; those after it, L2-normalised, serve every other task too and are what CLIP_benchmark's
tables are made with. Compare only with tables that took the same ones.

On large sets the search sees at most SEARCH_SAMPLES of each side, a stratified draw: OpenAI, too, took 50,000
random samples for quick runs, where a sweep on all of ImageNet took a week (openai/CLIP#64). The refit sees
everything, at the same l2 of the sum over samples, as the same C in scikit-learn would be.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from omegaconf import MISSING

from evaluate.results import Score
from evaluate.tasks.classification import classification_score
from evaluate.tasks.labelled import Labelled, check_labelled, places_in_class, stratified_rows
from evaluate.tasks.linear_classifier import LinearClassifier
from evaluate.tasks.logistic import SEARCH_TOLERANCE, LogisticRegression
from evaluate.tasks.penalty_search import L2Search, search_every_l2, search_l2
from evaluate.tasks.ridge import RidgeRegression

VALIDATION_FRACTION = 0.2
SEARCH_SAMPLES = 50_000
"""Training samples, and validation samples, that the search for the L2 strength sees at most."""

_SPLIT_SEED = 0


class Solver(str, Enum):
    """What fits the classifier."""

    lbfgs = "lbfgs"  # multinomial logistic regression, the paper's probe
    ridge = "ridge"  # least squares in closed form: minutes become seconds, a little less accurate


class ProbeFeatures(str, Enum):
    """What the classifier is fitted to."""

    projected = "projected"  # after the projection into the joint space, L2-normalised
    penultimate = "penultimate"  # before it, as they are; the paper's choice for a ViT


_FEATURE_WORDS = {
    ProbeFeatures.projected: "after projection, L2-normalised",
    ProbeFeatures.penultimate: "before projection, not normalised",
}


@dataclass(kw_only=True)
class LinearProbeConfig:
    """Which probe."""

    solver: Solver = MISSING
    features: ProbeFeatures = MISSING


def score_linear_probe(
    train: Labelled,
    validation: Labelled | None,
    test: Labelled,
    num_classes: int,
    device: torch.device | str = "cpu",
    *,
    config: LinearProbeConfig | None = None,
) -> Score:
    """Searches, refits and scores.

    Args:
        train: features [N, D] float32 of the kind that `config` names, labels [N] int64.
        validation: the same, from the data set's own split; None takes a fifth of each class of train.
        test: the same; used for nothing but the final number.
        num_classes: C.
        device: where the regression runs.
        config: None is logistic regression on projected features.

    Raises:
        DataError: a split is empty, not finite, of another width, or labelled with what is no class.
    """
    config = config or LinearProbeConfig(solver=Solver.lbfgs, features=ProbeFeatures.projected)
    own_split = {"validation": validation} if validation is not None else {}
    check_labelled({"train": train, **own_split, "test": test}, num_classes)
    fit_on, validate_on, whole, origin = _parts(train, validation, device)
    if config.solver is Solver.lbfgs:
        probe, search, details = _logistic_probe(fit_on, validate_on, whole, num_classes)
    else:
        probe, search, details = _ridge_probe(fit_on, validate_on, whole, num_classes)
    score = classification_score(probe.predict(*test), test[1].cpu(), num_classes)
    absent = num_classes - len(torch.unique(whole[1]))
    if absent:
        score.notes.append(f"{absent} of {num_classes} classes have no training sample")
    if details.get("converged") is False:
        score.notes.append("L-BFGS stopped at its iteration limit")
    score.details.update(
        solver=config.solver.value,
        features=_FEATURE_WORDS[config.features],
        l2=search.l2,
        validation=origin,
        validation_accuracy_by_log10_l2={f"{e:g}": a for e, a in sorted(search.accuracies.items())},
        search_rule=f"at most {SEARCH_SAMPLES} training and as many validation samples, drawn by class; refit on all",
        search_train_samples=len(fit_on[1]),
        search_validation_samples=len(validate_on[1]),
        num_train_samples=len(whole[1]),
        **details,
    )
    return score


def _parts(
    train: Labelled, validation: Labelled | None, device: torch.device | str
) -> tuple[Labelled, Labelled, Labelled, str]:
    """What the search fits on and validates on, what the refit sees, and where validation comes from."""
    features, labels = train[0].to(device), train[1].to(device)
    if validation is not None:
        extra = validation[0].to(features), validation[1].to(device)
        whole = torch.cat([features, extra[0]]), torch.cat([labels, extra[1]])
        every = torch.arange(len(extra[1]))
        drawn = _drawn(features, labels, torch.arange(len(labels)))
        return drawn, _drawn(*extra, every), whole, "the data set's own split"
    held_out = stratified_holdout(labels.cpu())
    if not held_out.any():
        return (features, labels), (features, labels), (features, labels), "train itself, one sample a class"
    fit_on = _drawn(features, labels, (~held_out).nonzero().squeeze(1))
    validate_on = _drawn(features, labels, held_out.nonzero().squeeze(1))
    return fit_on, validate_on, (features, labels), f"{VALIDATION_FRACTION:.0%} of each class of train"


def _drawn(features: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor) -> Labelled:
    """At most SEARCH_SAMPLES of the rows, of each class its share."""
    rows = rows[stratified_rows(labels.cpu()[rows], SEARCH_SAMPLES, _SPLIT_SEED)].to(labels.device)
    return features[rows], labels[rows]


def _logistic_probe(
    fit_on: Labelled, validate_on: Labelled, whole: Labelled, num_classes: int
) -> tuple[LinearClassifier, L2Search, dict[str, Any]]:
    path = LogisticRegression(*fit_on, num_classes)
    passes = 0

    def accuracy_at(l2: float) -> float:
        nonlocal passes
        fitted = path.fit(l2, tolerance=SEARCH_TOLERANCE)
        passes += fitted.passes
        return fitted.classifier.accuracy(*validate_on)

    search = search_l2(accuracy_at)
    refit = LogisticRegression(*whole, num_classes).fit(search.l2)
    details = {
        "search_passes": passes,
        "refit_passes": refit.passes,
        "converged": refit.converged,
    }
    return refit.classifier, search, details


def _ridge_probe(
    fit_on: Labelled, validate_on: Labelled, whole: Labelled, num_classes: int
) -> tuple[LinearClassifier, L2Search, dict[str, Any]]:
    path = RidgeRegression(*fit_on, num_classes)
    search = search_every_l2(lambda l2: path.fit(l2).accuracy(*validate_on))
    return RidgeRegression(*whole, num_classes).fit(search.l2), search, {}


def stratified_holdout(labels: torch.Tensor) -> torch.Tensor:
    """Marks a fifth of each class, at least one sample where a class has two, never a class's only sample.

    Args:
        labels: [N] int64 on the CPU.

    Returns:
        [N] bool, the same for the same labels.
    """
    counts = torch.bincount(labels)
    quota = (counts * VALIDATION_FRACTION).round().long().clamp(min=1)
    quota[counts < 2] = 0
    return places_in_class(labels, _SPLIT_SEED) < quota[labels]
