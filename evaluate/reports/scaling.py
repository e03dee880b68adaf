"""Scaling law: how fast the error falls with compute, fitted over several checkpoints.

Cherti et al. 2023 (Reproducible scaling laws for contrastive language-image learning, section 4) describe a
downstream error as E = a * C^b, C the training compute and b negative: a straight line on log-log axes. As
there (caption of figure 1), the line goes through the Pareto frontier: the checkpoints that no other one beats
with as little compute. It is fitted by least squares on the logarithms. What it cannot know has to be said beside
it: points of one training run are not independent, choosing the best points makes the line look surer than it
is, the form has no floor, and few points leave the exponent open.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crawl2clip.errors import DataError

MIN_POINTS = 3  # two points give a line without any idea of its error
_T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # Student's t, 1 to 10 degrees
_Z_975 = 1.959963984540054


@dataclass(frozen=True)
class PowerLaw:
    """E = a * C^b with what is known of its error."""

    a: float
    b: float
    b_low: float  # 95% interval of the exponent, Student's t with num - 2 degrees of freedom
    b_high: float
    r2: float  # share of the variance of log error that the line explains
    residual: float  # standard deviation of log error (natural logarithm) around the line
    num: int  # points
    mean_log_compute: float
    spread_log_compute: float  # sum of squares of log compute around its mean
    lowest: float  # least compute of a point
    highest: float

    def at(self, compute: float) -> float:
        """The error that the law gives."""
        return self.a * compute**self.b

    def band(self, compute: float) -> tuple[float, float]:
        """95% prediction interval for one more checkpoint at this compute, if the law holds there."""
        distance = (math.log(compute) - self.mean_log_compute) ** 2 / self.spread_log_compute
        half = t_975(self.num - 2) * self.residual * math.sqrt(1 + 1 / self.num + distance)
        return self.at(compute) * math.exp(-half), self.at(compute) * math.exp(half)


def fit_power_law(compute: Sequence[float], error: Sequence[float]) -> PowerLaw:
    """Least squares of log error on log compute.

    Args:
        compute: of each checkpoint, above 0, in any unit.
        error: 1 - accuracy or 1 - recall of each, above 0.

    Raises:
        DataError: fewer than three points, all at one compute, or a value without a logarithm.
    """
    points = list(zip(compute, error, strict=True))
    bad = [p for p in points if not all(math.isfinite(v) and v > 0 for v in p)]
    if bad:
        raise DataError(
            f"scaling fit: (compute, error) {bad[0]} has no logarithm; both must be finite and above 0, leave it out"
        )
    if len(points) < MIN_POINTS or len(set(compute)) < 2:
        raise DataError(
            f"scaling fit: {len(points)} checkpoints at {len(set(compute))} amounts of compute; a line and its error "
            f"need {MIN_POINTS} checkpoints at two amounts or more, evaluate more of them"
        )
    x, y = np.log(np.asarray(compute, float)), np.log(np.asarray(error, float))
    centred = x - x.mean()
    spread = float(centred @ centred)
    b = float(centred @ y) / spread
    residuals = y - y.mean() - b * centred
    left, total = float(residuals @ residuals), float(((y - y.mean()) ** 2).sum())
    variance = left / (len(x) - 2)
    half = t_975(len(x) - 2) * math.sqrt(variance / spread)
    return PowerLaw(
        a=math.exp(float(y.mean()) - b * float(x.mean())),
        b=b,
        b_low=b - half,
        b_high=b + half,
        r2=1 - left / total if total > 0 else math.nan,
        residual=math.sqrt(variance),
        num=len(x),
        mean_log_compute=float(x.mean()),
        spread_log_compute=spread,
        lowest=min(compute),
        highest=max(compute),
    )


def pareto_frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(compute, error) of the checkpoints with less error than every one of as much compute or less."""
    front: list[tuple[float, float]] = []
    for compute, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((compute, error))
    return front


def t_975(degrees: int) -> float:
    """97.5% quantile of Student's t: a table up to 10 degrees of freedom, then Cornish-Fisher's expansion.

    The expansion (Abramowitz & Stegun 26.7.5, three terms) is right to 1e-4 from 11 degrees on.
    """
    assert degrees >= 1
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = _Z_975
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3
