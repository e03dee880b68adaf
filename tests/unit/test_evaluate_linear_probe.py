"""Linear probe: the search and what it may see, both solvers against scikit-learn, what broken input gets."""

import numpy as np
import pytest
import torch

import evaluate.tasks.linear_probe as linear_probe
import evaluate.tasks.logistic as logistic
from crawl2clip.errors import DataError
from evaluate.tasks.linear_probe import (
    LinearProbeConfig,
    ProbeFeatures,
    Solver,
    score_linear_probe,
    stratified_holdout,
)
from evaluate.tasks.penalty_search import search_every_l2, search_l2
from evaluate.tasks.ridge import RidgeRegression

RIDGE = LinearProbeConfig(solver=Solver.ridge, features=ProbeFeatures.penultimate)


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0), torch.tensor(labels)


def part(samples, first, last):
    return samples[0][first:last], samples[1][first:last]


def test_the_search_walks_the_papers_steps_and_takes_the_middle_of_a_plateau():
    tried = []

    def accuracy_at(l2: float) -> float:
        exponent = round(float(torch.log10(torch.tensor(l2))), 3)
        tried.append(exponent)
        return 1 - abs(exponent - 2.375) / 20

    assert search_l2(accuracy_at).l2 == pytest.approx(10**2.375)
    assert tried[:7] == [6, 4, 2, 0, -2, -4, -6]
    assert len(tried) <= 7 + 2 * 4
    assert search_l2(lambda l2: 0.5).l2 == 1.0
    assert search_l2(lambda l2: 0.9 if l2 >= 1e4 else 0.1, levels=()).l2 == 1e6


def test_the_whole_grid_has_eight_values_a_decade_and_sees_a_second_peak():
    search = search_every_l2(lambda l2: {True: 0.9, False: 0.1}[abs(l2 - 10**-4.875) < 1e-9])
    assert search.l2 == pytest.approx(10**-4.875)
    assert len(search.accuracies) == 97
    assert (min(search.accuracies), max(search.accuracies)) == (-6, 6)


@pytest.mark.parametrize("num", [1200, 40])  # more and fewer samples than features
def test_ridge_equals_scikit_learn(digits, num):
    from sklearn.linear_model import RidgeClassifier

    features, labels = digits
    for l2 in (1e-3, 1.0, 1e4):
        reference = RidgeClassifier(alpha=l2).fit(features[:num], labels[:num])
        ours = RidgeRegression(features[:num], labels[:num], 10).fit(l2)
        # One closed form in float64: rounding, times a condition of at most 1e6 where the penalty is weak.
        assert np.abs(ours.weight.numpy() - reference.coef_).max() < 1e-8
        assert np.abs(ours.bias.numpy() - reference.intercept_).max() < 1e-8
        predicted = ours.predict(features[1200:], labels[1200:]).predicted
        assert predicted.tolist() == np.asarray(reference.predict(features[1200:])).tolist()


def test_ridge_never_predicts_a_class_without_samples(digits):
    kept = digits[1][:600] != 3
    ours = RidgeRegression(digits[0][:600][kept], digits[1][:600][kept], 10).fit(1.0)
    assert not (ours.predict(digits[0][600:], digits[1][600:]).predicted == 3).any()


def test_validation_samples_come_from_every_class_with_two():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    held_out = stratified_holdout(labels)
    assert [int(held_out[labels == c].sum()) for c in range(3)] == [2, 1, 0]
    assert torch.equal(held_out, stratified_holdout(labels))


@pytest.mark.parametrize("config", [None, RIDGE])
def test_the_probe_is_as_accurate_as_scikit_learns_at_the_l2_it_chose(digits, config):
    from sklearn.linear_model import LogisticRegression, RidgeClassifier

    train, test = part(digits, 0, 800), part(digits, 800, 1797)
    score = score_linear_probe(train, None, test, 10, config=config)
    l2 = score.details["l2"]
    reference = RidgeClassifier(alpha=l2) if config else LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-6)
    expected = reference.fit(*train).score(*test)
    # The 0.2 points, which is one prediction of these 997.
    assert score.metrics["acc1"].value == pytest.approx(expected, abs=0.002)
    assert score.details["solver"] == ("ridge" if config else "lbfgs")
    assert score.details["features"] == (
        "before projection, not normalised" if config else "after projection, L2-normalised"
    )
    assert len(score.details["validation_accuracy_by_log10_l2"]) == (97 if config else 15)


def test_predictions_are_those_the_score_counts(digits):
    test = part(digits, 400, 600)
    score = score_linear_probe(part(digits, 0, 200), None, test, 10, config=RIDGE)
    predicted, correct, rank = (score.predictions[name] for name in ("predicted", "correct", "rank"))
    assert predicted.dtype == rank.dtype == np.int64
    assert (correct == (predicted == test[1].numpy())).all()
    assert (correct == (rank == 0)).all()
    assert correct.mean() == score.metrics["acc1"].value


