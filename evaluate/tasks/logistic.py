"""Multinomial logistic regression by L-BFGS, and the search for its L2 strength.

The objective is scikit-learn's: sum of cross-entropies + l2 / 2 * ||weight||^2, the bias left free, so
l2 = 1 / C. It is divided by the number of samples, which changes nothing but the scale of the stopping
rule. Gradients are written out and summed over blocks of rows: memory is that of one block of logits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from evaluate.tasks.classification import linear_ranks

GRADIENT_TOLERANCE = 1e-6  # largest entry of the mean objective's gradient; scikit-learn stops at 1e-4
_BLOCK_LOGITS = 1 << 24  # logits in memory at a time
_FLOAT64_ELEMENTS = 1 << 26  # features with more elements than this are fitted in float32

PAPER_LEVELS = (1.0, 0.5, 0.25, 0.125)
"""Decades by which the CLIP paper's search narrows around the best value, after steps of two decades."""


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted classifier over all classes of the data set."""

    weight: torch.Tensor  # [C, D]
    bias: torch.Tensor  # [C]; -inf for a class without a training sample
    converged: bool  # whether the gradient's tolerance or the objective's was met before max_iterations

    def ranks(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """[N] int64 on the CPU: classes that rank before the true one, for features [N, D], labels [N]."""
        device = self.weight.device
        return linear_ranks(features.to(self.weight), labels.to(device), self.weight, self.bias)

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Fraction of samples whose true class ranks first."""
        return float((self.ranks(features, labels) == 0).double().mean())


def fit(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    l2: float,
    *,
    start: LogisticRegression | None = None,
    max_iterations: int = 1000,
) -> LogisticRegression:
    """Fits all classes that have a sample.

    Args:
        features: [N, D] floating point, on the device that is to do the work.
        labels: [N] int64, same device.
        num_classes: C; classes without a sample are never predicted.
        l2: strength of the penalty, at least 0.
        start: a solution to begin from, for example at a neighbouring l2.
        max_iterations: of L-BFGS; scikit-learn's setting in the CLIP paper.
    """
    present, target = torch.unique(labels, return_inverse=True)
    dtype = torch.float64 if features.numel() <= _FLOAT64_ELEMENTS else torch.float32
    features = features.to(dtype)
    # A change of variables, the optimum stays: CLIP's features share a large common part (the cone of Liang et al.
    # 2022), which the free bias absorbs, and a scale at which weight and bias have like curvature. Without it a
    # strong penalty is solved so badly that the bias decides; with it every fit takes half the iterations or less.
    mean = features.mean(dim=0)
    features = features - mean
    variance = features.square().mean().clamp(min=1e-24)
    scale = (variance + len(present) * l2 / len(features)).rsqrt()
    features *= scale
    if start is None:
        weight = features.new_zeros(len(present), features.shape[1])
        bias = features.new_zeros(len(present))
    else:
        weight = start.weight[present].to(features) / scale
        bias = start.bias[present].to(features).nan_to_num(neginf=0.0) + scale * (weight @ mean)
    converged = _minimise(features, target, weight, bias, l2 * float(scale) ** 2, max_iterations)
    all_weight = features.new_zeros(num_classes, features.shape[1])
    all_bias = features.new_full((num_classes,), -torch.inf)
    all_weight[present] = weight * scale
    all_bias[present] = bias - scale * (weight @ mean)
    return LogisticRegression(all_weight, all_bias, converged)


def _minimise(
    features: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    l2: float,
    max_iterations: int,
) -> bool:
    """Moves weight and bias, in place, to the minimum."""
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        lr=1.0,
        max_iter=max_iterations,
        max_eval=max_iterations * 2,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=1e-9 if features.dtype == torch.float64 else 1e-7,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        value, weight.grad, bias.grad = _objective(features, target, weight, bias, l2)
        return value

    optimizer.step(objective)
    return optimizer.state[weight]["n_iter"] < max_iterations


@torch.no_grad()
def _objective(
    features: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, l2: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean objective and its gradients by weight and bias."""
    num = len(features)
    value = (l2 / 2 / num) * weight.square().sum()
    weight_grad = (l2 / num) * weight
    bias_grad = torch.zeros_like(bias)
    rows = max(1, _BLOCK_LOGITS // max(1, len(bias)))
    for first in range(0, num, rows):
        block, own = features[first : first + rows], target[first : first + rows, None]
        log_probability = torch.log_softmax(block @ weight.T + bias, dim=1)
        value -= log_probability.gather(1, own).sum() / num
        residual = log_probability.exp_() / num
        residual.scatter_add_(1, own, residual.new_full(own.shape, -1 / num))
        weight_grad += residual.T @ block
        bias_grad += residual.sum(dim=0)
    return value, weight_grad, bias_grad


class WarmStarts:
    """Fits on one set of samples at many l2, each begun from the solution at the nearest l2 so far."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
        self._samples = (features, labels, num_classes)
        self._solutions: dict[float, LogisticRegression] = {}

    def fit(self, l2: float) -> LogisticRegression:
        """The solution at an l2 above 0."""
        nearest = min(self._solutions, key=lambda known: abs(math.log(known / l2)), default=None)
        start = self._solutions[nearest] if nearest is not None else None
        self._solutions[l2] = fit(*self._samples, l2, start=start)
        return self._solutions[l2]


@dataclass(frozen=True)
class L2Search:
    """What a search found: the chosen l2 and the validation accuracy at every value tried."""

    l2: float
    accuracies: Mapping[float, float]  # exponent of ten -> accuracy


def search_l2(accuracy_at: Callable[[float], float], levels: tuple[float, ...] = PAPER_LEVELS) -> L2Search:
    """The CLIP paper's search (Radford et al. 2021, A.3): 1e-6 to 1e6, two decades apart, then narrowing.

    Each further level tries the best exponent so far plus and minus its step, inside the range. Of several
    values with the best accuracy the middle one is taken, the farthest from where accuracy falls.

    Args:
        accuracy_at: validation accuracy at an l2; called from strong to weak penalties within a level.
        levels: steps in decades after the first sweep; fewer levels are a coarser answer.
    """
    accuracies: dict[float, float] = {}

    def best() -> float:
        highest = max(accuracies.values())
        tied = sorted(exponent for exponent, accuracy in accuracies.items() if accuracy == highest)
        return tied[len(tied) // 2]

    for exponent in (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0):
        accuracies[exponent] = accuracy_at(10.0**exponent)
    for step in levels:
        centre = best()
        for exponent in (centre + step, centre - step):
            if -6.0 <= exponent <= 6.0 and exponent not in accuracies:
                accuracies[exponent] = accuracy_at(10.0**exponent)
    return L2Search(10.0 ** best(), accuracies)
