"""Image and text retrieval: recall at 1, 5 and 10 in both directions and their mean, and the ranks themselves.

A query is a hit at k when any of its positives is among the first k results (the usual convention of CLIP
papers; Karpathy & Fei-Fei 2015). Image retrieval asks with a caption, text retrieval with an image. The tie rule is
that of `retrieval_ranks`: at an equal score the earlier index ranks first. (CLIP_benchmark takes what torch.topk
returns, which leaves the order of equal scores open.)

The captions of an image stand and fall together, so intervals come from drawing images with all their captions.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from evaluate.intervals import Estimate, bootstrap_median, bootstrap_ratio, percentile_interval
from evaluate.resampling import bootstrap_sums
from evaluate.results import Score
from evaluate.tasks.inputs import check_count, check_features
from evaluate.tasks.retrieval_ranks import retrieval_ranks

RECALL_AT = (1, 5, 10)


def score_retrieval(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    image_of_text: torch.Tensor,
    *,
    text_of_pair: torch.Tensor | None = None,
) -> Score:
    """Recall at 1, 5 and 10, mean and median rank (from 1), image retrieval and text retrieval.

    Args:
        image_features: [I, D] float32, L2-normalised.
        text_features: [T, D] float32, L2-normalised.
        image_of_text: [T] int64, the image each caption belongs to; every image has at least one.
        text_of_pair: for captions that belong to several images: [P] int64, the caption of each pair, image_of_text
            then being the image of each pair, [P]. None: caption i is in pair i alone.

    Returns:
        image_, text_ and mean_retrieval_recall@k, where mean is that of the two directions, and image_ and
        text_retrieval_mean_rank and _median_rank; each query's rank from 0 under predictions.

    Raises:
        DataError: features that are not finite or not of one width, or an image or caption without a partner.
    """
    num_images, num_texts = len(image_features), len(text_features)
    check_features("image features", image_features)
    check_features("text features", text_features, dim=image_features.shape[1])
    image_of_pair = image_of_text.cpu()
    if text_of_pair is None:
        check_count("images of captions", len(image_of_pair), num_texts, "captions")
        text_of_pair = torch.arange(num_texts)
    text_of_pair = text_of_pair.cpu()
    check_count("captions of pairs", len(text_of_pair), len(image_of_pair), "images of pairs")
    captions = _partners(image_of_pair, num_images, "image")
    images = _partners(text_of_pair, num_texts, "caption")
    ranks = retrieval_ranks(image_features, text_features, image_of_pair, text_of_pair)
    # A caption of several images is drawn with the first of them.
    cluster = (
        torch.full((num_texts,), num_images).scatter_reduce_(0, text_of_pair, image_of_pair, "amin").numpy()
    )
    of_texts, of_images = ranks.of_texts.numpy(), ranks.of_images.numpy()
    chances = [
        (_chance_of_any(images.tolist(), num_images, k), _chance_of_any(captions.tolist(), num_texts, k))
        for k in RECALL_AT
    ]
    metrics = _recalls(of_texts, of_images, cluster, chances)
    metrics |= _rank_metrics("image", of_texts, cluster, num_images)
    metrics |= _rank_metrics("text", of_images, np.arange(num_images), num_images)
    return Score(
        metrics=metrics,
        details={
            "num_captions": num_texts,
            "recall_at": list(RECALL_AT),
            "tie_rule": "at an equal score the earlier index ranks first",
        },
        predictions={
            "image_retrieval_rank": of_texts,
            "text_retrieval_rank": of_images,
            "image_of_text": cluster,
        },
    )


def _partners(of_pair: torch.Tensor, num: int, what: str) -> torch.Tensor:
    """How many pairs each image (or caption) is in, all of them in one."""
    if int(of_pair.min()) < 0 or int(of_pair.max()) >= num:
        raise DataError(
            f"pairs name {what}s {int(of_pair.min())} to {int(of_pair.max())}, but there are {num}; allowed are 0 to "
            f"{num - 1}"
        )
    counts = torch.bincount(of_pair, minlength=num)
    alone = (counts == 0).nonzero().flatten()
    if len(alone):
        raise DataError(
            f"{len(alone)} of {num} {what}s belong to no pair (the first is {what} {int(alone[0])}); retrieval needs "
            "every image with a caption and every caption with an image: leave the others out"
        )
    return counts


def _recalls(
    of_texts: NDArray[np.int64],
    of_images: NDArray[np.int64],
    cluster: NDArray[np.int64],
    chances: Sequence[tuple[float, float]],
) -> dict[str, Estimate]:
    """Recalls of both directions and their mean, all on the same resamples of images."""
    num_images, num_texts = len(of_images), len(of_texts)

    def per_image(values: NDArray[np.bool_]) -> NDArray[np.floating]:
        return np.bincount(cluster, weights=values, minlength=num_images).astype(np.float64)

    columns = [per_image(np.ones(num_texts, np.bool_)), np.ones(num_images)]
    for k in RECALL_AT:
        columns += [per_image(of_texts < k), (of_images < k).astype(np.float64)]
    sums = bootstrap_sums(np.column_stack(columns))
    metrics: dict[str, Estimate] = {}
    means: dict[str, Estimate] = {}
    for place, (k, (image_chance, text_chance)) in enumerate(zip(RECALL_AT, chances, strict=True)):
        image_value, text_value = float((of_texts < k).mean()), float((of_images < k).mean())
        image, text = sums[:, 2 + 2 * place] / sums[:, 0], sums[:, 3 + 2 * place] / sums[:, 1]
        metrics[f"image_retrieval_recall@{k}"] = percentile_interval(
            image_value, image, num=num_texts, chance=image_chance
        )
        metrics[f"text_retrieval_recall@{k}"] = percentile_interval(
            text_value, text, num=num_images, chance=text_chance
        )
        means[f"mean_retrieval_recall@{k}"] = percentile_interval(
            (image_value + text_value) / 2,
            (image + text) / 2,
            num=num_images + num_texts,
            chance=(image_chance + text_chance) / 2,
        )
    return metrics | means


def _rank_metrics(
    side: str, ranks: NDArray[np.int64], cluster: NDArray[np.int64], num_clusters: int
) -> dict[str, Estimate]:
    """Mean and median rank, counted from 1; of an even number the median is the mean of the middle two."""
    sums = np.bincount(cluster, weights=ranks + 1, minlength=num_clusters).astype(np.float64)
    counts = np.bincount(cluster, minlength=num_clusters).astype(np.float64)
    return {
        f"{side}_retrieval_mean_rank": bootstrap_ratio(sums, counts, num=len(ranks), unit="rank"),
        f"{side}_retrieval_median_rank": bootstrap_median(ranks + 1, cluster, unit="rank"),
    }


def _chance_of_any(positives: Sequence[int], num_items: int, k: int) -> float:
    """Mean over queries of the chance that k random items out of num_items hold one of m positives."""
    chance_of: dict[int, float] = {}
    for m in set(positives):
        miss = 1.0
        for drawn in range(min(k, num_items)):
            miss *= max(0.0, (num_items - m - drawn) / (num_items - drawn))
        chance_of[m] = 1.0 - miss
    return sum(chance_of[m] for m in positives) / len(positives)
