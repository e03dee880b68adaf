"""Samples that are asked about together: Winoground's pairs of images, WinoGAViL's boards.

An image that could not be decoded takes its whole question with it, and the count of those is part of the score.
"""

from dataclasses import dataclass
from typing import Any

import torch

from crawl2clip.errors import DataError
from evaluate.features import ImageFeatures


@dataclass(frozen=True)
class Captions:
    """Captions laid end to end."""

    texts: list[str]
    image_of_text: torch.Tensor  # [T] int64, rising: the row of each caption's image
    rows: torch.Tensor  # int64, the rows of the encoded images that are asked about
    instances: list[str] | None  # [rows] the pair of each image; None where images stand alone
    left_out: int  # questions that lost an image


def captions_of(features: ImageFeatures, where: str, images_per_example: int = 1) -> Captions:
    """The captions of each image, of whole questions only.

    Args:
        features: of the scored split.
        where: data set, for messages.
        images_per_example: 2 where neighbouring images share their captions (each image has the one that is its
            own; the other's is the wrong one), else 1.

    Raises:
        DataError: the samples have no captions.
    """
    if features.captions is None:
        raise DataError(
            f"{where} has class labels and no captions; retrieval and selection need captions: correct its tasks"
        )
    captions = features.captions
    if images_per_example == 1:
        counts = torch.tensor([len(of_image) for of_image in captions])
        texts = [caption for of_image in captions for caption in of_image]
        rows = torch.arange(len(captions))
        return Captions(texts, rows.repeat_interleave(counts), rows, None, 0)
    whole, left_out = _whole_pairs(features)
    texts = [
        text for a, b in whole for text in (captions[a][0], captions[b][0], captions[b][0], captions[a][0])
    ]
    rows = torch.tensor([row for pair in whole for row in pair], dtype=torch.int64)
    instances = [str(number) for number in range(len(whole)) for _ in range(2)]
    return Captions(texts, torch.arange(len(rows)).repeat_interleave(2), rows, instances, left_out)


def shared_captions(captions: Captions) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Captions of equal text as one, which belongs to every image that has it.

    Args:
        captions: of images that stand alone.

    Returns:
        The distinct texts in order of first use, [T]; and the image and the text of each different pair, int64 [P].
    """
    place = {text: number for number, text in enumerate(dict.fromkeys(captions.texts))}
    images = captions.image_of_text.tolist()
    # An image may have a caption twice.
    pairs = dict.fromkeys(zip(images, (place[text] for text in captions.texts), strict=True))
    image_of_pair, text_of_pair = torch.tensor(list(pairs), dtype=torch.int64).reshape(-1, 2).unbind(1)
    return list(place), image_of_pair, text_of_pair


def _whole_pairs(features: ImageFeatures) -> tuple[list[tuple[int, int]], int]:
    """Rows of the two images of each pair that lost none, and how many pairs did."""
    assert features.indices is not None
    row = {int(index): place for place, index in enumerate(features.indices)}
    whole = [(row[index], row[index + 1]) for index in row if index % 2 == 0 and index + 1 in row]
    return whole, (len(row) + len(features.faults)) // 2 - len(whole)


@dataclass(frozen=True)
class Boards:
    """WinoGAViL's boards whose images could all be decoded."""

    prompts: list[str]
    candidates: list[list[int]]  # rows of the encoded images
    associations: list[list[int]]  # rows of those that go with the prompt
    left_out: int


def boards_of(features: ImageFeatures, split: Any, where: str) -> Boards:
    """The boards of a split.

    Raises:
        DataError: the split has none.
    """
    boards = getattr(split, "boards", None)
    if boards is None:
        raise DataError(
            f"{where} has no boards of images; the task winogavil needs the data set of that name (builder=winogavil)"
        )
    assert features.indices is not None
    row = {int(index): place for place, index in enumerate(features.indices)}
    whole = [board for board in boards if all(index in row for index in board.candidates)]
    return Boards(
        [board.prompt for board in whole],
        [[row[index] for index in board.candidates] for board in whole],
        [[row[index] for index in board.associations] for board in whole],
        len(boards) - len(whole),
    )
