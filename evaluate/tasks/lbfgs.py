"""L-BFGS for a smooth convex function (Nocedal and Wright 2006, algorithm 7.4), stopped by the gap that is left.

torch's own takes a first step of 1 / sum |gradient|, which costs several evaluations of a large objective, and
stops by the size of a step or gradient, which say nothing about how far off the value is. This one starts
from a scale that its caller knows, and stops when the gap to the minimum is small by two signs: the Newton
decrement (Boyd and Vandenberghe 2004, section 9.5.1), with the L-BFGS matrix in place of the Hessian, and what the
last steps gained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Objective = Callable[[torch.Tensor], tuple[float, torch.Tensor]]
"""From a point to its value and its gradient, of the point's shape."""

_SUFFICIENT_DECREASE = 1e-4  # Nocedal and Wright's constants of the Wolfe conditions for quasi-Newton methods
_CURVATURE = 0.9
_MAX_TRIALS = 12  # steps tried on one line
_RECENT = 3  # steps whose gain together must be small; the first matrices know little of the Hessian


@dataclass(frozen=True)
class Minimum:
    """Where L-BFGS stopped."""

    point: torch.Tensor
    value: float
    iterations: int
    evaluations: int  # of the objective with its gradient
    converged: bool  # the gap met the tolerance, or rounding allows no further step


@dataclass(frozen=True)
class _Pair:
    """A step that was taken and the change of the gradient along it."""

    step: torch.Tensor
    change: torch.Tensor
    curvature: float  # their product, above 0


@dataclass(frozen=True)
class _Trial:
    """A point on a line: how far along it is, and what the objective is there."""

    step: float
    point: torch.Tensor
    value: float
    gradient: torch.Tensor
    slope: float  # derivative along the line


def minimise(
    objective: Objective,
    start: torch.Tensor,
    *,
    first_scale: float,
    tolerance: float,
    max_iterations: int,
    history: int = 10,
) -> Minimum:
    """The minimum of a convex function.

    Args:
        objective: value and gradient at a point.
        start: where to begin, any shape, floating point; not changed.
        first_scale: the first step is this times the negative gradient; 1 / curvature is best.
        tolerance: gap to the minimum at which to stop, in units of the value, and below 1 as a share of it; the
            value must not be negative.
        max_iterations: steps at most.
        history: pairs of steps and gradient changes that stand for the Hessian.
    """

    def flat(vector: torch.Tensor) -> tuple[float, torch.Tensor]:
        value, gradient = objective(vector.view_as(start))
        return value, gradient.flatten()

    point, scale = start.flatten(), first_scale
    value, gradient = flat(point)
    values, pairs, evaluations = [value], [], 1
    noise = 4 * torch.finfo(start.dtype).eps
    for iteration in range(max_iterations):
        direction = -_times_inverse_hessian(gradient, pairs, scale)
        slope = _dot(gradient, direction)
        gained = values[-_RECENT - 1] - value if iteration >= _RECENT else math.inf
        if max(-slope / 2, gained) <= tolerance * min(1.0, value) or slope == 0:
            return Minimum(point.view_as(start), value, iteration, evaluations, converged=True)
        found, trials = _search_line(flat, point, value, direction, slope, noise * abs(value))
        evaluations += trials
        if found is None:  # no lower point in reach of this precision
            return Minimum(point.view_as(start), value, iteration, evaluations, converged=True)
        pair = _Pair(step := found.point - point, change := found.gradient - gradient, _dot(step, change))
        if pair.curvature > 0:  # always so for a convex function, but for rounding
            pairs = [*pairs, pair][-history:]
            scale = pair.curvature / _dot(change, change)
        point, value, gradient = found.point, found.value, found.gradient
        values.append(value)
    return Minimum(point.view_as(start), value, max_iterations, evaluations, converged=False)


def _dot(left: torch.Tensor, right: torch.Tensor) -> float:
    """In float64: float32 sums over millions of weights would decide which steps are taken."""
    return float(torch.dot(left.double(), right.double()))


def _times_inverse_hessian(gradient: torch.Tensor, pairs: list[_Pair], scale: float) -> torch.Tensor:
    """The two-loop recursion: the L-BFGS matrix, which begins as `scale` times the identity, by the gradient."""
    vector = gradient.clone()
    shares = []
    for pair in reversed(pairs):
        share = _dot(pair.step, vector) / pair.curvature
        vector.sub_(pair.change, alpha=share)
        shares.append(share)
    vector.mul_(scale)
    for pair, share in zip(pairs, reversed(shares), strict=True):
        vector.add_(pair.step, alpha=share - _dot(pair.change, vector) / pair.curvature)
    return vector


def _search_line(
    objective: Objective,
    point: torch.Tensor,
    value: float,
    direction: torch.Tensor,
    slope: float,
    noise: float,
) -> tuple[_Trial | None, int]:
    """A step that meets the weak Wolfe conditions, up to rounding `noise` in the value; None if there is none.

    The bracket shrinks to where the slope's secant crosses zero, kept a tenth away from its ends; without an
    upper end it doubles.
    """
    low, high = _Trial(0.0, point, value, direction, slope), None
    step = 1.0
    for trial_number in range(1, _MAX_TRIALS + 1):
        moved = torch.add(point, direction, alpha=step)
        found_value, gradient = objective(moved)
        found = _Trial(step, moved, found_value, gradient, _dot(gradient, direction))
        enough = found_value <= value + _SUFFICIENT_DECREASE * step * slope + noise
        if not enough or not math.isfinite(found.slope):
            high = found
        elif found.slope < _CURVATURE * slope:
            low = found
        else:
            return found, trial_number
        if high is None:
            step = 2 * step
        else:
            width = high.step - low.step
            secant = -low.slope / (high.slope - low.slope) if high.slope > 0 else 0.5
            step = low.step + width * min(max(secant, 0.1), 0.9)
    return (low if low.step > 0 else None), _MAX_TRIALS
