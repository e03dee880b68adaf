"""Published scores, to stand beside ours.

`published.csv` holds values in percent for open_clip's names of models, weights and CLIP_benchmark's names
of data sets. A row is only comparable when the metric is the same one; so are the prompts, mostly: SVHN and
CLEVR differ between the two sources far more than precision explains.
"""

import csv
import functools
from dataclasses import dataclass
from pathlib import Path

SOURCES = {
    "clip_benchmark": (
        "github.com/LAION-AI/CLIP_benchmark benchmark/benchmark.csv at 48de38c (2025-06-17), mixed precision"
    ),
    "clip_benchmark_mean": (
        "plain mean of acc1 over the 35 VTAB+ sets of CLIP_benchmark's benchmark.csv at 48de38c, "
        "voc2007_multilabel left out as in the LAION-5B paper"
    ),
    "open_clip": (
        "github.com/mlfoundations/open_clip docs/openclip_results.csv and openclip_retrieval_results.csv at 89fb801 "
        "(2026-06-27), DataComp's suite, classification in float32"
    ),
}
_TABLE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Published:
    """A value somebody published."""

    percent: float
    source: str  # a key of SOURCES


def published_values(
    model: str, pretrained: str | None, dataset: str, task: str, metric: str
) -> list[Published]:
    """What was published for a result; the closest protocol first, nothing when the model is unknown."""
    return _table().get((model, pretrained or "", dataset, task, metric), [])


@functools.cache
def _table() -> dict[tuple[str, ...], list[Published]]:
    table: dict[tuple[str, ...], list[Published]] = {}
    with _TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = (row["model"], row["pretrained"], row["dataset"], row["task"], row["metric"])
            table.setdefault(key, []).append(Published(float(row["percent"]), row["source"]))
    return table
