"""The runs that are explored together: each with its own index, one space of row numbers over all of them.

A run that is added later is one more entry here; nothing is built again. All of them must have embeddings of the same
model, or their similarities could not be compared. Where two runs hold the same pair, the first one's is found by uid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json
from data_pipeline.index import FOLDER
from data_pipeline.index_plan import read_plan
from data_pipeline.index_rows import PartRows
from data_pipeline.index_search import Allowed, Effort, VectorIndex, open_index
from data_pipeline.index_whole import RECORD_NAME, open_parts, open_vectors
from data_pipeline.stage import is_finished

_ALIGNMENT = 64  # rows; a run's first row is at a multiple of it


@dataclass(frozen=True)
class Run:
    """One run, open."""

    folder: Path
    base: int  # number of its first row
    parts: list[PartRows]  # their bases are counted from the run's first row
    size: int  # row numbers it takes, with the gaps between parts
    model: dict[str, Any]
    indexes: dict[str, VectorIndex]  # by modality
    record: dict[str, Any]  # of the index: kind, effort, recall, by modality

    @property
    def name(self) -> str:
        """The folder's last two names, for readers."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def num_rows(self) -> int:
        """Pairs."""
        return sum(len(part) for part in self.parts)


def open_run(folder: Path, base: int) -> Run:
    """A run's index.

    Raises:
        DataError: the run has none, or it is damaged.
    """
    index = folder / FOLDER
    if not is_finished(index / "whole", "whole"):
        raise DataError(
            f"{folder} has no finished index ({index / 'whole'} lacks whole.stats.json); run python -m data_pipeline "
            f"stage=index output_dir={folder} with the settings of that run"
        )
    plan, whole = read_plan(index / "plan"), read_json(index / "whole" / RECORD_NAME)
    record, parts = whole["modalities"], open_parts(whole["parts"], index / "parts")
    indexes = {
        modality: VectorIndex(
            open_index(index / "whole" / f"whole.{modality}.faiss"),
            parts,
            open_vectors(parts, modality),
            Effort(max(found["lists"], 1), found["candidates"]),
        )
        for modality, found in record.items()
    }
    size = parts[-1].base + len(parts[-1])
    return Run(folder, base, parts, -(-size // _ALIGNMENT) * _ALIGNMENT, plan["model"], indexes, record)


class Library:
    """All runs as one."""

    def __init__(self, folders: Sequence[str]) -> None:
        """Opens them.

        Raises:
            ConfigError: runs with embeddings of different models.
            DataError: a run has no index.
        """
        self.runs: list[Run] = []
        for folder in folders:
            base = self.runs[-1].base + self.runs[-1].size if self.runs else 0
            self.runs.append(open_run(Path(folder), base))
        first = self.runs[0]
        for run in self.runs[1:]:
            if _identity(run.model) != _identity(first.model):
                raise ConfigError(
                    f"the runs {first.folder} and {run.folder} have embeddings of two models, "
                    f"{model_name(first.model)} and {model_name(run.model)}; similarities of two models cannot be "
                    "compared: tag one of them again, or explore them apart"
                )

    @property
    def model(self) -> dict[str, Any]:
        """The model of the embeddings."""
        return self.runs[0].model

    @property
    def num_rows(self) -> int:
        """Pairs."""
        return sum(run.num_rows for run in self.runs)

    @property
    def modalities(self) -> list[str]:
        """What every run has embeddings of."""
        return [name for name in self.runs[0].indexes if all(name in run.indexes for run in self.runs)]

    @cached_property
    def columns(self) -> dict[str, bool]:
        """The columns that rows can be filtered by: name -> whether it is a category; else it has numbers."""
        found: dict[str, bool] = {}
        for run in self.runs:
            for part in run.parts:
                for name in part.numbers.columns:
                    found.setdefault(name, part.is_category(name))
        return found

    def find(self, uid: str) -> int | None:
        """The row of a uid of 32 hex digits; None when no run has it."""
        high, low = int(uid[:16], 16), int(uid[16:], 16)
        for run in self.runs:
            for part in run.parts:
                place = part.find(high, low)
                if place is not None:
                    return run.base + part.base + place
        return None

    def run_of(self, row: int) -> tuple[Run, PartRows, int]:
        """The run and part of a row, and its place in the part."""
        run = next(run for run in reversed(self.runs) if row >= run.base)
        part = next(part for part in reversed(run.parts) if row - run.base >= part.base)
        return run, part, row - run.base - part.base

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> dict[str, list[Any]]:
        """Rows in the order asked for, by column: `uid` and the columns, None where a run lacks one."""
        found: dict[str, list[Any]] = {name: [None] * len(rows) for name in ("uid", *columns)}
        for run in self.runs:
            for part in run.parts:
                first = run.base + part.base
                chosen = np.flatnonzero((rows >= first) & (rows < first + len(part)))
                if len(chosen) == 0:
                    continue
                names = [name for name in columns if name in part.names]
                for name, values in part.take(rows[chosen] - first, names).items():
                    into = found[name]
                    for place, value in zip(chosen.tolist(), values, strict=True):
                        into[place] = value
        return found

    def nearest(
        self, modality: str, query: np.ndarray, count: int, allowed: Sequence[Allowed | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest rows over all runs; see VectorIndex.nearest. `allowed` has an entry a run."""
        rows, scores = [], []
        for run, some in zip(self.runs, allowed, strict=True):
            found, cosines = run.indexes[modality].nearest(query, count, some)
            rows.append(found + run.base)
            scores.append(cosines)
        all_rows, all_scores = np.concatenate(rows), np.concatenate(scores)
        order = np.lexsort((all_rows, -all_scores))[:count]
        return all_rows[order], all_scores[order]

    def embeddings_of(self, modality: str, rows: np.ndarray) -> np.ndarray:
        """Unit embeddings [N, D] float32 of rows; NaN where there is none."""
        found = np.empty((len(rows), self.runs[0].indexes[modality].dim), np.float32)
        for run in self.runs:
            mine = (rows >= run.base) & (rows < run.base + run.size)
            if mine.any():
                found[mine] = run.indexes[modality].embeddings_of(rows[mine] - run.base)
        return found


def _identity(model: dict[str, Any]) -> tuple[Any, ...]:
    """Of equal weights, wherever they lie."""
    if model["weights_sha256"] is not None:
        return (model["weights_sha256"],)
    return model["model"], model["pretrained"]


def model_name(model: dict[str, Any]) -> str:
    """A model as a message calls it."""
    digest = f" (weights {model['weights_sha256'][:12]})" if model["weights_sha256"] else ""
    return f"{model['model'] or 'the export'} / {model['pretrained']}{digest}"
