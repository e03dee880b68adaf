"""Where the best positive of each query ranks, in both directions, from tiles of the score matrix.

The matrix is never whole in memory: it is computed in tiles of fixed size, and each tile serves both directions,
counting for its captions the images that rank before theirs, and for its images the captions. The score that is
counted against, that of the best positive, has to be known first and has to be the same to the last bit, or a
result would not tie with its own copy; so the tiles that hold a positive are computed once ahead, by the same
product. With the captions of an image side by side those are the tiles along the diagonal: about a tenth.

Tie rule: a result ranks before the best positive when its score is strictly greater, or equal with an earlier
index. So a model that gives every pair the same score gets chance, not everything.
"""

from dataclasses import dataclass

import torch

TILE = 512
"""Texts and images of a tile; fixed, so that a score does not depend on what else is in memory. 1 MB of float32
stays in a core's cache while both directions count."""


@dataclass(frozen=True)
class RetrievalRanks:
    """How many results rank before a query's best positive; 0 is found first."""

    of_texts: torch.Tensor  # [T] int64 on the CPU: images before the caption's own, for image retrieval
    of_images: torch.Tensor  # [I] int64 on the CPU: texts before the image's best caption, for text retrieval


class _Best:
    """The best positive of each query: its score, and the earliest index that has it."""

    def __init__(self, num_queries: int, num_items: int, device: torch.device) -> None:
        self.score = torch.full((num_queries,), -torch.inf, device=device)
        self.item = torch.full((num_queries,), num_items, device=device)
        self.before = torch.zeros(num_queries, dtype=torch.int64, device=device)

    def offer(self, queries: torch.Tensor, items: torch.Tensor, scores: torch.Tensor) -> None:
        """Takes positives into account: queries [P], items [P], their scores [P]."""
        old = self.score.clone()
        self.score.scatter_reduce_(0, queries, scores, "amax")
        self.item[self.score > old] = torch.iinfo(torch.int64).max
        matches = scores == self.score[queries]
        self.item.scatter_reduce_(0, queries[matches], items[matches], "amin")

    def count(self, scores: torch.Tensor, queries: slice, items: slice) -> None:
        """Counts what ranks before the best positives.

        Args:
            scores: [queries of the tile, items of the tile].
            queries: the rows of the tile among all queries.
            items: its columns among all items.
        """
        score, item = self.score[queries], self.item[queries]
        # An item with an earlier index ranks before at an equal score, too: x >= s is x > (the float below s).
        earlier = item >= items.stop
        threshold = torch.where(earlier, torch.nextafter(score, torch.full_like(score, -torch.inf)), score)
        before = (scores > threshold[:, None]).view(torch.uint8).sum(dim=1, dtype=torch.int32).long()
        mixed = ((item > items.start) & ~earlier).nonzero().flatten()  # the positive lies within the tile
        if len(mixed):
            indices = torch.arange(items.start, items.stop, device=scores.device)
            ties = (scores[mixed] == score[mixed, None]) & (indices < item[mixed, None])
            before[mixed] += ties.sum(dim=1)
        self.before[queries] += before


def retrieval_ranks(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    image_of_pair: torch.Tensor,
    text_of_pair: torch.Tensor,
) -> RetrievalRanks:
    """Ranks of the best positives; pairs are many to many.

    Args:
        image_features: [I, D] float32, L2-normalised.
        text_features: [T, D] float32, L2-normalised, on the same device.
        image_of_pair: [P] int64, the image of each pair that belongs together; every image is in one.
        text_of_pair: [P] int64, its text; every text is in one.

    Returns:
        the ranks of both directions. Memory beyond the features is that of a few tiles.
    """
    num_images, num_texts = len(image_features), len(text_features)
    device = image_features.device
    of_text, of_image = _Best(num_texts, num_images, device), _Best(num_images, num_texts, device)
    tiles_across = -(-num_images // TILE)
    tile_of_pair = (text_of_pair // TILE) * tiles_across + image_of_pair // TILE
    order = torch.argsort(tile_of_pair, stable=True)
    tiles, counts = torch.unique_consecutive(tile_of_pair[order], return_counts=True)
    for tile, pairs in zip(tiles.tolist(), order.split(counts.tolist()), strict=True):
        texts, images = _span(tile // tiles_across, num_texts), _span(tile % tiles_across, num_images)
        scores = text_features[texts] @ image_features[images].T
        text, image = text_of_pair[pairs].to(device), image_of_pair[pairs].to(device)
        own = scores[text - texts.start, image - images.start]
        of_text.offer(text, image, own)
        of_image.offer(image, text, own)
    for row in range(-(-num_texts // TILE)):
        texts = _span(row, num_texts)
        for column in range(tiles_across):
            images = _span(column, num_images)
            scores = text_features[texts] @ image_features[images].T
            of_text.count(scores, texts, images)
            of_image.count(scores.T, images, texts)
    return RetrievalRanks(of_text.before.cpu(), of_image.before.cpu())


def _span(number: int, total: int) -> slice:
    return slice(number * TILE, min((number + 1) * TILE, total))
