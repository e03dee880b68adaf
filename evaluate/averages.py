"""Means over data sets, declared by a suite: what is averaged, over which sets, in which metric.

An average is a result of its own (task "average"), computed from the results alone, so a table of published
per-set values goes through the same lines as a run. Metrics never mix unnoticed: either every member has the same
headline, or the metric is "declared" and the result says `declared_metric`, as DataComp's mean over 38 sets.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.intervals import combined_mean
from evaluate.results import Result

DECLARED = "declared"
DECLARED_METRIC = (
    "declared_metric"  # the name such a mean carries in results, so that it is never read as acc1
)
AVERAGE_TASK = "average"
NOISY_POINTS = 0.1  # one answer that moves an average by this many points is said beside it
WORST_GROUP = "worst_group_"
MEAN_RECALL = "mean_retrieval_recall"
logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class AverageConfig:
    """One plain mean over data sets of a suite."""

    name: str = MISSING  # stands in the result where a data set's name stands
    metric: str = (
        MISSING  # the headline that every member must have, or "declared": each member's own headline
    )
    datasets: list[str] | None = None  # the members; null: every data set of the suite
    task: Task | None = None  # which task of the members; null: the only one each of them has

    def __post_init__(self) -> None:
        if self.datasets is not None and self.datasets != MISSING:
            if not self.datasets:
                raise ConfigError(
                    f"the average {self.name!r} has an empty list of data sets; name some, or leave datasets out for "
                    "all of the suite"
                )
            twice = sorted({name for name in self.datasets if list(self.datasets).count(name) > 1})
            if twice:
                raise ConfigError(
                    f"the average {self.name!r} names {', '.join(twice)} more than once; a plain mean counts each once"
                )

    @property
    def metric_name(self) -> str:
        """What the result's metric is called."""
        return DECLARED_METRIC if self.metric == DECLARED else self.metric


def check_averages(
    averages: Sequence[AverageConfig], datasets: Mapping[str, DatasetConfig], suite: str
) -> None:
    """Checks a suite's averages against its data sets, before anything is opened.

    Raises:
        ConfigError: a name is used twice or is a data set's, a member is not in the suite, has several tasks and none
            is chosen, lacks the chosen task, or has another metric than the average declares.
    """
    for index, config in enumerate(averages):
        where = f"suite {suite!r}: the average {config.name!r}"
        if config.name in datasets or config.name in [other.name for other in averages[:index]]:
            raise ConfigError(
                f"{where} has the name of another average or data set; results are kept by name, so give it its own"
            )
        for name in config.datasets if config.datasets is not None else datasets:
            if name not in datasets:
                do = f"Correct the average {config.name!r} or add the set; a mean over fewer sets is another number."
                raise ConfigError(unknown_name(f"data set of suite {suite!r}", name, datasets, do=do))
            _check_member(where, name, datasets[name], config)


def _check_member(where: str, name: str, member: DatasetConfig, config: AverageConfig) -> None:
    tasks = [task.value for task in member.tasks]
    if config.task is None and len(tasks) != 1:
        raise ConfigError(
            f"{where} does not say which task of {name!r} it means ({', '.join(tasks)}); set its task, or give "
            "the data set one task"
        )
    if config.task is not None and config.task not in member.tasks:
        raise ConfigError(
            f"{where} is over {config.task.value}, which {name!r} does not have (it has {', '.join(tasks)}); add "
            "the task to the data set, or take it out of the average"
        )
    if config.metric != DECLARED and (config.task or member.tasks[0]) is Task.few_shot:
        raise ConfigError(
            f"{where} is a mean of {config.metric}, but few_shot's headline is acc1 of its largest number of shots; "
            f"give the average metric={DECLARED}"
        )
    if config.metric not in (DECLARED, member.metric):
        raise ConfigError(
            f"{where} is a mean of {config.metric}, but {name!r} has the metric {member.metric}; different metrics are "
            f"not averaged unless the average says metric={DECLARED}"
        )


def averages_of(config: AverageConfig, results: Sequence[Result]) -> list[Result]:
    """The average of each model among the results.

    A model without a result for some member gets no average, and a warning: a mean over fewer sets under the same
    name would be another number. With `datasets: null` every data set among the results is a member.

    Args:
        config: what to average.
        results: any number of models; those of other data sets and tasks are passed over, and so are averages.

    Returns:
        One result a model, in the order the models come in: task "average", one metric, the plain mean of the
        members' headlines with its 95% interval (members taken as independent).

    Raises:
        ConfigError: a member's headline is another metric than the average declares, is a rank, or a member has
            several tasks and the average chooses none.
    """
    averages = []
    for of_model in _by_model(results).values():
        members = _members(config, of_model)
        names = config.datasets if config.datasets is not None else sorted({r.dataset for r in members})
        missing = [name for name in names if name not in {r.dataset for r in members}]
        if missing or not members:
            logger.warning(
                "no average %r for %s %s: %d of its %d data sets have no result (%s)",
                config.name, of_model[0].model, of_model[0].pretrained or "", len(missing), len(names),
                ", ".join(missing[:5]),
            )  # fmt: skip
            continue
        averages.append(_average(config, members))
    return averages


