"""L-BFGS and logistic regression: the minimum, the gradient, scikit-learn's coefficients, warm starts."""

import pytest
import torch

import evaluate.tasks.logistic as logistic
from evaluate.tasks.lbfgs import minimise
from evaluate.tasks.linear_classifier import LinearClassifier
from evaluate.tasks.logistic import SEARCH_TOLERANCE, LogisticRegression
from evaluate.tasks.principal_axes import principal_axes


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0), torch.tensor(labels)


def objective(classifier, features, labels, l2):
    logits = features @ torch.as_tensor(classifier.weight).T + torch.as_tensor(classifier.bias)
    entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    return float(entropy + l2 / 2 * torch.as_tensor(classifier.weight).square().sum())


def test_lbfgs_finds_the_minimum_of_a_badly_scaled_quadratic():
    curvature = torch.logspace(0, 2, 30, dtype=torch.float64)
    centre = torch.linspace(-2, 3, 30, dtype=torch.float64)

    def quadratic(point):
        off = point - centre
        return float(1 + (curvature * off.square()).sum() / 2), curvature * off

    found = minimise(
        quadratic, torch.zeros(30, dtype=torch.float64), first_scale=1e-2, tolerance=1e-12, max_iterations=500
    )
    assert found.converged
    # The gap bounds the distance: curvature / 2 * distance^2 <= 1e-12 for the flattest direction, with slack.
    assert torch.allclose(found.point, centre, atol=1e-5)
    assert found.iterations < found.evaluations < 2 * found.iterations + 5


def test_lbfgs_says_when_it_ran_out_of_iterations():
    def quartic(point):
        return float(point.pow(4).sum()), 4 * point.pow(3)

    start = torch.full((3,), 5.0, dtype=torch.float64)
    assert not minimise(quartic, start, first_scale=1e-3, tolerance=1e-12, max_iterations=4).converged
    at_minimum = minimise(quartic, torch.zeros(3), first_scale=1.0, tolerance=1e-6, max_iterations=4)
    assert at_minimum.converged
    assert at_minimum.evaluations == 1


@pytest.mark.parametrize("num", [5, 200])
def test_principal_axes_hold_the_scatter_on_either_side(num):
    features = torch.randn(num, 12, generator=torch.Generator().manual_seed(0)) + 30
    axes = principal_axes(features)
    centred = features.double() - features.double().mean(dim=0)
    assert axes.axes.shape == (12, min(num - 1, 12))
    assert torch.allclose(
        axes.axes.T @ axes.axes, torch.eye(axes.axes.shape[1], dtype=torch.float64), atol=1e-8
    )
    # The products of centred blocks are float32 when the features are: seven digits of the scatter's size.
    rebuilt = axes.axes @ torch.diag(axes.scatter) @ axes.axes.T
    assert torch.allclose(rebuilt, centred.T @ centred, atol=1e-5 * float(axes.scatter.max()))


@pytest.mark.parametrize("l2", [1e3, 1.0, 1e-2])
def test_fit_equals_scikit_learn(digits, l2):
    from sklearn.linear_model import LogisticRegression as Reference

    features, labels = digits
    train, test = slice(0, 1200), slice(1200, None)
    reference = Reference(C=1 / l2, max_iter=10_000, tol=1e-8).fit(features[train], labels[train])
    ours = LogisticRegression(features[train], labels[train], 10).fit(l2)
    assert ours.converged
    # The tolerance is 0.2 points of accuracy; both are minima of one convex function.
    expected = reference.score(features[test], labels[test])
    assert ours.classifier.accuracy(features[test], labels[test]) == pytest.approx(expected, abs=0.002)
    if l2 >= 1:
        # Strongly convex, so coefficients are settled: with curvature l2 / N at the least, scikit-learn's gradient
        # of at most 1e-8 leaves 1e-8 * N / l2 = 1.2e-5 and our gap of 1e-10 a few times 1e-4 at l2 = 1.
        scale = abs(reference.coef_).max()
        assert abs(ours.classifier.weight.numpy() - reference.coef_).max() < 5e-4 * scale
        off = ours.classifier.bias.numpy() - reference.intercept_
        assert abs(off - off.mean()).max() < 5e-4 * max(1, abs(reference.intercept_).max())
    # Both stop at small gradients; what is left of the objective is a millionth of it at most.
    reached = objective(ours.classifier, features[train], labels[train], l2)
    theirs = LinearClassifier(torch.as_tensor(reference.coef_), torch.as_tensor(reference.intercept_))
    assert reached == pytest.approx(objective(theirs, features[train], labels[train], l2), rel=1e-6)


def test_features_wider_than_the_samples_are_many_equal_scikit_learn():
    from sklearn.linear_model import LogisticRegression as Reference

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 100, generator=generator, dtype=torch.float64) + 5
    labels = torch.arange(30) % 3
    reference = Reference(C=1.0, max_iter=10_000, tol=1e-9).fit(features, labels)
    ours = LogisticRegression(features, labels, 3).fit(1.0).classifier
    # Strongly convex with the weights inside the samples' span; both solvers are at 1e-9 of the gradient.
    assert abs(ours.weight.numpy() - reference.coef_).max() < 1e-4