@pytest.mark.parametrize("solver", list(Solver))
def test_the_test_set_chooses_nothing(digits, solver):
    config = LinearProbeConfig(solver=solver, features=ProbeFeatures.projected)
    features, labels = part(digits, 0, 300)
    train = features[:200], labels[:200]
    right = score_linear_probe(train, None, (features[200:], labels[200:]), 10, config=config)
    wrong = score_linear_probe(train, None, (features[200:], (labels[200:] + 1) % 10), 10, config=config)
    assert right.details == wrong.details
    assert (right.predictions["predicted"] == wrong.predictions["predicted"]).all()
    assert right.metrics["acc1"].value > 0.8
    assert wrong.metrics["acc1"].value < 0.1


def test_a_split_of_its_own_is_used_for_validation_and_then_trained_on(digits):
    train, validation, test = part(digits, 0, 200), part(digits, 200, 300), part(digits, 300, 500)
    score = score_linear_probe(train, validation, test, 10)
    assert score.details["validation"] == "the data set's own split"
    assert score.details["num_train_samples"] == 300
    assert score.details["search_train_samples"] == 200
    assert score.metrics["acc1"].value > 0.8


def test_a_large_set_is_searched_on_a_draw_and_refitted_whole(digits, monkeypatch):
    monkeypatch.setattr(linear_probe, "SEARCH_SAMPLES", 50)
    score = score_linear_probe(part(digits, 0, 400), None, part(digits, 400, 600), 10)
    # Each class's share is rounded, so the draw is 50 to within half a sample a class.
    assert abs(score.details["search_train_samples"] - 50) <= 5
    assert abs(score.details["search_validation_samples"] - 50) <= 5
    assert score.details["num_train_samples"] == 400
    assert score.details["search_rule"].startswith("at most 50 training and as many validation samples")
    # 50 samples leave a plateau of penalties, on which rounding picks one: 0.80 to 0.85, by the number of threads.
    assert score.metrics["acc1"].value > 0.7


def test_a_class_the_training_splits_lack_is_named(digits):
    train = part(digits, 0, 200)
    kept = train[1] != 4
    score = score_linear_probe(
        (train[0][kept], train[1][kept]), None, part(digits, 200, 300), 10, config=RIDGE
    )
    assert "1 of 10 classes have no training sample" in score.notes
    assert not (score.predictions["predicted"] == 4).any()


@pytest.mark.parametrize("solver", list(Solver))
@pytest.mark.parametrize("labels", [[0, 1, 2], [1, 1, 1, 1]])
def test_one_sample_a_class_and_one_class_still_give_a_score(solver, labels):
    features = torch.eye(4)[: len(labels)]
    samples = features, torch.tensor(labels)
    config = LinearProbeConfig(solver=solver, features=ProbeFeatures.projected)
    score = score_linear_probe(samples, None, samples, 3, config=config)
    assert score.metrics["acc1"].value == 1.0
    alone = labels == [0, 1, 2]
    assert score.details["validation"] == (
        "train itself, one sample a class" if alone else "20% of each class of train"
    )


def test_running_out_of_iterations_is_noted(digits, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    score = score_linear_probe(part(digits, 0, 200), None, part(digits, 200, 300), 10)
    assert score.details["converged"] is False
    assert "L-BFGS stopped at its iteration limit" in score.notes


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x, y: (x[:0], y[:0]),
            "the test split has 0 rows and 0 labels; a probe needs one label a row",
        ),
        (lambda x, y: (x, y[:5]), "the test split has 20 rows and 5 labels; a probe needs one label a row"),
        (
            lambda x, y: (x[:, :60], y),
            "the test split's features are 60 wide, the first split's 64; both must",
        ),
        (
            lambda x, y: (torch.where(torch.arange(20)[:, None] == 7, torch.nan, x), y),
            "1 of 20 features of the test split are not finite; nothing is fitted to them. Encode with precision=fp32",
        ),
        (
            lambda x, y: (x * torch.inf, y),
            "20 of 20 features of the test split are not finite",
        ),
        (
            lambda x, y: (x, y + 5),
            "labels of the test split run from 5 to 14, but there are 10 classes; labels must",
        ),
        (
            lambda x, y: (x, y - 1),
            "labels of the test split run from -1 to 8, but there are 10 classes; labels must",
        ),
    ],
)
def test_what_no_probe_can_be_scored_on_is_refused(digits, spoil, message):
    with pytest.raises(DataError, match=message):
        score_linear_probe(part(digits, 0, 100), None, spoil(*part(digits, 100, 120)), 10)


def test_empty_training_and_validation_splits_are_refused(digits):
    none, some = part(digits, 0, 0), part(digits, 0, 20)
    with pytest.raises(DataError, match="the train split has 0 rows"):
        score_linear_probe(none, None, some, 10)
    with pytest.raises(DataError, match="the validation split has 0 rows"):
        score_linear_probe(some, none, some, 10)
