"""A linear classifier of features, whichever regression found it, and what it says of samples."""

from dataclasses import dataclass

import torch

from evaluate.tasks.classification import Predictions, linear_predictions


@dataclass(frozen=True)
class LinearClassifier:
    """Scores features @ weight.T + bias over all classes of a data set."""

    weight: torch.Tensor  # [C, D] floating point
    bias: torch.Tensor  # [C]; -inf for a class without a training sample, which is never predicted

    def predict(self, features: torch.Tensor, labels: torch.Tensor) -> Predictions:
        """What is predicted for features [N, D] with labels [N] int64, both on any device."""
        return linear_predictions(
            features.to(self.weight), labels.to(self.weight.device), self.weight, self.bias
        )

    def accuracy(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        """Fraction of samples, at least one, whose true class ranks first."""
        return float((self.predict(features, labels).ranks == 0).double().mean())
