"""PASS, WARN or FAIL for a result that others published: how far off it is, how far off is normal, what to check.

How far off is normal is measured (`tolerances`), and what to check is ranked by the look of the deviation
(`trap_messages`). A verdict says that a number is or is not the published one; it says nothing about weights that
nobody published.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from evaluate.averages import AVERAGE_TASK, bound, smallest_unit
from evaluate.intervals import Estimate
from evaluate.reports.published import Published, agreement, expected_split, published_values
from evaluate.reports.tolerances import Tolerance, half_interval, tolerance
from evaluate.reports.trap_messages import Evidence, likely_traps
from evaluate.results import Result

AVERAGED_SETS = {"vtab_plus": 35, "imagenet_robustness": 5, "datacomp38": 38, "vtab_linear_probe": 19}
SMALL_GROUP = 100  # below it a 95% interval is about 20 points wide or more, and a verdict says little


class Status(str, Enum):
    """What a comparison with a published value says."""

    PASS = "PASS"  # as close as independent runs of the same weights are
    WARN = "WARN"  # further off than those, but no more than precision or sampling may explain
    FAIL = "FAIL"  # something is different: weights, preprocessing, prompts or data


@dataclass(frozen=True)
class Verdict:
    """One value beside the published one."""

    dataset: str
    task: str
    metric: str
    model: str
    status: Status
    value: float  # ours, percent
    published: Published
    difference: float  # ours minus published, points
    tolerance: Tolerance
    traps: tuple[str, ...]  # what to check, likeliest first; empty for PASS
    notes: tuple[str, ...] = ()  # what makes the comparison weak

    @property
    def message(self) -> str:
        """One line: the verdict, the numbers, the tolerance and its source, and what to check."""
        text = (
            f"{self.status.value} {self.dataset} {self.task} {self.metric}: {self.value:.2f} against "
            f"{self.published.percent:.2f} ({self.published.source}), {self.difference:+.2f} points; "
            f"PASS up to {self.tolerance.passes:.2f}, WARN up to {self.tolerance.warns:.2f} ({self.tolerance.source})"
        )
        checks = " ".join(f"({number}) {trap}" for number, trap in enumerate(self.traps, 1))
        return ". ".join([text, *self.notes, *([f"Check: {checks}"] if checks else [])])


def verdict(result: Result, metric: str | None = None) -> Verdict | None:
    """The verdict on one metric of a result, seen alone.

    Args:
        result: any; an average as well.
        metric: one of its metrics; None for its headline.

    Returns:
        None when nobody published this metric for these weights, when the value is not finite, or when an average is
        over fewer sets than the published one.
    """
    return _verdict(result, metric or result.metric, Evidence.NO_OTHERS)


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """The verdict on every metric that was published, in the order of the results.

    Seen together, the cells say more: a model that is off everywhere in one direction is loaded or fed in another
    way, a single data set that is off has other labels, prompts or images. The traps are ranked by that.
    """
    alone = [
        (result, metric, found)
        for result in results
        for metric in result.metrics
        if (found := _verdict(result, metric, Evidence.NO_OTHERS)) is not None
    ]
    cells: dict[tuple[str | None, ...], list[Verdict]] = {}
    for result, _, found in alone:
        if result.task != AVERAGE_TASK:
            cells.setdefault(_weights(result), []).append(found)
    return [
        found
        if found.status is Status.PASS
        else _verdict(result, metric, _others(found, cells.get(_weights(result), []))) or found
        for result, metric, found in alone
    ]


def _weights(result: Result) -> tuple[str | None, ...]:
    return (result.model, result.pretrained, result.weights_sha256, result.precision)


def _others(found: Verdict, cells: Sequence[Verdict]) -> tuple[int, int, int]:
    """Of the same weights' other data sets: (off in the same direction, off in the other one, all of them)."""
    directions: dict[str, int] = {}
    for cell in cells:
        if cell.dataset != found.dataset:
            direction = (
                0 if cell.status is Status.PASS else 1 if cell.difference * found.difference > 0 else -1
            )
            directions[cell.dataset] = (
                directions.get(cell.dataset, 0) or direction
            )  # its first metric that is off
    same, opposite = (sum(d == sign for d in directions.values()) for sign in (1, -1))
    return same, opposite, len(directions)


