"""From saved predictions to one value a sample whose mean is the metric: what a paired test of two models needs.

Metrics that are no mean over samples (mAP, ROC-AUC, medians, the worst group) have none, and are not tested.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGE_RANKS, TEXT_RANKS, IMAGE_OF_TEXT = "image_retrieval_rank", "text_retrieval_rank", "image_of_text"
_RECALL = re.compile(r"(image|text|mean)_retrieval_recall@([0-9]+)")
_MEAN_RANK = re.compile(r"(image|text)_retrieval_mean_rank")
_FEW_SHOT = re.compile(r"acc1@[0-9]+_shot")
# Metric -> the array whose mean it is, or follows from.
_ARRAYS = {
    "acc1": "correct", "acc5": "rank", "jaccard": "jaccard", "text_score": "text_score", "image_score": "image_score",
    "group_score": "group_score",
}  # fmt: skip
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Samples:
    """A metric, sample by sample."""

    values: NDArray[np.float64]  # [N]; their mean is the metric
    clusters: NDArray[np.int64] | None  # [N] what is drawn together; None where samples are independent

    @property
    def is_hit_or_miss(self) -> bool:
        """Whether McNemar's test applies: independent samples that are right or wrong."""
        return self.clusters is None and bool(np.isin(self.values, (0.0, 1.0)).all())


def why_never(metric: str) -> str:
    """Why no saved prediction can give a paired test of a metric; empty when they can."""
    if _FEW_SHOT.fullmatch(metric):
        return f"{metric} is a mean over draws of training samples; compare the spread over the seeds"
    known = metric in _ARRAYS or metric == "mean_per_class_recall"
    if known or _RECALL.fullmatch(metric) or _MEAN_RANK.fullmatch(metric):
        return ""
    return f"{metric} is no mean over samples, so no paired test of it is made"


def samples_of(metric: str, predictions: Arrays) -> Samples | str:
    """A metric's values by sample, or why there are none.

    Args:
        metric: its name in a result.
        predictions: the arrays saved with that result.
    """
    recall, mean_rank = _RECALL.fullmatch(metric), _MEAN_RANK.fullmatch(metric)
    if recall and recall[1] == "mean":
        return _mean_recall(predictions, int(recall[2]))
    if recall:
        return _by_query(recall[1], predictions, lambda ranks: ranks < int(recall[2]))
    if mean_rank:
        return _by_query(mean_rank[1], predictions, lambda ranks: ranks + 1)
    if metric == "mean_per_class_recall":
        return _mean_per_class(predictions)
    if metric not in _ARRAYS:
        return why_never(metric)
    found = predictions.get(_ARRAYS[metric])
    if found is None:
        return _missing(_ARRAYS[metric])
    values = found < 5 if metric == "acc5" else found
    return Samples(np.asarray(values, np.float64), None)


def _missing(name: str) -> str:
    return f"the saved predictions hold no {name!r}; evaluate again with save_predictions=true"


def _by_query(side: str, predictions: Arrays, value: Any) -> Samples | str:
    """A value a query; captions of one image are drawn together."""
    name = IMAGE_RANKS if side == "image" else TEXT_RANKS
    ranks = predictions.get(name)
    if ranks is None:
        return _missing(name)
    values = np.asarray(value(np.asarray(ranks)), np.float64)
    if side == "text":
        return Samples(values, None)
    clusters = _image_of_text(predictions)
    if isinstance(clusters, str):
        return clusters
    return Samples(values, None if len(np.unique(clusters)) == len(clusters) else clusters)


def _image_of_text(predictions: Arrays) -> NDArray[np.int64] | str:
    clusters = predictions.get(IMAGE_OF_TEXT)
    texts = len(predictions[IMAGE_RANKS])
    if clusters is None and texts == len(predictions.get(TEXT_RANKS, ())):
        return np.arange(texts)
    if clusters is None or len(clusters) != texts:
        return _missing(IMAGE_OF_TEXT)
    return np.asarray(clusters, np.int64)


def _mean_recall(predictions: Arrays, k: int) -> Samples | str:
    """By image: half its captions' hits, weighted so that the mean over images is image recall, and half its own."""
    missing = [name for name in (IMAGE_RANKS, TEXT_RANKS) if name not in predictions]
    if missing:
        return _missing(missing[0])
    clusters = _image_of_text(predictions)
    if isinstance(clusters, str):
        return clusters
    images, texts = len(predictions[TEXT_RANKS]), len(clusters)
    if clusters.min() < 0 or clusters.max() >= images:
        return f"the saved {IMAGE_OF_TEXT!r} names images that are not there; evaluate again with save_predictions=true"
    hits = np.bincount(clusters, weights=predictions[IMAGE_RANKS] < k, minlength=images) * images / texts
    return Samples((hits + (predictions[TEXT_RANKS] < k)) / 2, None)


def _mean_per_class(predictions: Arrays) -> Samples | str:
    """Hits weighted by how rare their class is, so that their mean is the mean over classes."""
    for name in ("correct", "label"):
        if name not in predictions:
            return _missing(name)
    _, which, sizes = np.unique(predictions["label"], return_inverse=True, return_counts=True)
    weights = len(which) / (len(sizes) * sizes[which])
    return Samples(np.asarray(predictions["correct"], np.float64) * weights, None)