@pytest.mark.parametrize(
    "num", [50, 150]
)  # of 64 features: the rows become coordinates, and stay what they are
def test_the_gradient_is_that_of_the_objective(digits, num):
    features, labels = digits[0][:num], digits[1][:num]
    samples = logistic._Samples.of(features, labels)
    assert samples.along_axes == (num < features.shape[1])
    problem = logistic._Problem(samples, 10, l2=0.7)
    point = torch.randn(
        10, len(samples.axes.scatter) + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).requires_grad_()
    weight, bias = problem.weight_and_bias(point)
    reference = torch.nn.functional.cross_entropy(features @ weight.T + bias, labels)
    reference = reference + 0.7 / 2 / num * weight.square().sum()
    (expected,) = torch.autograd.grad(reference, point)
    value, gradient = problem.value_and_gradient(point.detach())
    assert value == pytest.approx(reference.item(), abs=1e-12)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_blocks_do_not_change_the_objective(digits, monkeypatch):
    features, labels = digits[0][:300], digits[1][:300]
    whole = LogisticRegression(features, labels, 10).fit(1.0).classifier
    monkeypatch.setattr(logistic, "_BLOCK_LOGITS", {"cpu": 70})  # seven rows at a time
    blocked = LogisticRegression(features, labels, 10).fit(1.0).classifier
    # Another order of float64 sums: the same minimum to within its tolerance.
    assert torch.allclose(whole.weight, blocked.weight, atol=1e-4)


def test_float32_reaches_the_float64_solution(digits, monkeypatch):
    features, labels = digits
    exact = LogisticRegression(features[:1200], labels[:1200], 10).fit(0.1)
    monkeypatch.setattr(logistic, "_SMALL_PRODUCTS", 0)
    single = LogisticRegression(features[:1200].float(), labels[:1200], 10).fit(0.1)
    assert single.classifier.weight.dtype == torch.float32
    values = [
        objective(f.classifier, features[:1200].to(f.classifier.weight), labels[:1200], 0.1)
        for f in (exact, single)
    ]
    # float32 stops at a share of 1e-5 of the objective; ten times that is still far below a changed prediction.
    assert values[1] == pytest.approx(values[0], rel=1e-4)
    assert single.passes < exact.passes


def test_a_warm_start_reaches_the_same_solution(digits):
    features, labels = digits[0][:300], digits[1][:300]
    regression = LogisticRegression(features, labels, 10)
    for l2 in (1e4, 10.0, 1e-2):
        warm = regression.fit(l2)
        cold = LogisticRegression(features, labels, 10).fit(l2)
        values = [objective(f.classifier, features, labels, l2) for f in (warm, cold)]
        assert values[0] == pytest.approx(values[1], rel=1e-8)
    again = regression.fit(1e-2)
    assert again.passes <= 5  # it starts where it ended


def test_the_searchs_tolerance_ranks_penalties_as_the_minimum_does(digits):
    features, labels = digits[0], digits[1]
    regression = LogisticRegression(features[:300], labels[:300], 10)
    for l2 in (100.0, 1.0, 1e-4):
        loose = regression.fit(l2, tolerance=SEARCH_TOLERANCE).classifier.accuracy(
            features[600:], labels[600:]
        )
        exact = LogisticRegression(features[:300], labels[:300], 10).fit(l2).classifier
        # 1,197 samples: 0.2 points are 2 predictions.
        assert loose == pytest.approx(exact.accuracy(features[600:], labels[600:]), abs=0.002)


def test_a_class_without_training_samples_is_never_predicted(digits):
    features, labels = digits
    kept = labels[:600] != 3
    ours = LogisticRegression(features[:600][kept], labels[:600][kept], 10).fit(1.0).classifier
    assert torch.isneginf(ours.bias).nonzero().squeeze(1).tolist() == [3]
    predictions = ours.predict(features[600:], labels[600:])
    assert (predictions.ranks[labels[600:] == 3] == 9).all()
    assert not (predictions.predicted == 3).any()


@pytest.mark.parametrize("num", [1, 4])
def test_a_single_class_or_sample_is_the_answer_to_everything(num):
    features = torch.randn(num, 5, generator=torch.Generator().manual_seed(0))
    ours = LogisticRegression(features, torch.full((num,), 2), 4).fit(1.0)
    assert ours.converged
    assert ours.classifier.predict(features, torch.full((num,), 2)).predicted.tolist() == [2] * num


def test_constant_features_leave_the_class_shares():
    labels = torch.tensor([0, 0, 0, 1])
    ours = LogisticRegression(torch.ones(4, 3), labels, 2).fit(1.0).classifier
    # Nothing to tell them apart: the bias alone, whose optimum is the log of each class's share.
    assert torch.isfinite(ours.weight).all()
    assert float(ours.bias[0] - ours.bias[1]) == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-4)
