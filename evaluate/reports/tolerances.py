"""How far a value may be from the published one before something is wrong: measured, not guessed.

The ground is data (`tolerances.csv`): CLIP_benchmark and open_clip's documentation scored the same 13
checkpoints on 32 data sets and directions independently, in mixed and in full precision. The rule, in points of
percent, with `max` their largest difference on that data set and `half` half the 95% interval of our own value:

    entry                           PASS up to           WARN up to             else
    two suites agree                max                  max(2 max, half)       FAIL
    suites differ in prompts        half                 max                    FAIL
    no entry                        half                 3 half                 FAIL
    linear probe and few-shot       2                    4                      FAIL

Two runs of one model on the same images share their sampling error, so `half` is wide for them: of the 30 entries
where the protocols agree, `max` is within `half` for 26 and nowhere above 2.6 of it (MNIST, PCam, Caltech101 and
CLEVR counts, whose answers flip together). That is the ground for the rule of sets without an entry. The probe's 2
points are the largest difference between CLIP_benchmark's probe and the CLIP paper's table 10 over six sets, 1.9
(LAION-AI/CLIP_benchmark#107), rounded up.
"""

from dataclasses import dataclass

from evaluate.intervals import Estimate
from evaluate.reports.published import agreement
from evaluate.results import Result

PROBE_POINTS = 2.0
_TRAINED = ("linear_probe", "few_shot", "knn")
_ROUNDING = 0.01  # published values have two decimals, ours are compared unrounded


@dataclass(frozen=True)
class Tolerance:
    """How far off a value may be, in points of percent."""

    passes: float  # up to here it is PASS
    warns: float  # up to here it is WARN
    source: str  # where the two come from, in words


def tolerance(result: Result, metric: str) -> Tolerance:
    """How far a metric of a result may be from a published value; the rule is at the top of the module."""
    half = half_interval(result.metrics[metric])
    if result.task in _TRAINED:
        return Tolerance(
            PROBE_POINTS, 2 * PROBE_POINTS, "how far published probes of the same weights are apart"
        )
    agreed = agreement(result.dataset, result.task, metric)
    if agreed is None:
        return Tolerance(
            half + _ROUNDING,
            3 * half + _ROUNDING,
            "no two published runs to compare: half the 95% interval of this value, and three times that",
        )
    apart = f"{agreed.checkpoints} checkpoints scored by two suites differ by {agreed.median_points:.2f} in the median"
    if not agreed.same_protocol:
        why = f"{apart} and {agreed.max_points:.2f} at most, so their prompts or class names differ"
        return Tolerance(half + _ROUNDING, max(agreed.max_points, half), why)
    one_answer = 100 / max(1, result.metrics[metric].num)  # a set of few samples moves in larger steps
    passes = max(agreed.max_points, one_answer) + _ROUNDING
    return Tolerance(
        passes,
        max(2 * agreed.max_points, half, passes) + _ROUNDING,
        f"{apart} and {agreed.max_points:.2f} at most",
    )


def half_interval(estimate: Estimate) -> float:
    """Half an estimate's interval, in points of percent."""
    return 50 * (estimate.high - estimate.low)
