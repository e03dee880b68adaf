"""The axes that features vary along, found on the smaller side of the matrix of features.

Ridge regression has its closed form in them and logistic regression its preconditioner. With fewer samples
than features the axes come from the samples' inner products, so few-shot sets cost little at any width.
"""

from dataclasses import dataclass

import torch

_BLOCK_ELEMENTS = 1 << 22  # features in double precision at a time
_RANK_TOLERANCE = 1e-12  # axes with less than this share of the largest variance are rounding


@dataclass(frozen=True)
class PrincipalAxes:
    """Centre and axes of a set of features, all float64 on their device."""

    mean: torch.Tensor  # [D]
    axes: torch.Tensor  # [D, R] orthonormal columns, R at most min(N - 1, D)
    scatter: (
        torch.Tensor
    )  # [R] sum over samples of the squared coordinate along each axis, descending, above 0


def principal_axes(features: torch.Tensor) -> PrincipalAxes:
    """Eigenvectors of the scatter matrix of features [N, D], N at least 1, any floating type.

    No rotation of equal eigenvalues matters to the callers, and the decomposition runs on the CPU in float64,
    so the result depends on the features alone.
    """
    num, width = features.shape
    rows = max(1, _BLOCK_ELEMENTS // max(1, width))
    total = torch.zeros(width, dtype=torch.float64, device=features.device)
    for block in features.split(rows):
        total += block.sum(dim=0, dtype=torch.float64)
    mean = total / num
    if num < width:
        centred = features.double() - mean
        values, vectors = _eigen(centred @ centred.T)
        # Axes of little scatter come out of this orthogonal to few digits; QR mends that and turns nothing else.
        axes = torch.linalg.qr(centred.T @ (vectors * values.rsqrt())).Q
    else:
        gram = torch.zeros(width, width, dtype=torch.float64, device=features.device)
        for block in features.split(rows):
            # Centred first, so that the products of a block may be summed in the features' own precision.
            centred = (block.double() - mean).to(features.dtype)
            gram += (centred.T @ centred).double()
        values, axes = _eigen(gram)
    return PrincipalAxes(mean, axes, values)


def _eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues, descending, of those that are not rounding, and their eigenvectors as columns."""
    values, vectors = torch.linalg.eigh(matrix.cpu())
    kept = values > _RANK_TOLERANCE * values.max().clamp(min=torch.finfo(torch.float64).tiny)
    return values[kept].flip(0).to(matrix.device), vectors[:, kept].flip(1).to(matrix.device)
