"""Multinomial logistic regression by L-BFGS, preconditioned so that it takes tens of passes over the samples.

The objective is scikit-learn's: sum of cross-entropies + l2 / 2 * ||weight||^2, the bias left free, so
l2 = 1 / C. It is divided by the number of samples, which changes nothing but the unit of the stopping rule.
L-BFGS sees the weights along the features' principal axes, each scaled to the curvature that the objective
has there while classes are about equally likely. The optimum stays; the strong common part of CLIP's features
(the cone of Liang et al. 2022) and their decaying spectrum no longer slow it down.
Gradients are summed over blocks of rows: beyond the features, memory is that of one block of logits.
"""

import math
from dataclasses import dataclass

import torch

from evaluate.tasks.lbfgs import minimise
from evaluate.tasks.linear_classifier import LinearClassifier
from evaluate.tasks.principal_axes import PrincipalAxes, principal_axes

MAX_ITERATIONS = 1000
"""scikit-learn's max_iter in the CLIP paper, A.3."""

SEARCH_TOLERANCE = 1e-4
"""Enough to rank penalties: measured on synthetic features, accuracy is within 0.1 points of the minimum's for every
penalty of the search, and within 0.02 near the best one."""

_SMALL_PRODUCTS = 1 << 28  # up to this N * C * D float64 is used: some 40 ms a pass on one core
_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # see `minimise`; float32 resolves little more
_BLOCK_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 26}  # in memory at a time; 8 MB stay in a CPU's cache


@dataclass(frozen=True)
class Fit:
    """A solution and how it was reached."""

    classifier: LinearClassifier
    l2: float
    passes: int  # times that every sample was read
    converged: bool  # whether the tolerance was met within the iterations allowed


class LogisticRegression:
    """Logistic regression on one set of samples at any number of penalties.

    Each fit begins from the solution at the nearest penalty so far; the principal axes are found once.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
        """Takes the samples.

        Args:
            features: [N, D] floating point, N at least 1, on the device that is to do the work.
            labels: [N] int64, same device.
            num_classes: C; classes without a sample are never predicted.
        """
        self._present, target = torch.unique(labels, return_inverse=True)
        small = features.numel() * len(self._present) <= _SMALL_PRODUCTS
        self._samples = _Samples.of(features.to(torch.float64 if small else torch.float32), target)
        self._num_classes = num_classes
        self._fits: dict[float, Fit] = {}

    def fit(self, l2: float, *, tolerance: float | None = None) -> Fit:
        """The solution at a penalty above 0.

        Args:
            l2: strength of the penalty, of the sum over samples.
            tolerance: gap to the minimum in nats a sample, and below 1 as a share of the objective; None takes
                what the precision allows.
        """
        start = None
        if self._fits:
            start = self._fits[min(self._fits, key=lambda known: abs(math.log(known / l2)))].classifier
        problem = _Problem(self._samples, len(self._present), l2)
        minimum = minimise(
            problem.value_and_gradient,
            problem.point_of(start, self._present),
            # Where all classes are equally likely a class's curvature is 1 / C of the scatter.
            first_scale=float(len(self._present)),
            tolerance=tolerance or _TOLERANCE[self._samples.rows.dtype],
            max_iterations=MAX_ITERATIONS,
        )
        weight, bias = problem.weight_and_bias(minimum.point)
        all_weight = weight.new_zeros(self._num_classes, weight.shape[1])
        all_bias = bias.new_full((self._num_classes,), -torch.inf)
        all_weight[self._present], all_bias[self._present] = weight, bias
        classifier = LinearClassifier(all_weight, all_bias)
        self._fits[l2] = Fit(classifier, l2, minimum.evaluations, minimum.converged)
        return self._fits[l2]


@dataclass(frozen=True)
class _Samples:
    """What a pass reads. Fewer samples than features become coordinates along their axes, which are fewer still."""

    rows: torch.Tensor  # [N, W]: the features, W = D, or their coordinates, W = R
    target: torch.Tensor  # [N] int64, index among the classes present
    axes: PrincipalAxes
    along_axes: bool  # whether the rows are coordinates

    @staticmethod
    def of(features: torch.Tensor, target: torch.Tensor) -> "_Samples":
        """Of features [N, D]; they are not copied unless they become coordinates."""
        axes = principal_axes(features)
        if len(features) > features.shape[1]:
            return _Samples(features, target, axes, along_axes=False)
        dtype = features.dtype
        return _Samples((features - axes.mean.to(dtype)) @ axes.axes.to(dtype), target, axes, along_axes=True)


class _Problem:
    """The objective at one penalty, by coordinates along the scaled principal axes.

    A point is [C, R + 1]: coordinates of each class's weight, and its bias for features at their mean.
    """

    def __init__(self, samples: _Samples, num_classes: int, l2: float) -> None:
        self._samples, self._num_classes = samples, num_classes
        axes, num, dtype = samples.axes, len(samples.rows), samples.rows.dtype
        scale = (axes.scatter / num + num_classes * l2 / num).rsqrt()
        self._scale = scale.to(dtype)  # [R]
        self._penalties = (l2 / num * scale.square()).to(dtype)  # [R]
        self._to_weight = (axes.axes * scale).T.to(dtype)  # [R, D]
        self._from_weight = (axes.axes / scale).to(dtype)  # [D, R], its inverse on the span of the axes
        self._mean = axes.mean.to(dtype)

    def point_of(self, start: LinearClassifier | None, present: torch.Tensor) -> torch.Tensor:
        """The point of a classifier, zero for none; of its weights only the part along the axes matters."""
        if start is None:
            return self._mean.new_zeros(self._num_classes, len(self._penalties) + 1)
        weight = start.weight[present].to(self._mean)
        bias = start.bias[present].to(self._mean).nan_to_num(neginf=0.0)
        return torch.cat([weight @ self._from_weight, (bias + weight @ self._mean)[:, None]], dim=1)

    def weight_and_bias(self, point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[C, D] and [C] of a point, for features as they are."""
        weight = point[:, :-1] @ self._to_weight
        return weight, point[:, -1] - weight @ self._mean

    def value_and_gradient(self, point: torch.Tensor) -> tuple[float, torch.Tensor]:
        """Mean objective, summed in float64, and its gradient [C, R + 1]."""
        samples, num = self._samples, len(self._samples.rows)
        coordinates = point[:, :-1]
        weight, bias = (
            (coordinates * self._scale, point[:, -1]) if samples.along_axes else self.weight_and_bias(point)
        )
        entropy = torch.zeros((), dtype=torch.float64, device=point.device)
        by_weight, by_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        rows = max(1, _BLOCK_LOGITS.get(point.device.type, 1 << 24) // self._num_classes)
        for block, target in zip(samples.rows.split(rows), samples.target.split(rows), strict=True):
            own = target[:, None]
            log_probability = torch.log_softmax(torch.addmm(bias, block, weight.T), dim=1)
            entropy -= log_probability.gather(1, own).sum(dtype=torch.float64)
            residual = log_probability.exp_().scatter_add_(1, own, block.new_full(own.shape, -1.0))
            by_weight.addmm_(residual.T, block)
            by_bias += residual.sum(dim=0)
        if samples.along_axes:
            by_coordinate = by_weight * self._scale
        else:
            by_coordinate = (by_weight - by_bias[:, None] * self._mean) @ self._to_weight.T
        gradient = by_coordinate / num + self._penalties * coordinates
        penalty = (coordinates.square() * self._penalties).sum(dtype=torch.float64) / 2
        return float(entropy / num + penalty), torch.cat([gradient, by_bias[:, None] / num], dim=1)
