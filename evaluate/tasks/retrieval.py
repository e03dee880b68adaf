"""Image and text retrieval: recall at 1, 5 and 10 in both directions.

A query is a hit at k when any of its positives is among the first k results (the usual convention of CLIP
papers; Karpathy & Fei-Fei 2015). Pairs are many to many: an image may have several captions and a caption
several images. Tie rule: a result ranks before a positive when its score is strictly greater, or equal with
an earlier index; so a model that gives every pair the same score gets chance, not everything. Scores are
computed a block of queries at a time, so memory does not grow with the number of pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.intervals import Estimate, bootstrap_ratio
from evaluate.results import Score

RECALL_AT = (1, 5, 10)
_BLOCK_SCORES = 8_000_000  # scores in memory at a time: 32 MB of float32


@dataclass(frozen=True)
class Positives:
    """For each query the gallery items that count as right: items[starts[q]:starts[q + 1]]."""

    starts: torch.Tensor  # [Q + 1] int64
    items: torch.Tensor  # [pairs] int64, ascending within a query

    @classmethod
    def of_pairs(cls, queries: torch.Tensor, items: torch.Tensor, num_queries: int) -> "Positives":
        """From pairs: queries [P] and items [P], int64, in any order."""
        order = np.lexsort((items.numpy(), queries.numpy()))
        counts = torch.bincount(queries, minlength=num_queries)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
        return cls(starts, items[torch.from_numpy(order)])


def best_positive_ranks(queries: torch.Tensor, gallery: torch.Tensor, positives: Positives) -> torch.Tensor:
    """Number of gallery items that rank before a query's best positive.

    Args:
        queries: [Q, D] float32, L2-normalised.
        gallery: [G, D] float32, L2-normalised.
        positives: at least one for every query.

    Returns:
        [Q] int64, 0 where a positive ranks first.
    """
    indices = torch.arange(len(gallery))
    ranks = []
    for start, end in _blocks(len(queries), len(gallery)):
        scores = queries[start:end] @ gallery.T
        first, last = int(positives.starts[start]), int(positives.starts[end])
        rows = torch.repeat_interleave(
            torch.arange(end - start), positives.starts[start + 1 : end + 1] - positives.starts[start:end]
        )
        items = positives.items[first:last]
        own = scores[rows, items]
        best = torch.full((end - start,), -torch.inf).scatter_reduce_(0, rows, own, "amax")
        # Among positives with the best score the earliest one ranks first.
        candidates = torch.where(own == best[rows], items, len(gallery))
        index = torch.full((end - start,), len(gallery)).scatter_reduce_(0, rows, candidates, "amin")
        before = (scores > best[:, None]) | ((scores == best[:, None]) & (indices < index[:, None]))
        ranks.append(before.sum(dim=1))
    return torch.cat(ranks)


def _blocks(num_queries: int, num_items: int) -> Iterator[tuple[int, int]]:
    size = max(1, _BLOCK_SCORES // max(1, num_items))
    for start in range(0, num_queries, size):
        yield start, min(start + size, num_queries)


def score_retrieval(
    image_features: torch.Tensor, text_features: torch.Tensor, image_of_text: torch.Tensor
) -> Score:
    """Recall at 1, 5 and 10, image retrieval (a caption is the query) and text retrieval (an image is).

    Args:
        image_features: [I, D] float32, L2-normalised.
        text_features: [T, D] float32, L2-normalised.
        image_of_text: [T] int64, the image each caption belongs to; every image has at least one.
    """
    num_images, num_texts = len(image_features), len(text_features)
    texts = torch.arange(num_texts)
    of_text = Positives.of_pairs(texts, image_of_text, num_texts)
    of_image = Positives.of_pairs(image_of_text, texts, num_images)
    image_ranks = best_positive_ranks(text_features, image_features, of_text)
    text_ranks = best_positive_ranks(image_features, text_features, of_image)
    captions = torch.bincount(image_of_text, minlength=num_images)
    metrics: dict[str, Estimate] = {}
    for k in RECALL_AT:
        hits = torch.bincount(image_of_text, weights=(image_ranks < k).double(), minlength=num_images)
        metrics[f"image_retrieval_recall@{k}"] = bootstrap_ratio(
            hits.numpy(), captions.double().numpy(), num=num_texts, chance=min(1.0, k / num_images)
        )
        metrics[f"text_retrieval_recall@{k}"] = bootstrap_ratio(
            (text_ranks < k).double().numpy(),
            np.ones(num_images),
            num=num_images,
            chance=_chance_of_any(captions.tolist(), num_texts, k),
        )
    return Score(metrics=metrics, details={"num_captions": num_texts, "recall_at": list(RECALL_AT)})


def _chance_of_any(positives: Sequence[int], num_items: int, k: int) -> float:
    """Mean over queries of the chance that k random items out of num_items hold one of m positives."""
    chance_of: dict[int, float] = {}
    for m in set(positives):
        miss = 1.0
        for drawn in range(min(k, num_items)):
            miss *= max(0.0, (num_items - m - drawn) / (num_items - drawn))
        chance_of[m] = 1.0 - miss
    return sum(chance_of[m] for m in positives) / len(positives)
