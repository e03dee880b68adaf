"""Published scores, to stand beside ours.

`published.csv` (a value a row) and `published_open_clip.csv` (a model a row, "<data set> <task> <metric>" over each
column) hold values in percent under open_clip's names of models and weights and the suites' names of data sets. A
value is only comparable when the metric is the same one, and mostly when the prompts are; how far two published runs
of the same weights differ is in `tolerances.csv`. Rows of `test_sets.csv` say how many samples and classes a test set
has, which is how a wrong split shows.
"""

import csv
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCES = {
    "clip_benchmark": (
        "github.com/LAION-AI/CLIP_benchmark benchmark/benchmark.csv at 48de38c (2025-06-17), mixed precision"
    ),
    "clip_benchmark_mean": (
        "plain mean of acc1 over the sets of an average (the 35 of VTAB+, voc2007_multilabel left out as in the "
        "LAION-5B paper; the 5 shifts of imagenet_robustness) of CLIP_benchmark's benchmark.csv at 48de38c"
    ),
    "clip_benchmark_probe": (
        "github.com/LAION-AI/CLIP_benchmark probe_benchmark/scaling_experiment_data2.json and _data_vtab.json at "
        "48de38c: best test accuracy of a grid of learning rates and epochs (AdamW, features after the projection, "
        "seed 0), so an upper bound"
    ),
    "open_clip": (
        "github.com/mlfoundations/open_clip docs/openclip_results.csv and openclip_retrieval_results.csv at 89fb801 "
        "(2026-06-27), DataComp's suite, classification in float32"
    ),
}
_FOLDER = Path(__file__).parent
_SAME_TEST_IMAGES = ("cifar10", "cifar100", "dtd", "flowers", "pcam", "pets", "svhn")
"""Sets whose VTAB form has the same test images as torchvision's; Caltech101 and EuroSAT, for example, do not."""


@dataclass(frozen=True)
class Published:
    """A value somebody published."""

    percent: float
    source: str  # a key of SOURCES


@dataclass(frozen=True)
class Agreement:
    """How closely two published suites agree on one data set, over the weights that both of them scored."""

    metric: str
    checkpoints: int
    median_points: float  # of the absolute differences
    max_points: float
    same_protocol: (
        bool  # False where prompts or class names must differ: no difference in precision is that large
    )


@dataclass(frozen=True)
class ExpectedSplit:
    """What a data set's test split holds when it is the published one."""

    num_samples: int  # images
    num_classes: int | None  # None for sets without classes


def canonical(dataset: str) -> str:
    """The name a data set is published under: VTAB's form of sets that have the same test images either way."""
    name = dataset.removeprefix("wds/")
    return f"vtab/{name}" if name in _SAME_TEST_IMAGES else name


def published_values(
    model: str, pretrained: str | None, dataset: str, task: str, metric: str
) -> list[Published]:
    """What was published for a result; the closest protocol first, nothing when the model is unknown."""
    return _table().get((model, pretrained or "", canonical(dataset), task, metric), [])


def agreement(dataset: str, task: str, metric: str) -> Agreement | None:
    """How closely published runs agree on a data set; that of a sister metric where the metric itself has none.

    The same answers make acc1 and mean per class recall, and recall@1, @5 and @10, so a sister's figure is nearer
    than none; for retrieval the same direction is preferred. None for metrics of another kind.
    """
    entries = _agreements().get((canonical(dataset), task), [])
    kind = metric.partition("@")[0]
    for wanted in (
        lambda name: name == metric,
        lambda name: name.partition("@")[0] == kind,
        lambda name: {metric, name} <= {"acc1", "mean_per_class_recall"},
        lambda name: kind == "mean_retrieval_recall" and name.startswith("text_retrieval"),
    ):
        found = [entry for entry in entries if wanted(entry.metric)]
        if found:
            return found[0]
    return None


def expected_split(dataset: str) -> ExpectedSplit | None:
    """What a data set's published test split holds; None when nobody states it."""
    return _test_sets().get(canonical(dataset))


@functools.cache
def _table() -> dict[tuple[str, ...], list[Published]]:
    table: dict[tuple[str, ...], list[Published]] = {}
    for row in _rows("published.csv"):
        key = (row["model"], row["pretrained"], canonical(row["dataset"]), row["task"], row["metric"])
        table.setdefault(key, []).append(Published(float(row["percent"]), row["source"]))
    for row in _rows("published_open_clip.csv"):
        model, pretrained = row.pop("model"), row.pop("pretrained")
        for column, percent in row.items():
            dataset, task, metric = column.split(" ")
            key = (model, pretrained, canonical(dataset), task, metric)
            table.setdefault(key, []).append(Published(float(percent), "open_clip"))
    return table


@functools.cache
def _agreements() -> dict[tuple[str, str], list[Agreement]]:
    table: dict[tuple[str, str], list[Agreement]] = {}
    for row in _rows("tolerances.csv"):
        entry = Agreement(
            row["metric"],
            int(row["checkpoints"]),
            float(row["median_points"]),
            float(row["max_points"]),
            row["differ_by"] == "runs",
        )
        table.setdefault((canonical(row["dataset"]), row["task"]), []).append(entry)
    return table


@functools.cache
def _test_sets() -> dict[str, ExpectedSplit]:
    """From github.com/mlfoundations/datacomp tasklist.yml at 4a8df19 (2025-04-28)."""
    return {
        canonical(row["dataset"]): ExpectedSplit(
            int(row["num_samples"]), int(row["num_classes"] or 0) or None
        )
        for row in _rows("test_sets.csv")
    }


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (_FOLDER / name).open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)
