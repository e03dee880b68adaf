"""Image-caption selection: does the right caption fit the image better than one that says something else?

One image and one or more wrong captions (SugarCrepe, Hsieh et al. 2023, and its like): acc1, the share of images
whose right caption scores above every wrong one. Two images that share two captions (Winoground, Thrush et al. 2022,
equations 1 to 3): text_score (for both images the right caption wins), image_score (for both captions the right
image wins) and group_score (both).

Data comes one image at a time with its captions, the right one first. The two images of a Winoground instance carry
the same instance name and list the same two captions, each its own first.

Tie rule: the right one has to score strictly above the wrong ones, as in both papers' code. (CLIP_benchmark takes
argmax, which gives a tie to the right caption because it comes first: a model that scores all captions alike gets
100% of SugarCrepe there and 0% here. Without ties its text_acc, image_acc and acc are these three scores, and its
text_acc of one-image sets is acc1.)
"""

from collections.abc import Sequence

import torch

from crawl2clip.errors import DataError
from evaluate.intervals import wilson
from evaluate.results import Score
from evaluate.tasks.inputs import check_count, check_features

TIE_RULE = "the right one has to score strictly above the wrong ones"


def score_selection(
    image_features: torch.Tensor,
    text_features: torch.Tensor,
    image_of_text: torch.Tensor,
    *,
    instances: Sequence[str] | None = None,
) -> Score:
    """acc1, or text_score, image_score and group_score where images come in pairs.

    Args:
        image_features: [N, D] float32, L2-normalised.
        text_features: [T, D] float32, L2-normalised; the captions of an image follow one another, the right first.
        image_of_text: [T] int64, rising, the image of each caption; each image has at least two.
        instances: [N] the name of the pair that each image belongs to (Winoground); None: every image for itself.

    Returns:
        Wilson intervals over images or pairs; predictions "correct" [N] bool for single images, and for pairs
        "text_score", "image_score" and "group_score", [N / 2] bool, in the order in which the instances first appear.

    Raises:
        DataError: features that are not finite or not of one width, captions out of order, an image with fewer than
            two, or an instance that is no pair of images with the same two captions.
    """
    check_features("image features", image_features)
    check_features("text features", text_features, dim=image_features.shape[1])
    check_count("images of captions", len(image_of_text), len(text_features), "captions")
    owner = image_of_text.to(image_features.device)
    counts = _captions_of_images(owner, len(image_features))
    starts = counts.cumsum(0) - counts
    if instances is not None:
        check_count("instances", len(instances), len(image_features), "images")
        first, second = _pairs(instances, counts.tolist()).T
        return _score_pairs(image_features, text_features, starts, first, second)
    own = (image_features[owner] * text_features).sum(dim=1)
    wrong = own.index_fill(0, starts, -torch.inf)
    best_wrong = torch.full_like(own[starts], -torch.inf).scatter_reduce(0, owner, wrong, "amax")
    correct = (own[starts] > best_wrong).cpu().numpy()
    chance = float((1 / counts.double()).mean())
    return Score(
        metrics={"acc1": wilson(int(correct.sum()), len(correct), chance)},
        details={"num_captions": len(text_features), "tie_rule": TIE_RULE},
        predictions={"correct": correct},
    )


def _captions_of_images(owner: torch.Tensor, num_images: int) -> torch.Tensor:
    """[N] how many captions each image has, at least two."""
    if bool((owner[1:] < owner[:-1]).any()) or int(owner[-1]) >= num_images or int(owner[0]) < 0:
        raise DataError(
            f"captions must be in the order of their images, which are 0 to {num_images - 1}; found captions of images "
            f"{int(owner.min())} to {int(owner.max())}: list each image's captions together, the right one first"
        )
    counts = torch.bincount(owner, minlength=num_images)
    few = (counts < 2).nonzero().flatten()
    if len(few):
        raise DataError(
            f"image {int(few[0])} has {int(counts[few[0]])} captions; selection needs the right one and at least one "
            f"wrong one ({len(few)} of {num_images} images have fewer than two)"
        )
    return counts


def _pairs(instances: Sequence[str], counts: Sequence[int]) -> torch.Tensor:
    """[N / 2, 2] the images of each instance, in the order of first appearance."""
    members: dict[str, list[int]] = {}
    for image, name in enumerate(instances):
        members.setdefault(name, []).append(image)
    for name, found in members.items():
        captions = [counts[image] for image in found]
        if captions != [2, 2]:
            raise DataError(
                f"instance {name!r} has {len(found)} images with {captions} captions; an instance is two images with "
                "the same two captions each. If one of its images could not be decoded, leave the instance out"
            )
    return torch.tensor(list(members.values()))


def _score_pairs(
    images: torch.Tensor,
    texts: torch.Tensor,
    starts: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
) -> Score:
    image_0, image_1 = images[first], images[second]
    text_0, text_1 = texts[starts[first]], texts[starts[second]]
    # The same text has the same feature to rounding, whatever batch it was encoded in; another text has another.
    apart = (texts[starts[first] + 1] - text_1).norm(dim=1) + (texts[starts[second] + 1] - text_0).norm(dim=1)
    if bool((apart > 1e-2).any()):
        raise DataError(
            f"{int((apart > 1e-2).sum())} of {len(first)} instances do not share their captions: the second caption of "
            "one image must be the first of the other"
        )
    s00, s10 = (text_0 * image_0).sum(dim=1), (text_1 * image_0).sum(dim=1)  # caption, image
    s01, s11 = (text_0 * image_1).sum(dim=1), (text_1 * image_1).sum(dim=1)
    text = (s00 > s10) & (s11 > s01)
    image = (s00 > s01) & (s11 > s10)
    hits = {"text_score": text, "image_score": image, "group_score": text & image}
    # Chance levels of the paper's table 3: a quarter, a quarter and a sixth.
    chances = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
    return Score(
        metrics={name: wilson(int(hit.sum()), len(first), chances[name]) for name, hit in hits.items()},
        details={"num_instances": len(first), "tie_rule": TIE_RULE},
        predictions={name: hit.cpu().numpy() for name, hit in hits.items()},
    )
