"""Image-caption selection: SugarCrepe's and Winoground's scores by hand, against CLIP_benchmark, ties, bad input."""

import pytest
import torch

from crawl2clip.errors import DataError
from evaluate.tasks.selection import score_selection


def scored_single(images: torch.Tensor, texts: torch.Tensor):
    """Examples of one image [E, 1, D] and captions [E, K, D], as the task takes them."""
    owner = torch.arange(len(images)).repeat_interleave(texts.shape[1])
    return score_selection(images.flatten(0, 1), texts.flatten(0, 1), owner)


def scored_pairs(images: torch.Tensor, texts: torch.Tensor):
    """Examples of two images [E, 2, D] and two captions [E, 2, D]; each image lists its own caption first."""
    listed = torch.stack([texts, texts.flip(1)], dim=1)  # [E, image, caption, D]
    owner = torch.arange(2 * len(images)).repeat_interleave(2)
    instances = [f"example {number}" for number in range(len(images)) for _ in range(2)]
    return score_selection(images.flatten(0, 1), listed.flatten(0, 2), owner, instances=instances)


def random_examples(num: int, images: int, captions: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(num, count, 8, generator=generator) for count in (images, captions)]
    return torch.nn.functional.normalize(features[0], dim=-1), torch.nn.functional.normalize(
        features[1], dim=-1
    )


class Given(torch.nn.Module):
    """For CLIP_benchmark: what it takes for an image or for tokens is the feature already."""

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def clip_benchmarks(images: torch.Tensor, texts: torch.Tensor) -> dict[str, float]:
    from clip_benchmark.metrics.image_caption_selection import evaluate

    pixels = images[:, :, :, None, None]  # [E, I, D, 1, 1], as images of D channels
    batch = [(pixels[:, 0] if images.shape[1] == 1 else pixels, [list(example) for example in texts])]
    return evaluate(Given(), batch, torch.stack, "cpu", amp=False)


def test_one_image_by_hand():
    image = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]]])
    texts = torch.tensor([[[0.8, 0.6], [0.6, 0.8]], [[0.6, 0.8], [0.8, 0.6]], [[1.0, 0.0], [0.6, 0.8]]])
    score = scored_single(image, texts)
    assert score.predictions["correct"].tolist() == [True, False, True]
    assert score.metrics["acc1"].value == pytest.approx(2 / 3)
    assert (score.metrics["acc1"].num, score.metrics["acc1"].chance) == (3, 0.5)


def test_two_images_by_hand():
    # Scores of caption 0 and 1 with image 0, then with image 1; equations 1 to 3 of the paper.
    tables = {
        "both right": [[0.9, 0.1], [0.2, 0.8]],
        "captions right, images wrong": [[0.5, 0.4], [0.7, 0.8]],
        "images right, captions wrong": [[0.5, 0.7], [0.4, 0.8]],
        "all wrong": [[0.1, 0.9], [0.8, 0.2]],
    }
    # With the unit vectors for captions, an image's features are its scores; lengths play no part here.
    score = scored_pairs(torch.tensor(list(tables.values())), torch.eye(2).repeat(4, 1, 1))
    assert score.predictions["text_score"].tolist() == [True, True, False, False]
    assert score.predictions["image_score"].tolist() == [True, False, True, False]
    assert score.predictions["group_score"].tolist() == [True, False, False, False]
    values = {name: estimate.value for name, estimate in score.metrics.items()}
    assert values == {"text_score": 0.5, "image_score": 0.5, "group_score": 0.25}


def test_images_of_a_pair_need_not_be_neighbours():
    images, texts = random_examples(2, 2, 2)
    listed = torch.stack([texts, texts.flip(1)], dim=1).flatten(0, 1)  # [4 images, 2 captions, D]
    order = torch.tensor([0, 2, 3, 1])
    owner = torch.arange(4).repeat_interleave(2)
    mixed = score_selection(
        images.flatten(0, 1)[order], listed[order].flatten(0, 1), owner, instances=["a", "b", "b", "a"]
    )
    assert mixed.metrics == scored_pairs(images, texts).metrics


def test_several_wrong_captions_must_all_lose():
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    texts = torch.tensor([[0.8, 0.6], [0.6, 0.8], [0.8, 0.6], [0.6, 0.8], [1.0, 0.0]])
    score = score_selection(image, texts, torch.tensor([0, 0, 1, 1, 1]))
    assert score.predictions["correct"].tolist() == [True, False]
    assert score.metrics["acc1"].chance == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_scores_equal_clip_benchmarks():
    images, texts = random_examples(200, 1, 2)
    theirs, ours = clip_benchmarks(images, texts), scored_single(images, texts).metrics
    assert ours["acc1"].value == pytest.approx(theirs["text_acc"], abs=1e-6)
    images, texts = random_examples(200, 2, 2)
    theirs, ours = clip_benchmarks(images, texts), scored_pairs(images, texts).metrics
    assert ours["text_score"].value == pytest.approx(theirs["text_acc"], abs=1e-6)
    assert ours["image_score"].value == pytest.approx(theirs["image_acc"], abs=1e-6)
    assert ours["group_score"].value == pytest.approx(theirs["acc"], abs=1e-6)


def test_random_features_get_the_chance_levels_of_the_paper():
    for estimate in scored_pairs(*random_examples(5000, 2, 2)).metrics.values():
        # Five standard errors at 5000 examples.
        assert estimate.value == pytest.approx(estimate.chance, abs=5 * (0.25 * 0.75 / 5000) ** 0.5)


def test_a_model_that_scores_all_captions_alike_is_never_right():
    images, texts = torch.ones(10, 1, 4), torch.ones(10, 2, 4)
    assert scored_single(images, texts).metrics["acc1"].value == 0.0
    assert (
        clip_benchmarks(images, texts)["text_acc"] == 1.0
    )  # theirs takes the first of equal ones, the right one
    pairs = scored_pairs(torch.ones(10, 2, 4), texts).metrics
    assert [estimate.value for estimate in pairs.values()] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("owner", "instances", "message"),
    [
        (
            [0, 0, 1, 1],
            ["a", "b"],
            r"instance 'a' has 1 images with \[2\] captions; an instance is two images",
        ),
        ([0, 0, 1, 1, 1], ["a", "a"], r"has 2 images with \[2, 3\] captions.*leave the instance out"),
        ([0, 0, 1, 1], ["a"], "1 instances for 2 images; give one for each"),
        (
            [0, 0, 1, 1],
            ["a", "a"],
            "1 of 1 instances do not share their captions: the second caption of one image",
        ),
        (
            [0, 0, 1],
            None,
            r"image 1 has 1 captions; selection needs the right one.*\(1 of 2 images have fewer",
        ),
        ([0, 0], None, "image 1 has 0 captions"),
        ([1, 1, 0, 0], None, "captions must be in the order of their images, which are 0 to 1"),
        ([0, 0, 2, 2], None, "found captions of images 0 to 2: list each image's captions together"),
    ],
)
def test_captions_and_instances_that_do_not_fit_are_refused(owner, instances, message):
    with pytest.raises(DataError, match=message):
        score_selection(
            torch.eye(5)[:2], torch.eye(5)[: len(owner)], torch.tensor(owner), instances=instances
        )


def test_features_that_give_no_score_are_refused():
    with pytest.raises(DataError, match="4 of 4 text features are not finite"):
        scored_single(torch.ones(2, 1, 4), torch.full((2, 2, 4), torch.inf))
    with pytest.raises(DataError, match="3 images of captions for 4 captions"):
        score_selection(torch.ones(2, 4), torch.ones(4, 4), torch.tensor([0, 0, 1]))
