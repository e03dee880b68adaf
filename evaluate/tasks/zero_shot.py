"""Zero-shot classification with a prompt ensemble (Radford et al. 2021, section 3.1.4).

A class is the mean direction of its prompts: each prompt's feature is L2-normalised, averaged over the
templates, and normalised again. The predicted class is the one with the highest cosine; the temperature
does not change that and is left out.
"""

from collections.abc import Mapping, Sequence

import torch

from evaluate.results import Score
from evaluate.tasks.classification import classification_metrics, group_metrics, linear_ranks


def zero_shot_classifier(prompt_features: torch.Tensor, prompts_per_class: Sequence[int]) -> torch.Tensor:
    """One direction a class.

    Args:
        prompt_features: [P, D] float32, L2-normalised, the prompts of class 0 first, then those of class 1 ...
        prompts_per_class: how many prompts each class has; sums to P.

    Returns:
        [C, D] float32, L2-normalised.
    """
    means = [part.mean(dim=0) for part in prompt_features.split(list(prompts_per_class))]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def score_zero_shot(
    image_features: torch.Tensor,
    labels: torch.Tensor,
    classifier: torch.Tensor,
    groups: Mapping[str, Sequence[int]],
) -> Score:
    """Accuracy of nearest-class prediction.

    Args:
        image_features: [N, D] float32, L2-normalised.
        labels: [N] int64.
        classifier: [C, D] from `zero_shot_classifier`.
        groups: name -> class indices whose samples are also reported apart.
    """
    num_classes = len(classifier)
    ranks = linear_ranks(image_features, labels, classifier)
    present = set(labels.tolist())
    notes = (
        [f"{num_classes - len(present)} of {num_classes} classes have no sample"]
        if len(present) < num_classes
        else []
    )
    sampled = {name: classes for name, classes in groups.items() if present.intersection(classes)}
    notes += [f"group {name} has no sample" for name in groups if name not in sampled]
    return Score(
        metrics=classification_metrics(ranks, labels, num_classes),
        groups=group_metrics(ranks, labels, num_classes, sampled),
        notes=notes,
    )
