"""Ridge regression to one target a class, in closed form (scikit-learn's RidgeClassifier).

The target is +1 for a sample's own class and -1 for the others, the bias is free, and the penalty is on the
sum of squared errors: sum ||x W + b - y||^2 + l2 ||W||^2. Along the principal axes each penalty is one
division, so a whole grid of them costs little more than one; big_vision's few-shot evaluator does the same.
"""

import torch

from evaluate.tasks.linear_classifier import LinearClassifier
from evaluate.tasks.principal_axes import principal_axes

_BLOCK_ROWS = 1 << 16  # samples in double precision at a time


class RidgeRegression:
    """The regression on one set of samples at any number of penalties."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> None:
        """Reads the samples; after that they are not needed.

        Args:
            features: [N, D] floating point, N at least 1, on the device that is to do the work.
            labels: [N] int64, same device.
            num_classes: C; classes without a sample are never predicted.
        """
        self._axes = principal_axes(features)
        counts = torch.bincount(labels, minlength=num_classes).double()
        # Only a sample's own class differs from -1, so targets times features are sums over each class.
        sums = torch.zeros(num_classes, features.shape[1], dtype=torch.float64)
        for block, own in zip(features.split(_BLOCK_ROWS), labels.split(_BLOCK_ROWS), strict=True):
            sums.index_add_(0, own.cpu(), block.cpu().double())  # a GPU would add in another order each time
        sums = sums.to(features.device)
        products = 2 * (sums - counts[:, None] * self._axes.mean)  # [C, D], of centred features and targets
        self._products = products @ self._axes.axes  # [C, R]
        self._target_mean = 2 * counts / len(features) - 1
        self._absent = counts == 0
        self._dtype = features.dtype

    def fit(self, l2: float) -> LinearClassifier:
        """The solution at a penalty above 0."""
        weight = (self._products / (self._axes.scatter + l2)) @ self._axes.axes.T
        bias = self._target_mean - weight @ self._axes.mean
        bias = bias.masked_fill(self._absent, -torch.inf)
        return LinearClassifier(weight.to(self._dtype), bias.to(self._dtype))
