"""WinoGAViL: which images of a board go with a cue word (Bitton et al. 2022), scored as DataComp scores it.

A board has 5, 6, 10 or 12 candidate images, k of which people associate with the cue. The model picks the k images
nearest to the cue's prompt ("A cue" or "An cue"), and a board's score is the Jaccard index of what it picks and what
people picked. `jaccard` is the mean over all boards; `jaccard_10_12`, over boards of 10 and more, is the number in
DataComp's average of 38; `jaccard_5_6` is that of the small ones.

Tie rule: of images with the same score the one that comes first on the board is picked. (DataComp's argsort picks
the last.)
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from evaluate.intervals import Estimate, bootstrap_ratio
from evaluate.results import Score
from evaluate.tasks.inputs import check_count, check_features

BOARD_SIZES = {"jaccard": (2, math.inf), "jaccard_5_6": (2, 6), "jaccard_10_12": (10, math.inf)}
"""Metric -> smallest and largest number of candidates, inclusive, as in DataComp's eval_utils/wino_eval.py."""


def score_winogavil(
    image_features: torch.Tensor,
    cue_features: torch.Tensor,
    candidates: Sequence[Sequence[int]],
    associations: Sequence[Sequence[int]],
) -> Score:
    """Mean Jaccard index over boards, with a bootstrap over boards.

    Args:
        image_features: [N, D] float32, L2-normalised; an image may lie on many boards.
        cue_features: [B, D] float32, L2-normalised, the prompt of each board's cue, on the same device.
        candidates: of each board the rows of its images, without repeats, in the board's order.
        associations: of each board those of its candidates that people associate with the cue: one at least, and
            not all.

    Returns:
        jaccard, and jaccard_5_6 and jaccard_10_12 where there are such boards; predictions by
        board: "jaccard" [B] float64 and "num_candidates" [B] int64.

    Raises:
        DataError: features that are not finite or not of one width, or boards that are not as described.
    """
    check_features("image features", image_features)
    check_features("cue features", cue_features, dim=image_features.shape[1])
    check_count("boards with candidates", len(candidates), len(cue_features), "cues")
    check_count("boards with associations", len(associations), len(cue_features), "cues")
    for number, (images, chosen) in enumerate(zip(candidates, associations, strict=True)):
        _check_board(number, images, chosen, len(image_features))
    sizes = np.asarray([len(images) for images in candidates])
    picks = np.asarray([len(chosen) for chosen in associations])
    board = np.repeat(np.arange(len(sizes)), sizes)
    image = np.concatenate([np.asarray(images, np.int64) for images in candidates])
    truth = np.concatenate([np.isin(*pair) for pair in zip(candidates, associations, strict=True)])
    scores = (image_features[image] * cue_features[board]).sum(dim=1).cpu().numpy()
    jaccard = _jaccard(scores, board, truth, sizes, picks)
    expected = np.asarray([_chance(int(n), int(k)) for n, k in zip(sizes, picks, strict=True)])
    metrics: dict[str, Estimate] = {}
    for name, (smallest, largest) in BOARD_SIZES.items():
        chosen = (sizes >= smallest) & (sizes <= largest)
        num = int(chosen.sum())
        if num:
            chance = float(expected[chosen].mean())
            metrics[name] = bootstrap_ratio(jaccard[chosen], np.ones(num), num=num, chance=chance)
    return Score(
        metrics=metrics,
        details={
            "boards_by_size": {str(size): int((sizes == size).sum()) for size in np.unique(sizes)},
            "tie_rule": "of images with the same score the first on the board is picked",
        },
        predictions={"jaccard": jaccard, "num_candidates": sizes},
    )


def _jaccard(
    scores: NDArray[np.floating],
    board: NDArray[np.int64],
    truth: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    picks: NDArray[np.int64],
) -> NDArray[np.float64]:
    """[B] Jaccard index of each board's true images and its best-scored ones, as many as are true."""
    # Board after board, in each the best score first; a stable sort leaves equal ones in the board's order.
    order = np.lexsort((-scores, board))
    place = np.arange(len(board)) - np.repeat(sizes.cumsum() - sizes, sizes)
    picked = place < np.repeat(picks, sizes)
    right = np.bincount(board, weights=picked & truth[order], minlength=len(sizes))
    return right / (2 * picks - right)


def _chance(candidates: int, associated: int) -> float:
    """Expected Jaccard index of k random images out of n, k of which are true (hypergeometric)."""
    ways = math.comb(candidates, associated)
    return sum(
        math.comb(associated, hits)
        * math.comb(candidates - associated, associated - hits)
        / ways
        * hits
        / (2 * associated - hits)
        for hits in range(1, associated + 1)
    )


def _check_board(number: int, images: Sequence[int], chosen: Sequence[int], num_images: int) -> None:
    if len(set(images)) != len(images) or min(images, default=-1) < 0 or max(images, default=0) >= num_images:
        raise DataError(
            f"board {number} has the candidates {list(images)}; expected distinct images from 0 to {num_images - 1}. "
            "If one of its images could not be decoded, leave the board out"
        )
    if not chosen or not set(chosen) < set(images):
        raise DataError(
            f"board {number} associates {list(chosen)} of its candidates {list(images)} with the cue; expected at "
            "least one of them, and not all"
        )
