"""Retrieval: hand-worked ranks, many to many, ties, tiles, CLIP_benchmark's recall, memory, bad input."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate.tasks.retrieval_ranks as tiles
from crawl2clip.errors import DataError
from evaluate.tasks.retrieval import score_retrieval
from evaluate.tasks.retrieval_ranks import retrieval_ranks


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


def random_features(num: int, dim: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def brute_force_ranks(queries, gallery, positives):
    """Stable sort by falling score, then the place of the first positive."""
    ranks = []
    for query, right in zip(queries, positives, strict=True):
        order = sorted(range(len(gallery)), key=lambda item: (-float(query @ gallery[item]), item))
        ranks.append(min(order.index(item) for item in right))
    return ranks


def test_two_by_two_by_hand():
    images = unit([1.0, 0.0], [0.0, 1.0])
    texts = unit([1.0, 0.1], [1.0, 0.2])  # both captions point at image 0
    score = score_retrieval(images, texts, torch.tensor([0, 1]))
    assert score.metrics["image_retrieval_recall@1"].value == 0.5
    # Image 0 finds text 0; image 1 finds text 1, which lies nearer to it.
    assert score.metrics["text_retrieval_recall@1"].value == 1.0
    assert score.metrics["mean_retrieval_recall@1"].value == 0.75
    assert score.metrics["image_retrieval_recall@5"].value == 1.0
    assert score.metrics["image_retrieval_recall@1"].chance == 0.5
    assert score.predictions["image_retrieval_rank"].tolist() == [0, 1]
    assert score.predictions["text_retrieval_rank"].tolist() == [0, 0]
    # Ranks from 1: 1 and 2 for the captions, 1 and 1 for the images.
    assert score.metrics["image_retrieval_mean_rank"].value == 1.5
    assert score.metrics["image_retrieval_median_rank"].value == 1.5
    assert score.metrics["text_retrieval_mean_rank"].value == 1.0
    assert score.metrics["text_retrieval_mean_rank"].unit == "rank"


def test_one_positive_among_the_results_is_enough():
    images = unit([1.0, 0.0], [0.0, 1.0])
    texts = unit(
        [-1.0, 0.5], [1.0, 0.0], [0.0, 1.0]
    )  # the first caption of image 0 is far off, the second is right
    score = score_retrieval(images, texts, torch.tensor([0, 0, 1]))
    assert score.metrics["text_retrieval_recall@1"].value == 1.0
    assert score.metrics["image_retrieval_recall@1"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("tile", [512, 7, 1])
def test_many_to_many_equals_brute_force(monkeypatch, tile):
    monkeypatch.setattr(tiles, "TILE", tile)
    generator = torch.Generator().manual_seed(0)
    # Few distinct values, so that there are many exact ties, within a tile and across tiles.
    texts = torch.randint(-1, 2, (40, 3), generator=generator).float()
    images = torch.randint(-1, 2, (30, 3), generator=generator).float()
    images_of = [sorted({i % 30, (i * 7) % 30, (i * i) % 30}) for i in range(40)]
    pairs = torch.tensor([(image, text) for text, found in enumerate(images_of) for image in found])
    pairs = pairs[torch.randperm(len(pairs), generator=generator)]
    texts_of = [sorted(pairs[pairs[:, 0] == image, 1].tolist()) for image in range(30)]
    ranks = retrieval_ranks(images, texts, pairs[:, 0], pairs[:, 1])
    assert ranks.of_texts.tolist() == brute_force_ranks(texts, images, images_of)
    assert ranks.of_images.tolist() == brute_force_ranks(images, texts, texts_of)
    score = score_retrieval(images, texts, pairs[:, 0], text_of_pair=pairs[:, 1])
    hits = np.mean(np.asarray(brute_force_ranks(texts, images, images_of)) < 5)
    assert score.metrics["image_retrieval_recall@5"].value == pytest.approx(hits)


def test_ranks_are_those_of_the_whole_score_matrix_in_float64():
    images, noise = random_features(1100, 32, 0), random_features(2500, 32, 1)
    image_of_text = torch.randint(0, 1100, (2500,), generator=torch.Generator().manual_seed(2))
    image_of_text[:1100] = torch.arange(1100)  # every image has one
    texts = torch.nn.functional.normalize(images[image_of_text] + noise, dim=-1)
    ranks = retrieval_ranks(images, texts, image_of_text, torch.arange(2500))
    scores = texts.double() @ images.double().T
    own = scores.gather(1, image_of_text[:, None])
    belongs = image_of_text[:, None] == torch.arange(1100)
    best = scores.masked_fill(~belongs, -2).amax(dim=0)
    expected = (scores > own).sum(1), (scores > best).sum(0)
    for found, wanted in zip((ranks.of_texts, ranks.of_images), expected, strict=True):
        # Two scores nearer than float32's rounding (1e-7) may swap: about 1 in 1e5 of the neighbouring pairs here.
        assert (found - wanted).abs().max() <= 1
        assert (found != wanted).float().mean() < 1e-3


def test_recall_equals_clip_benchmarks():
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

    images, noise = random_features(60, 16, 0), random_features(300, 16, 1)
    image_of_text = torch.arange(60).repeat_interleave(5)
    texts = torch.nn.functional.normalize(images[image_of_text] + 4 * noise, dim=-1)
    score = score_retrieval(images, texts, image_of_text)
    scores, positives = texts @ images.T, torch.zeros(300, 60, dtype=torch.bool)
    positives[torch.arange(300), image_of_text] = True
    for k in (1, 5, 10):
        theirs = {
            "image": (recall_at_k(scores, positives, k) > 0).float().mean().item(),
            "text": (recall_at_k(scores.T, positives.T, k) > 0).float().mean().item(),
        }
        assert 0.05 < theirs["image"] < 0.95
        for side, value in theirs.items():
            # Theirs is a float32 mean.
            assert score.metrics[f"{side}_retrieval_recall@{k}"].value == pytest.approx(value, abs=1e-6)
        mean = score.metrics[f"mean_retrieval_recall@{k}"].value
        assert mean == pytest.approx((theirs["image"] + theirs["text"]) / 2, abs=1e-6)


def test_a_collapsed_model_gets_chance_and_no_more():
    same = unit(*[[1.0, 1.0]] * 100)
    score = score_retrieval(same, same, torch.arange(100))
    for k in (1, 5, 10):
        for side in ("image", "text", "mean"):
            estimate = score.metrics[f"{side}_retrieval_recall@{k}"]
            assert estimate.value == pytest.approx(k / 100)
            assert estimate.chance == pytest.approx(k / 100)
    assert score.metrics["image_retrieval_median_rank"].value == 50.5


def test_a_copy_of_an_image_in_another_tile_ties_with_it():
    # 600 images are two tiles wide; the copy of image 0 stands in the second, that of image 599 in the first.
    images = random_features(600, 64, 3)
    images[598], images[1] = images[0], images[599]
    ranks = retrieval_ranks(images, images, torch.arange(600), torch.arange(600))
    assert ranks.of_texts[[0, 598]].tolist() == [0, 1]
    assert ranks.of_texts[[1, 599]].tolist() == [0, 1]
    assert (ranks.of_texts == ranks.of_images).all()


def test_chance_of_text_retrieval_counts_the_captions():
    images, texts = unit([1.0, 0.0], [0.0, 1.0]), unit(*[[1.0, 0.0]] * 4)
    score = score_retrieval(images, texts, torch.tensor([0, 0, 0, 1]))
    # Drawing one text of four: image 0 has three right ones, image 1 has one.
    assert score.metrics["text_retrieval_recall@1"].chance == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert score.metrics["text_retrieval_recall@1"].num == 2
    assert score.metrics["image_retrieval_recall@1"].num == 4
    assert score.metrics["mean_retrieval_recall@1"].num == 6


def test_intervals_draw_images_with_all_their_captions():
    # Half of 100 images with captions that all fail, half with captions that all hit: 500 captions in 100 clusters.
    images = random_features(100, 256, 0)
    owner = torch.arange(100).repeat_interleave(5)
    texts = images[owner].clone()
    texts[250:] = images[(owner[250:] + 1) % 100]
    estimate = score_retrieval(images, texts, owner).metrics["image_retrieval_recall@1"]
    assert estimate.value == 0.5
    # 100 coins, not 500: half-width 1.96 * sqrt(0.25 / 100) = 0.098; quantiles of 1000 resamples are good to 10%.
    assert (estimate.high - estimate.low) / 2 == pytest.approx(0.098, rel=0.15)


def test_memory_is_that_of_tiles_and_not_of_the_score_matrix():
    # COCO's test set: 25,000 x 5,000 scores are 500 MB in float32; narrow features keep the test short.
    code = """
