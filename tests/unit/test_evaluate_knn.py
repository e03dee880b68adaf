"""k-NN: the vote by hand and against the plain formula, the tie rules, blocks, what broken input gets."""

import numpy as np
import pytest
import torch

import evaluate.tasks.knn as knn
from crawl2clip.errors import ConfigError, DataError
from evaluate.tasks.knn import KnnConfig, nearest, score_knn

CONFIG = KnnConfig(num_neighbors=20, temperature=0.07)


def unit(num: int, seed: int, width: int = 16) -> torch.Tensor:
    features = torch.randn(num, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=1)


def at_angles(*degrees: float) -> torch.Tensor:
    radians = torch.tensor(degrees).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_one_close_neighbour_outvotes_two_far_ones():
    train = at_angles(0, 60, -60), torch.tensor([0, 1, 1])
    test = at_angles(0), torch.tensor([0])
    # exp(1 / T) against 2 exp(0.5 / T): the single one wins below T = 0.5 / ln 2 = 0.721.
    for temperature, predicted in ((0.7, 0), (0.74, 1)):
        score = score_knn(train, test, 2, KnnConfig(num_neighbors=3, temperature=temperature))
        assert score.predictions["predicted"].tolist() == [predicted]


@pytest.mark.parametrize("blocks", [None, (7, 11), (64, 30)])
def test_the_vote_is_the_plain_formula_in_any_blocks(blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(knn, "_QUERY_ROWS", blocks[0])
        monkeypatch.setattr(knn, "_TRAIN_ROWS", blocks[1])
    train, test = (unit(150, 0), torch.arange(150) % 7), (unit(40, 1), torch.arange(40) % 7)
    similarities = (test[0].double() @ train[0].double().T).numpy()
    votes = np.zeros((40, 7))
    for row in range(40):
        for index in np.argsort(-similarities[row], kind="stable")[:20]:
            votes[row, train[1][index]] += np.exp(similarities[row, index] / 0.07)
    score = score_knn(train, test, 7, CONFIG)
    assert score.predictions["predicted"].tolist() == votes.argmax(axis=1).tolist()
    correct = votes.argmax(axis=1) == test[1].numpy()
    assert score.predictions["correct"].tolist() == correct.tolist()
    assert score.metrics["acc1"].value == pytest.approx(correct.mean())
    assert (score.predictions["rank"] == 0).tolist() == correct.tolist()


def test_of_equally_similar_images_the_lower_index_is_nearer():
    gallery = at_angles(90, 0, 0, 180, 0, 0)
    for num in (1, 2, 3):
        assert nearest(at_angles(0), gallery, num)[1].tolist() == [[1, 2, 4][:num]]


def test_the_tie_rule_holds_across_blocks_and_for_many_duplicates(monkeypatch):
    gallery = at_angles(*[0, 45] * 40)
    expected = [2 * place for place in range(30)]
    assert nearest(at_angles(0), gallery, 30)[1].tolist() == [expected]
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 9)
    assert nearest(at_angles(0), gallery, 30)[1].tolist() == [expected]


def test_of_equal_votes_the_lower_class_ranks_first_and_no_vote_ranks_last():
    train = at_angles(0, 0), torch.tensor([3, 1])
    test = at_angles(0, 0, 0), torch.tensor([1, 3, 0])
    score = score_knn(train, test, 6, KnnConfig(num_neighbors=2, temperature=0.07))
    assert score.predictions["predicted"].tolist() == [1, 1, 1]
    assert score.predictions["rank"].tolist() == [0, 1, 5]
    assert score.metrics["acc5"].value == pytest.approx(2 / 3)  # class 0 is not helped by standing first
    assert "4 of 6 classes have no training sample" in score.notes


def test_fewer_training_samples_than_neighbours_all_vote_and_that_is_noted():
    samples = unit(5, 0), torch.arange(5)
    score = score_knn(samples, samples, 5, CONFIG)
    assert score.metrics["acc1"].value == 1.0
    assert score.details["num_neighbors"] == 5
    assert "all 5 training samples vote; 20 were asked for" in score.notes


def test_memory_is_that_of_a_block(monkeypatch):
    seen = []
    original = knn._top
    monkeypatch.setattr(
        knn, "_top", lambda block, num: (seen.append(tuple(block.shape)), original(block, num))[1]
    )
    monkeypatch.setattr(knn, "_QUERY_ROWS", 8)
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 32)
    score_knn((unit(100, 0), torch.arange(100) % 3), (unit(20, 1), torch.arange(20) % 3), 3, CONFIG)
    assert max(rows for rows, _ in seen) == 8
    assert max(columns for _, columns in seen) == 32
    assert sum(rows * columns for rows, columns in seen) == 2000


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64)), "the train split has 0 rows"),
        (
            (torch.full((3, 16), torch.nan), torch.arange(3)),
            "3 of 3 features of the train split are not finite",
        ),
        ((torch.zeros(3, 16), torch.tensor([0, 1, 3])), "labels of the train split run from 0 to 3"),
    ],
)
def test_what_cannot_vote_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        score_knn(train, (unit(2, 0), torch.arange(2)), 3, CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_neighbors": 0}, "knn.num_neighbors is 0; give 1 or more, DINO's is 20"),
        (
            {"temperature": 0.001},
            "knn.temperature is 0.001; give 0.01 or more, DINO's is 0.07: below that the nearest",
        ),
        ({"temperature": float("nan")}, "knn.temperature is nan; give 0.01 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        KnnConfig(**{"num_neighbors": 20, "temperature": 0.07, **settings})