def _by_model(results: Sequence[Result]) -> dict[tuple[str | None, ...], list[Result]]:
    models: dict[tuple[str | None, ...], list[Result]] = {}
    for result in results:
        if result.task != AVERAGE_TASK:
            key = (result.model, result.pretrained, result.precision, result.weights_sha256)
            models.setdefault(key, []).append(result)
    return models


def _members(config: AverageConfig, results: Sequence[Result]) -> list[Result]:
    """The results that take part, each data set once, their metrics checked."""
    members: dict[str, Result] = {}
    for result in results:
        if config.datasets is not None and result.dataset not in config.datasets:
            continue
        if config.task is not None and result.task != config.task.value:
            continue
        if result.dataset in members:
            raise ConfigError(
                f"the average {config.name!r} meets {result.dataset!r} twice, as {members[result.dataset].task} and as "
                f"{result.task}; set the task of the average"
            )
        if config.metric not in (DECLARED, result.metric):
            raise ConfigError(
                f"the average {config.name!r} is a mean of {config.metric}, but {result.dataset!r} was scored by "
                f"{result.metric}; evaluate it again with metric={config.metric}, or declare metric={DECLARED}"
            )
        if result.headline.unit != "fraction":
            raise ConfigError(
                f"the average {config.name!r} would mix in {result.metric} of {result.dataset!r}, which is a "
                f"{result.headline.unit} and no fraction; give that data set another headline"
            )
        members[result.dataset] = result
    return list(members.values())


def _average(config: AverageConfig, members: Sequence[Result]) -> Result:
    first = members[0]
    return Result(
        model=first.model,
        pretrained=first.pretrained,
        precision=first.precision,
        weights_sha256=first.weights_sha256,
        dataset=config.name,
        split=first.split if len({member.split for member in members}) == 1 else "several",
        task=AVERAGE_TASK,
        metric=config.metric_name,
        metrics={config.metric_name: combined_mean([member.headline for member in members])},
        num_samples=sum(member.num_samples for member in members),
        num_bad_images=sum(member.num_bad_images for member in members),
        details={
            "datasets": [member.dataset for member in members],
            "metrics": {member.dataset: member.metric for member in members},
        },
        notes=noise_notes(members),
        provenance=first.provenance,
    )


def noise_notes(members: Sequence[Result]) -> list[str]:
    """Says which members make an average jump: those where a single answer moves it by NOISY_POINTS or more.

    The case in point is FMoW in DataComp's 38: one of its regions has 4 test images, so one answer moves the mean
    over 38 sets by 100 / (4 * 38) = 0.66 points (mlfoundations/datacomp#61).
    """
    notes = []
    for member in members:
        size, what = smallest_unit(member)
        points = 100 / (size * len(members)) if size else 0.0
        if points >= NOISY_POINTS:
            notes.append(
                f"{member.dataset}: {member.metric} hangs on {what}, so one answer moves this average by "
                f"{bound(member.metric)} {points:.2f} points"
            )
    return notes


def smallest_unit(result: Result) -> tuple[int, str]:
    """How many samples the headline rests on at its weakest place, and a few words for it.

    For a worst-group metric that is the smallest group: a single answer there can make it the worst one. For the
    mean of both directions of retrieval it is twice the queries of the shorter one, whose share is a half.
    """
    if result.metric.startswith(WORST_GROUP):
        sizes: dict[str, int] = result.details.get("group_sizes", {})
        if sizes:
            name = min(sizes, key=lambda group: (sizes[group], group))
            return sizes[name], f"groups, and group {name!r} has {_samples(sizes[name])}"
    if result.metric.startswith(MEAN_RECALL):
        sides = [result.metrics.get(result.metric.replace("mean", side, 1)) for side in ("image", "text")]
        queries = min((side.num for side in sides if side is not None), default=0)
        if queries:
            return 2 * queries, f"{queries} queries in one direction"
    if result.headline.interval == "seed_spread":
        return result.num_samples, _samples(result.num_samples)
    return result.headline.num, _samples(result.headline.num)


def bound(metric: str) -> str:
    """How exact such a step is: a group's is the largest there is, other metrics weigh samples differently."""
    return "up to" if metric.startswith(WORST_GROUP) else "about"


def _samples(num: int) -> str:
    return f"{num} sample" if num == 1 else f"{num} samples"