def _verdict(result: Result, metric: str, others: tuple[int, int, int]) -> Verdict | None:
    estimate = result.metrics.get(metric)
    model, values, other = _activations(result, metric)
    if estimate is None or not values or not math.isfinite(estimate.value) or estimate.unit != "fraction":
        return None
    if result.task == AVERAGE_TASK and estimate.num != AVERAGED_SETS.get(result.dataset, estimate.num):
        return None  # a suite with a set taken out: a mean of another thing under the same name
    percent = 100 * estimate.value
    agreed = agreement(result.dataset, result.task, metric)
    differing = agreed is not None and not agreed.same_protocol
    # Where published suites themselves use other prompts, ours are those of one of them: the nearest is meant.
    published = min(values, key=lambda v: abs(percent - v.percent)) if differing else values[0]
    allowed = tolerance(result, metric)
    difference = percent - published.percent
    found = Verdict(
        dataset=result.dataset,
        task=result.task,
        metric=metric,
        model=result.model,
        status=_status(abs(difference), allowed),
        value=percent,
        published=published,
        difference=difference,
        tolerance=allowed,
        traps=(),
        notes=tuple(_notes(result, metric, estimate)),
    )
    if found.status is Status.PASS:
        return found
    split = expected_split(result.dataset)
    evidence = Evidence(
        model=model,
        task=result.task,
        value=percent,
        published=published.percent,
        chance=None if estimate.chance is None else 100 * estimate.chance,
        half_interval=half_interval(estimate),
        precision=result.precision,
        num_samples=result.num_samples + result.num_bad_images,
        expected_samples=split.num_samples if split else None,
        num_classes=result.num_classes,
        expected_classes=split.num_classes if split else None,
        other_activation=other.percent if other else None,
        others_off=others[0],
        others_opposite=others[1],
        others=others[2],
    )
    return replace(found, traps=tuple(likely_traps(evidence)))


def _status(difference: float, allowed: Tolerance) -> Status:
    if difference <= allowed.passes:
        return Status.PASS
    return Status.WARN if difference <= allowed.warns else Status.FAIL


def _activations(result: Result, metric: str) -> tuple[str, list[Published], Published | None]:
    """The name these weights are rightly published under, their values, and what the other activation has.

    Weights that were trained with QuickGELU run with it here whatever name they are asked for by
    (crawl2clip.models.architecture_of), so where both names are published and differ, the one with it is meant. They do
    not differ for OpenAI's weights, to which open_clip gives the right activation under either name.
    """
    plain = result.model.removesuffix("-quickgelu")
    plainly, quickly = (
        published_values(name, result.pretrained, result.dataset, result.task, metric)
        for name in (plain, f"{plain}-quickgelu")
    )
    by_source = {value.source: value.percent for value in plainly}
    differ = quickly and plainly and all(by_source.get(v.source) != v.percent for v in quickly)
    if not differ:
        own, other = (plainly, quickly) if result.model == plain else (quickly, plainly)
        return result.model, own or (other if result.model == plain else []), None
    shared = [value for value in plainly if value.source in {v.source for v in quickly}]
    return f"{plain}-quickgelu", quickly, (shared or plainly)[-1]


def _notes(result: Result, metric: str, estimate: Estimate) -> list[str]:
    notes = []
    size, what = (
        smallest_unit(result) if metric == result.metric else (estimate.num, f"{estimate.num} samples")
    )
    if 0 < size < SMALL_GROUP and estimate.interval not in ("seed_spread", "combined_95"):
        notes.append(
            f"{metric} hangs on {what}: one answer moves it by {bound(metric)} {100 / size:.1f} points"
        )
    if result.num_bad_images:
        notes.append(f"{result.num_bad_images} images could not be decoded and are left out")
    return notes
