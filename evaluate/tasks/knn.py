"""k-NN: a weighted vote of the nearest training images, as self-supervised models are scored.

The rule is that of Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric Instance Discrimination,
section 3.4) as DINO's eval_knn.py runs it: of the k training images with the highest cosine each gives its
class exp(cosine / temperature) votes. DINO reports k = 20 and temperature 0.07; nothing is tuned here.

Two tie rules make the result exact: of equally similar training images the one with the lower index is the
nearer, and of classes with equal votes the one with the lower index ranks first. A class without any vote
ranks last, so that acc5 counts only classes that something spoke for.
"""

from dataclasses import dataclass

import torch
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from evaluate.results import Score
from evaluate.tasks.classification import Predictions, classification_score, true_class_ranks
from evaluate.tasks.labelled import Labelled, check_labelled

_QUERY_ROWS = 256
_TRAIN_ROWS = 65_536  # with _QUERY_ROWS the similarities in memory at a time: 64 MB


@dataclass(kw_only=True)
class KnnConfig:
    """Who votes, and how the votes are weighted."""

    num_neighbors: int = MISSING  # k, at least 1
    temperature: float = MISSING  # cosines are divided by it; 0.01 or more

    def __post_init__(self) -> None:
        if self.num_neighbors != MISSING and self.num_neighbors < 1:
            raise ConfigError(f"knn.num_neighbors is {self.num_neighbors}; give 1 or more, DINO's is 20")
        if self.temperature != MISSING and not self.temperature >= 0.01:
            raise ConfigError(
                f"knn.temperature is {self.temperature}; give 0.01 or more, DINO's is 0.07: below that the nearest "
                "image alone decides, which num_neighbors=1 says as well"
            )


def score_knn(
    train: Labelled,
    test: Labelled,
    num_classes: int,
    config: KnnConfig,
    device: torch.device | str = "cpu",
) -> Score:
    """Accuracy of the weighted vote.

    Args:
        train: features [N, D] float32 L2-normalised, labels [N] int64.
        test: the same.
        num_classes: C.
        config: k and temperature.
        device: where similarities are computed; votes are counted on the CPU, in order.

    Raises:
        DataError: a split is empty, not finite, of another width, or labelled with what is no class.
    """
    check_labelled({"train": train, "test": test}, num_classes)
    neighbors = min(config.num_neighbors, len(train[1]))
    gallery, gallery_labels, labels = train[0].to(device), train[1].cpu(), test[1].cpu()
    predicted, ranks = [], []
    for queries, own in zip(test[0].split(_QUERY_ROWS), labels.split(_QUERY_ROWS), strict=True):
        cosines, indices = nearest(queries.to(device), gallery, neighbors)
        votes = torch.zeros(len(own), num_classes, dtype=torch.float64)
        votes.scatter_add_(
            1, gallery_labels[indices.cpu()], (cosines.cpu().double() / config.temperature).exp()
        )
        predicted.append(votes.argmax(dim=1))
        without = votes.gather(1, own[:, None]).squeeze(1) == 0
        ranks.append(true_class_ranks(votes, own).masked_fill(without, num_classes - 1))
    score = classification_score(Predictions(torch.cat(ranks), torch.cat(predicted)), labels, num_classes)
    score.details.update(
        num_neighbors=neighbors,
        temperature=config.temperature,
        features="after projection, L2-normalised",
        num_train_samples=len(gallery_labels),
    )
    if neighbors < config.num_neighbors:
        score.notes.append(f"all {neighbors} training samples vote; {config.num_neighbors} were asked for")
    absent = num_classes - len(torch.unique(gallery_labels))
    if absent:
        score.notes.append(f"{absent} of {num_classes} classes have no training sample")
    return score


def nearest(queries: torch.Tensor, gallery: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a gallery most similar to each query; of equally similar ones the lower index is nearer.

    Args:
        queries: [Q, D] and gallery: [N, D], one floating type and device.
        num: k, at most N.

    Returns:
        similarities [Q, k], descending, and indices [Q, k] int64.
    """
    values = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(gallery), _TRAIN_ROWS):
        similarities = queries @ gallery[start : start + _TRAIN_ROWS].T
        block_values, block_indices = _top(similarities, num)
        values = torch.cat([values, block_values], dim=1)
        indices = torch.cat([indices, block_indices + start], dim=1)
        # What was found before has lower indices and stands first, so a stable sort keeps the tie rule.
        values, order = values.sort(dim=1, descending=True, stable=True)
        values, indices = values[:, :num], indices.gather(1, order)[:, :num]
    return values, indices


def _top(similarities: torch.Tensor, num: int) -> tuple[torch.Tensor, torch.Tensor]:
    """topk with the tie rule, which torch leaves open: rows with equal values around the k-th are sorted whole."""
    if num >= similarities.shape[1]:
        return similarities.sort(dim=1, descending=True, stable=True)
    values, indices = similarities.topk(num + 1, dim=1)
    equal = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero().squeeze(1)
    if len(equal):
        ordered = similarities[equal].sort(dim=1, descending=True, stable=True)
        values[equal], indices[equal] = ordered.values[:, : num + 1], ordered.indices[:, : num + 1]
    return values[:, :num], indices[:, :num]
