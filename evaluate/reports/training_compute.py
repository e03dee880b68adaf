"""What a checkpoint cost to train: samples seen times multiply-adds a sample, as Cherti et al. 2023 count it.

Samples seen come from the result's provenance (`training`, written by a run's export) or, for open_clip's
public weights, from their tag, whose `s34b` says 34 billion. Multiply-adds come from the provenance or from the
published grid's table.
"""

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate.results import Result

_GRID = Path(__file__).with_name("scaling.csv")
_SEEN = re.compile(r"(?:^|_)s([0-9]+)([mb])(?:_|$)")
_MULTIPLIER = {"m": 10**6, "b": 10**9}
GRID_SOURCE = (
    "Cherti et al. 2023, github.com/LAION-AI/scaling-laws-openclip: 29 checkpoints trained on LAION data"
)


@dataclass(frozen=True)
class Training:
    """How long and how large a checkpoint was trained."""

    samples_seen: float
    gmacs: float | None  # billions of multiply-adds of one forward pass of a pair; None when not known

    @property
    def compute(self) -> float | None:
        """GMACs in all, forward passes only."""
        return None if self.gmacs is None else self.samples_seen * self.gmacs


@dataclass(frozen=True)
class GridPoint:
    """One checkpoint of the published grid."""

    name: str
    compute: float  # GMACs
    percents: Mapping[str, float]  # column of scaling.csv -> score


def training_of(result: Result) -> Training | None:
    """What is known of a checkpoint's training; None when the samples seen are not."""
    known = result.provenance.get("training")
    known = known if isinstance(known, dict) else {}
    seen = _positive(known.get("samples_seen"))
    if seen is None and result.pretrained and "/" not in result.pretrained:
        match = _SEEN.search(result.pretrained)
        seen = int(match[1]) * _MULTIPLIER[match[2]] if match else None
    if not seen:
        return None
    gmacs = _positive(known.get("gmacs_per_sample"))
    return Training(seen, gmacs or gmacs_by_model().get(result.model.removesuffix("-quickgelu")))


def _positive(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < float("inf") else None


@functools.cache
def published_grid() -> tuple[GridPoint, ...]:
    """The published checkpoints."""
    with _GRID.open(encoding="utf-8", newline="") as file:
        return tuple(
            GridPoint(
                name=f"{row['model']} {row['data']} {row['samples_seen_rounded']}",
                compute=float(row["gmacs"]) * float(row["samples_seen"]),
                percents={name: float(row[name]) for name in row if "_acc1" in name or "recall" in name},
            )
            for row in csv.DictReader(file)
        )


@functools.cache
def gmacs_by_model() -> dict[str, float]:
    """Multiply-adds of the published grid's models, billions a sample."""
    with _GRID.open(encoding="utf-8", newline="") as file:
        return {row["model"]: float(row["gmacs"]) for row in csv.DictReader(file)}
