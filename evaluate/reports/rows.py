"""The lines that every table is made of: one metric of one result, over all samples or a group, with its verdict."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluate.intervals import Estimate
from evaluate.reports.names import model_key, natural
from evaluate.reports.verdicts import Verdict, verdict, verdicts
from evaluate.results import Result

# Tasks whose every metric belongs in a short table; of the others the headline does, and what was published.
WHOLE_TASKS = ("retrieval", "few_shot")


@dataclass(frozen=True)
class Row:
    """One number with what it is about."""

    result: Result
    metric: str
    group: str  # "" for all samples
    estimate: Estimate
    verdict: Verdict | None  # None for groups and where nobody published a value

    @property
    def shown(self) -> bool:
        """Whether the row belongs in a short table."""
        headline = self.metric == self.result.metric
        return headline or self.result.task in WHOLE_TASKS or self.verdict is not None


def rows_of(results: Sequence[Result]) -> list[Row]:
    """All rows: results in the order given, metrics and groups in natural order.

    The order of `metrics` is not used: it is lost in the JSON files, whose keys are sorted, and a table made from
    them has to be the one that was printed.
    """
    judged = judge(results)
    rows = []
    for number, result in enumerate(results):
        for metric in sorted(result.metrics, key=natural):
            rows.append(Row(result, metric, "", result.metrics[metric], judged.get((number, metric))))
            for group in sorted(result.groups, key=natural):
                if metric in result.groups[group]:
                    rows.append(Row(result, metric, group, result.groups[group][metric], None))
    return rows


def judge(results: Sequence[Result]) -> Mapping[tuple[int, str], Verdict]:
    """(place of the result, metric) -> verdict, each seen together with the others."""
    cells = [
        (number, metric)
        for number, result in enumerate(results)
        for metric in result.metrics
        if verdict(result, metric) is not None
    ]
    return dict(zip(cells, verdicts(results), strict=True))


def in_order(results: Sequence[Result]) -> list[Result]:
    """Results in the order of model, data set and task, whatever order they come in."""
    return sorted(
        results,
        key=lambda r: (
            [natural(part) for part in model_key(r)],
            natural(r.dataset),
            r.split,
            r.task,
            r.metric,
        ),
    )


def shown_value(estimate: Estimate) -> str:
    """A value as people read it: percent with two decimals, ranks from 1 with one."""
    return shown_number(estimate.value, estimate.unit)


def shown_number(value: float, unit: str) -> str:
    """A number in an estimate's unit; "nan" where there is none."""
    if not math.isfinite(value):
        return "nan"
    return f"{value:.1f}" if unit == "rank" else f"{100 * value:.2f}"


def shown_interval(estimate: Estimate) -> str:
    """The interval, or one standard deviation where that is what is known."""
    if estimate.interval == "seed_spread":
        return f"+-{shown_number(estimate.high - estimate.value, estimate.unit)} sd"
    return f"{shown_number(estimate.low, estimate.unit)} to {shown_number(estimate.high, estimate.unit)}"


def shown_chance(estimate: Estimate) -> str:
    """The chance level; empty where it has no meaning."""
    return "" if estimate.chance is None else shown_number(estimate.chance, estimate.unit)
