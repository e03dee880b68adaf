"""Linear probe: a logistic regression on frozen image features (Radford et al. 2021, A.3).

The L2 strength is searched on validation samples and the classifier is fitted again on training and
validation samples together; the test set is scored once. Features are the image features after the
projection, L2-normalised, so that one encoding serves every task. The paper's probe uses features from
before the projection, which score higher: compare with tables that say the same (CLIP_benchmark's do).
"""

import torch

from evaluate.results import Score
from evaluate.tasks.classification import classification_metrics
from evaluate.tasks.logistic import WarmStarts, fit, search_l2

VALIDATION_FRACTION = 0.2
_SPLIT_SEED = 0


def score_linear_probe(
    train: tuple[torch.Tensor, torch.Tensor],
    validation: tuple[torch.Tensor, torch.Tensor] | None,
    test: tuple[torch.Tensor, torch.Tensor],
    num_classes: int,
    device: torch.device | str = "cpu",
) -> Score:
    """Searches, refits and scores.

    Args:
        train: features [N, D] float32 L2-normalised, labels [N] int64.
        validation: the same, from the data set's own split; None takes a fifth of each class of train.
        test: the same; used for nothing but the final number.
        num_classes: C.
        device: where the regression runs.
    """
    features, labels = train[0].to(device), train[1].to(device)
    if validation is None:
        held_out = stratified_holdout(labels.cpu()).to(device)
        fit_on = (features[~held_out], labels[~held_out])
        validate_on = (features[held_out], labels[held_out])
        whole, origin = (features, labels), f"{VALIDATION_FRACTION:.0%} of each class of train"
    else:
        fit_on, validate_on = (features, labels), (validation[0].to(device), validation[1].to(device))
        whole = (torch.cat([features, validate_on[0]]), torch.cat([labels, validate_on[1]]))
        origin = "the data set's own split"

    fits = WarmStarts(*fit_on, num_classes)
    search = search_l2(lambda l2: fits.fit(l2).accuracy(*validate_on))
    probe = fit(*whole, num_classes, search.l2)
    ranks = probe.ranks(*test)
    absent = num_classes - len(torch.unique(whole[1]))
    notes = [f"{absent} of {num_classes} classes have no training sample"] if absent else []
    if not probe.converged:
        notes.append("L-BFGS stopped at its iteration limit")
    return Score(
        metrics=classification_metrics(ranks, test[1], num_classes),
        details={
            "features": "after projection, L2-normalised",
            "l2": search.l2,
            "validation": origin,
            "validation_accuracy_by_log10_l2": {f"{e:g}": a for e, a in sorted(search.accuracies.items())},
            "num_train_samples": len(whole[1]),
        },
        notes=notes,
    )


def stratified_holdout(labels: torch.Tensor) -> torch.Tensor:
    """Marks a fifth of each class, at least one sample where a class has two, never a class's only sample.

    Args:
        labels: [N] int64 on the CPU.

    Returns:
        [N] bool, the same for the same labels.
    """
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in torch.unique(labels):
        members = (labels == label).nonzero().squeeze(1)
        count = max(1, round(len(members) * VALIDATION_FRACTION)) if len(members) > 1 else 0
        held_out[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return held_out