import torch
from process_memory import peak_bytes
from evaluate.tasks.retrieval import score_retrieval
images = torch.nn.functional.normalize(torch.randn(5000, 8), dim=-1)
texts = images.repeat_interleave(5, 0)
score_retrieval(images[:50], texts[:250], torch.arange(50).repeat_interleave(5))
peak = peak_bytes()
score_retrieval(images, texts, torch.arange(5000).repeat_interleave(5))
print(peak_bytes() - peak)
"""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 150e6  # 20 MB measured


def test_pairs_and_features_that_do_not_fit_are_refused():
    images, texts = unit([1.0, 0.0], [0.0, 1.0]), unit([1.0, 0.0], [0.0, 1.0])
    with pytest.raises(
        DataError, match=r"1 of 2 images belong to no pair \(the first is image 1\).*leave the others"
    ):
        score_retrieval(images, texts, torch.tensor([0, 0]))
    with pytest.raises(DataError, match="pairs name images 0 to 2, but there are 2; allowed are 0 to 1"):
        score_retrieval(images, texts, torch.tensor([0, 2]))
    with pytest.raises(DataError, match="1 of 2 captions belong to no pair"):
        score_retrieval(images, texts, torch.tensor([0, 1]), text_of_pair=torch.tensor([0, 0]))
    with pytest.raises(DataError, match="1 images of captions for 2 captions; give one for each"):
        score_retrieval(images, texts, torch.tensor([0]))
    with pytest.raises(DataError, match="2 captions of pairs for 3 images of pairs"):
        score_retrieval(images, texts, torch.tensor([0, 1, 1]), text_of_pair=torch.tensor([0, 1]))
    with pytest.raises(DataError, match=r"1 of 2 text features are not finite \(the first is row 1\)"):
        score_retrieval(images, torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]), torch.tensor([0, 1]))
    with pytest.raises(
        DataError, match="text features have 3 dimensions and are compared with features of 2"
    ):
        score_retrieval(images, torch.eye(3)[:2], torch.tensor([0, 1]))
