"""What models are called in tables and figures: short, and different for different weights."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from evaluate.results import Result

NUMBERED_FROM = 6  # more models than these are numbered in figures
ModelKey = tuple[str, str, str, str]  # model, pretrained, precision, weights_sha256; "" for what is not known


def model_key(result: Result) -> ModelKey:
    """What tells one model's results from another's."""
    return (result.model, result.pretrained or "", result.precision, result.weights_sha256 or "")


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sorts numbers in texts by value: epoch_2 before epoch_10, acc1@8_shot before acc1@16_shot."""
    return [
        (0, int(part), "") if part.isdigit() and part.isascii() else (1, 0, part)
        for part in re.split(r"([0-9]+)", text)
    ]


@dataclass(frozen=True)
class Models:
    """The models of a report; each keeps its name and its mark through all figures."""

    names: dict[ModelKey, str]  # in natural order

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Models":
        """The models that results are of."""
        return cls(model_names(results))

    @property
    def numbered(self) -> bool:
        """Whether figures show numbers beside the marks, as they do where marks alone are hard to tell apart."""
        return len(self.names) > NUMBERED_FROM

    def series(self, key: ModelKey) -> int:
        """Place of a model, from 0; sets its colour and the shape of its mark."""
        return list(self.names).index(key)

    def tag(self, key: ModelKey) -> str:
        """What stands beside a mark; empty where marks are enough."""
        return str(self.series(key) + 1) if self.numbered else ""

    def legend_name(self, key: ModelKey) -> str:
        """The name as a legend has it."""
        return f"{self.tag(key)} {self.names[key]}".strip()


def model_names(results: Sequence[Result]) -> dict[ModelKey, str]:
    """A name for each model, in natural order: model and weights, and the precision where there are several.

    Weights in files are called by the last two parts of their path, by the whole path where two of those are
    alike, and with the first digits of their hash where the paths are the same too.
    """
    keys = sorted({model_key(r) for r in results}, key=lambda key: [natural(part) for part in key])
    several = len({key[2] for key in keys}) > 1
    ways = (
        lambda key: f"{key[0]} {_short(key[1])} {key[2] * several}",
        lambda key: f"{key[0]} {key[1]} {key[2] * several}",
        lambda key: f"{key[0]} {key[1]} {key[2] * several} {key[3][:8]}",
    )
    names: dict[ModelKey, str] = {}
    for way in ways:
        counts = Counter(way(key) for key in keys)
        names |= {key: way(key) for key in keys if key not in names and counts[way(key)] == 1}
    return {key: re.sub(" +", " ", names.get(key, " ".join(key))).strip() for key in keys}


def _short(pretrained: str) -> str:
    return "/".join(PurePath(pretrained).parts[-2:]) if "/" in pretrained else pretrained
