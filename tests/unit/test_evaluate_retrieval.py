"""Retrieval: hand-worked ranks, many to many, ties, blocks."""

import pytest
import torch

import evaluate.tasks.retrieval as retrieval
from evaluate.tasks.retrieval import Positives, best_positive_ranks, score_retrieval


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows), dim=-1)


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
    assert score.metrics["image_retrieval_recall@5"].value == 1.0
    assert score.metrics["image_retrieval_recall@1"].chance == 0.5


def test_one_positive_among_the_results_is_enough():
    images = unit([1.0, 0.0], [0.0, 1.0])
    texts = unit(
        [-1.0, 0.5], [1.0, 0.0], [0.0, 1.0]
    )  # the first caption of image 0 is far off, the second is right
    score = score_retrieval(images, texts, torch.tensor([0, 0, 1]))
    assert score.metrics["text_retrieval_recall@1"].value == 1.0
    assert score.metrics["image_retrieval_recall@1"].value == pytest.approx(2 / 3)


def test_many_to_many_equals_brute_force(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    # Few distinct values, so that there are many exact ties.
    queries = torch.randint(-1, 2, (40, 3), generator=generator).float()
    gallery = torch.randint(-1, 2, (30, 3), generator=generator).float()
    positives = [sorted({i % 30, (i * 7) % 30, (i * i) % 30}) for i in range(40)]
    pairs = [(q, item) for q, right in enumerate(positives) for item in right]
    index = Positives.of_pairs(torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs]), 40)
    expected = brute_force_ranks(queries, gallery, positives)
    assert best_positive_ranks(queries, gallery, index).tolist() == expected
    monkeypatch.setattr(retrieval, "_BLOCK_SCORES", 100)  # three queries at a time
    assert best_positive_ranks(queries, gallery, index).tolist() == expected


def test_a_collapsed_model_gets_chance_and_no_more():
    same = unit(*[[1.0, 1.0]] * 100)
    score = score_retrieval(same, same, torch.arange(100))
    for k in (1, 5, 10):
        for side in ("image", "text"):
            estimate = score.metrics[f"{side}_retrieval_recall@{k}"]
            assert estimate.value == pytest.approx(k / 100)
            assert estimate.chance == pytest.approx(k / 100)


def test_chance_of_text_retrieval_counts_the_captions():
    images, texts = unit([1.0, 0.0], [0.0, 1.0]), unit(*[[1.0, 0.0]] * 4)
    score = score_retrieval(images, texts, torch.tensor([0, 0, 0, 1]))
    # Drawing one text of four: image 0 has three right ones, image 1 has one.
    assert score.metrics["text_retrieval_recall@1"].chance == pytest.approx((3 / 4 + 1 / 4) / 2)
    assert score.metrics["text_retrieval_recall@1"].num == 2
    assert score.metrics["image_retrieval_recall@1"].num == 4
