"""Zero-shot classification of images that show several classes: mean average precision over the classes.

For each class the images are ranked by their cosine with the class. Average precision is the mean, over the images
that show it, of the precision at that image's rank; the 11-point form is PASCAL VOC's until 2009 (Everingham et al.
2010, section 4.2): the mean over recalls 0, 0.1 ... 1 of the highest precision at that recall or a larger one.

Tie rule: images with the same score share one rank, the last of theirs, as in scikit-learn's
average_precision_score; the order of the images in the data set plays no part, and a model that scores all images
alike gets the class's share of images. (CLIP_benchmark ranks ties in the order that torch.sort leaves them in.)
Classes that no image shows are left out of the mean and noted. (CLIP_benchmark counts them as 0.)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from evaluate.intervals import centred_interval
from evaluate.resampling import bootstrap
from evaluate.results import Score
from evaluate.tasks.classification import CHUNK_ROWS
from evaluate.tasks.inputs import check_features

RECALL_LEVELS = np.arange(11) / 10


@dataclass(frozen=True)
class _Ranking:
    """One class: its images by falling score, cut into runs that end behind each level with a positive."""

    order: NDArray[np.int64]  # [N] images by falling score
    starts: NDArray[np.int64]  # [L] first place of each run
    positive_order: NDArray[np.int64]  # [P] the positives by falling score
    positive_starts: NDArray[np.int64]  # [L] first positive of each run

    @classmethod
    def of(cls, scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> "_Ranking":
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        # The last place of each level of equal scores, for the levels that hold a positive.
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        level = np.searchsorted(last, np.flatnonzero(positive[order]))
        levels, positive_starts = np.unique(level, return_index=True)
        starts = np.concatenate([[0], last[levels[:-1]] + 1])
        return cls(order[: last[levels[-1]] + 1], starts, order[positive[order]], positive_starts)

    def precision(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """The positives of each level and the precision behind it, [R, L] each.

        Args:
            counts: [R, N] how often each image is there.
        """
        images = np.add.reduceat(counts[:, self.order], self.starts, axis=1).cumsum(axis=1)
        positives = np.add.reduceat(counts[:, self.positive_order], self.positive_starts, axis=1)
        return positives, positives.cumsum(axis=1) / np.maximum(images, 1)


def full_precision(positives: NDArray[np.int64], precision: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean precision at the positives; [R, L] each to [R], NaN where a resample holds no positive."""
    total = positives.sum(axis=1)
    return np.where(total > 0, (positives * precision).sum(axis=1) / np.maximum(total, 1), np.nan)


def eleven_point_precision(
    positives: NDArray[np.int64], precision: NDArray[np.floating]
) -> NDArray[np.floating]:
    """Mean over eleven recalls of the best precision from there on; [R, L] each to [R]."""
    found = positives.cumsum(axis=1)
    total = found[:, -1:]
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    sums = np.zeros(len(found))
    for tenths in range(11):
        # Recall r >= t / 10 in whole numbers; the first level that reaches it.
        first = (10 * found >= tenths * total).argmax(axis=1)
        sums += best[np.arange(len(best)), first]
    return np.where(total[:, 0] > 0, sums / len(RECALL_LEVELS), np.nan)


def score_multi_label(image_features: torch.Tensor, targets: torch.Tensor, classifier: torch.Tensor) -> Score:
    """Mean average precision, full and 11-point, with a bootstrap over images laid around the value.

    Args:
        image_features: [N, D] float32, L2-normalised.
        targets: [N, C] bool, whether an image shows a class.
        classifier: [C, D] from `zero_shot_classifier`.

    Returns:
        mean_average_precision and mean_average_precision_11_point; each class's average precision under details;
        the cosines, [N, C] float32, under predictions as "scores". The chance level is the mean share of images
        that show a class, what a random order gets on a large set.

    Raises:
        DataError: features that are not finite or not of one width, targets of another shape, or none that is set.
    """
    check_features("class directions", classifier)
    check_features("image features", image_features, dim=classifier.shape[1])
    shape = (len(image_features), len(classifier))
    if tuple(targets.shape) != shape:
        raise DataError(
            f"multi-label targets have the shape {list(targets.shape)}; expected {list(shape)}, one row an image and "
            "one column a class: check the class names against the data set"
        )
    scores = torch.cat([part @ classifier.T for part in image_features.split(CHUNK_ROWS)]).cpu().numpy()
    positive = targets.cpu().numpy().astype(bool)
    shown = np.flatnonzero(positive.any(axis=0))
    if not len(shown):
        raise DataError(
            f"none of the {shape[0]} images shows any of the {shape[1]} classes; check the targets of this data set"
        )
    rankings = [_Ranking.of(scores[:, c], positive[:, c]) for c in shown]
    once = np.ones((1, shape[0]), np.int64)
    by_class = [_measures(ranking, once)[:, 0] for ranking in rankings]
    resampled = _resampled_means(rankings, shape[0])
    chance = float(positive[:, shown].mean())
    return Score(
        metrics={
            name: centred_interval(
                float(np.mean([value[place] for value in by_class])),
                resampled[place],
                num=shape[0],
                chance=chance,
            )
            for place, name in enumerate(_MEASURES)
        },
        details={
            "average_precision_by_class": {
                str(c): float(value[0]) for c, value in zip(shown, by_class, strict=True)
            },
            "images_by_class": positive.sum(axis=0).tolist(),
            "tie_rule": "images with the same score share the last of their ranks",
        },
        notes=[
            f"{shape[1] - len(shown)} of {shape[1]} classes are shown by no image and left out of the mean"
        ]
        if len(shown) < shape[1]
        else [],
        predictions={"scores": scores},
    )


_MEASURES: dict[str, Callable[[NDArray[np.int64], NDArray[np.floating]], NDArray[np.floating]]] = {
    "mean_average_precision": full_precision,
    "mean_average_precision_11_point": eleven_point_precision,
}


def _measures(ranking: _Ranking, counts: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
    """[measures, R] for one class."""
    positives, precision = ranking.precision(counts)
    return np.stack([measure(positives, precision) for measure in _MEASURES.values()])


def _resampled_means(rankings: list[_Ranking], num_images: int) -> NDArray[np.floating[Any]]:
    """[measures, 1000] the means over classes when images are drawn; a class that a draw misses is left out."""

    def means(counts: NDArray[np.int64]) -> NDArray[np.floating[Any]]:
        by_class = np.stack([_measures(ranking, counts) for ranking in rankings])
        defined = ~np.isnan(by_class)
        return (np.nan_to_num(by_class).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)).T

    return bootstrap(means, np.ones(num_images, np.int64)).T
