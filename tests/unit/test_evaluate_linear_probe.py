"""Logistic regression and linear probe against scikit-learn; the search; what is never done."""

import pytest
import torch

import evaluate.tasks.linear_probe as linear_probe
from evaluate.tasks.linear_probe import score_linear_probe, stratified_holdout
from evaluate.tasks.logistic import WarmStarts, fit, search_l2


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0), torch.tensor(labels)


@pytest.mark.parametrize("l2", [1e3, 1 / 0.316, 1e-2])
def test_fit_equals_scikit_learn(digits, l2):
    from sklearn.linear_model import LogisticRegression

    features, labels = digits
    train, test = slice(0, 1200), slice(1200, None)
    reference = LogisticRegression(C=1 / l2, max_iter=10_000, tol=1e-7).fit(features[train], labels[train])
    ours = fit(features[train], labels[train], 10, l2)
    assert ours.converged
    # The tolerance is 0.2 points; both are minima of one convex function, so they agree far closer.
    expected = reference.score(features[test], labels[test])
    assert ours.accuracy(features[test], labels[test]) == pytest.approx(expected, abs=0.002)
    assert objective(ours.weight, ours.bias, features[train], labels[train], l2) == pytest.approx(
        objective(reference.coef_, reference.intercept_, features[train], labels[train], l2), rel=1e-3
    )


def objective(weight, bias, features, labels, l2):
    logits = features @ torch.as_tensor(weight).T + torch.as_tensor(bias)
    entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return float(entropy + l2 / 2 * torch.as_tensor(weight).square().sum())


def test_the_gradient_is_that_of_the_objective(digits):
    from evaluate.tasks.logistic import _objective

    features, labels = digits[0][:50], digits[1][:50]
    weight = torch.randn(
        10, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True
    )
    bias = torch.linspace(-1, 1, 10, dtype=torch.float64, requires_grad=True)
    value, weight_grad, bias_grad = _objective(features, labels, weight, bias, l2=0.7)
    logits = features @ weight.T + bias
    reference = torch.nn.functional.cross_entropy(logits, labels) + 0.7 / 2 / 50 * weight.square().sum()
    reference.backward()
    assert float(value) == pytest.approx(reference.item(), abs=1e-12)
    assert torch.allclose(weight_grad, weight.grad, atol=1e-12)
    assert torch.allclose(bias_grad, bias.grad, atol=1e-12)


def test_a_warm_start_reaches_the_same_solution(digits):
    features, labels = digits[0][:300], digits[1][:300]
    fits = WarmStarts(features, labels, 10)
    for l2 in (1e-4, 1e4, 10.0):
        warm, cold = fits.fit(l2), fit(features, labels, 10, l2)
        values = [objective(m.weight, m.bias, features, labels, l2) for m in (warm, cold)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_a_class_without_training_samples_is_never_predicted(digits):
    features, labels = digits
    kept = labels[:600] != 3
    ours = fit(features[:600][kept], labels[:600][kept], 10, 1.0)
    assert torch.isneginf(ours.bias).nonzero().squeeze(1).tolist() == [3]
    ranks = ours.ranks(features[600:], labels[600:])
    assert (ranks[labels[600:] == 3] == 9).all()


def test_the_search_walks_the_papers_steps_and_takes_the_middle_of_a_plateau():
    tried = []

    def accuracy_at(l2: float) -> float:
        exponent = round(float(torch.log10(torch.tensor(l2))), 3)
        tried.append(exponent)
        return 1 - abs(exponent - 2.375) / 20

    assert search_l2(accuracy_at).l2 == pytest.approx(10**2.375)
    assert sorted(tried[:7]) == [-6, -4, -2, 0, 2, 4, 6]
    assert len(tried) <= 7 + 2 * 4
    assert search_l2(lambda l2: 0.5).l2 == 1.0
    assert search_l2(lambda l2: 0.9 if l2 >= 1e4 else 0.1, levels=()).l2 == 1e6


def test_validation_samples_come_from_every_class_with_two():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2])
    held_out = stratified_holdout(labels)
    assert [int(held_out[labels == c].sum()) for c in range(3)] == [2, 1, 0]
    assert torch.equal(held_out, stratified_holdout(labels))


def test_the_test_set_chooses_nothing(digits, monkeypatch):
    features, labels = digits[0][:400], digits[1][:400]
    scored = []
    original = linear_probe.search_l2

    def spied(accuracy_at):
        search = original(accuracy_at)
        scored.append(search)
        return search

    monkeypatch.setattr(linear_probe, "search_l2", spied)
    train = (features[:300], labels[:300])
    right = score_linear_probe(train, None, (features[300:], labels[300:]), 10)
    wrong = score_linear_probe(train, None, (features[300:], (labels[300:] + 1) % 10), 10)
    assert scored[0] == scored[1]
    assert right.details["l2"] == wrong.details["l2"]
    assert right.metrics["acc1"].value > 0.8
    assert wrong.metrics["acc1"].value < 0.1


def test_a_split_of_its_own_is_used_for_validation_and_then_trained_on(digits):
    features, labels = digits
    parts = [(features[a:b], labels[a:b]) for a, b in ((0, 200), (200, 300), (300, 500))]
    score = score_linear_probe(*parts, 10)
    assert score.details["validation"] == "the data set's own split"
    assert score.details["num_train_samples"] == 300
    assert score.metrics["acc1"].value > 0.8
