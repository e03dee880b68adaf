"""Zero-shot classification with a prompt ensemble (Radford et al. 2021, section 3.1.4).

A class is the mean direction of its prompts: each prompt's feature is L2-normalised, averaged over the
templates, and normalised again. The predicted class is the one with the highest cosine; the temperature
does not change that and matters for the calibration error alone.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch

from crawl2clip.errors import DataError
from evaluate.data.samples import check_labels
from evaluate.results import Score
from evaluate.tasks.calibration import SOURCE, expected_calibration_error
from evaluate.tasks.classification import classification_score, linear_predictions
from evaluate.tasks.inputs import check_count, check_features


def zero_shot_classifier(prompt_features: Iterable[torch.Tensor]) -> torch.Tensor:
    """One direction a class.

    Args:
        prompt_features: for each class the features [P, D] of its prompts, float32, L2-normalised, P at least 1. They
            are taken one after the other, so those of all classes need not be in memory together.

    Returns:
        [C, D] float32, L2-normalised.

    Raises:
        DataError: a class has no prompt.
    """
    means, empty = [], []
    for index, of_class in enumerate(prompt_features):
        if len(of_class) == 0:
            empty.append(index)
        means.append(of_class.mean(dim=0))
    if empty:
        raise DataError(
            f"class {empty[0]} has no prompt ({len(empty)} of {len(means)} classes have none); give every class at "
            "least one"
        )
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def score_zero_shot(
    image_features: torch.Tensor,
    labels: torch.Tensor,
    classifier: torch.Tensor,
    groups: Mapping[str, Sequence[int]],
    *,
    logit_scale: float | None = None,
    sample_groups: Sequence[str] | None = None,
) -> Score:
    """Accuracy of nearest-class prediction.

    Args:
        image_features: [N, D] float32, L2-normalised.
        labels: [N] int64.
        classifier: [C, D] from `zero_shot_classifier`.
        groups: name -> class indices whose samples are also reported apart.
        logit_scale: the model's, already exponentiated, so 1 / temperature; gives ece.
        sample_groups: [N] the group of each sample (such as its region), "" for none; gives worst_group_acc1 and
            worst_group_acc5.

    Returns:
        acc1, acc5 (from five classes on), mean_per_class_recall, macro_f1, roc_auc (two classes), ece (with a
        logit_scale) and worst_group_* (with sample_groups); predictions of each sample.

    Raises:
        DataError: features that are not finite or not of one width, labels that no class stands for, or lists that
            are not as long as the samples.
    """
    check_features("class directions", classifier)
    check_features("image features", image_features, dim=classifier.shape[1])
    check_count("labels", len(labels), len(image_features), "images")
    check_labels(labels.tolist(), len(classifier), "zero-shot classification")
    predictions = linear_predictions(image_features, labels, classifier, logit_scale=logit_scale)
    score = classification_score(
        predictions, labels.cpu(), len(classifier), groups=groups, sample_groups=sample_groups
    )
    if predictions.confidence is not None:
        confidence = np.asarray(predictions.confidence)
        estimate, bins = expected_calibration_error(confidence, score.predictions["correct"])
        score.metrics["ece"] = estimate
        score.details["calibration"] = {"logit_scale": logit_scale, "measure": SOURCE, "bins": bins}
        score.predictions["confidence"] = confidence
    return score
