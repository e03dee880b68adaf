"""The first step of the index stage: what will be built. It chooses the index, trains it, and cuts the run into parts.

Writes `plan.plan.json` and for each modality the trained, empty index `plan.<modality>.faiss`. When the run has more
tagged shards later, `plan-0001.plan.json` and so on have the parts that these become; what was trained stays.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip.errors import DataError
from crawl2clip.files import read_json
from data_pipeline.completion import read_settings
from data_pipeline.index_choice import IndexChoice, choose_index, train
from data_pipeline.index_embeddings import MODALITIES, EmbeddingSource, unit, usable
from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_growth import (
    MOST_GROWTH,
    check_growth,
    check_unchanged,
    forget,
    has_own_settings,
    shard_digest,
)
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, is_finished, read_stats

logger = logging.getLogger(__name__)

_SUFFIX = ".plan.json"
_ALIGNMENT = (
    64  # rows; a part starts at a multiple of it, so that its bits in a filter's bit map start at a byte
)


@dataclass
class PlanStage(Stage):
    """Plans the index of a run and trains it."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    clip: Path  # the clip tagger's folder
    exact_rows: int
    memory_budget_gb: float
    rows_per_part: int
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One of all tagged shards, and one of those that have come since, for each time that some had."""
        plans = [read_json(path) for path in _plan_files(self.folder)]
        listed = [[name for part in plan["parts"] for name in part["shards"]] for plan in plans]
        planned = {name for names in listed for name in names}
        if new := [name for name in finished_shards(self.clip) if name not in planned]:
            listed.append(new)
        return [
            Shard(_plan_name(number), tuple(str(self.clip / f"{name}.parquet") for name in names))
            for number, names in enumerate(listed)
        ]

    def prepare(self) -> None:
        """Takes the shards that have come since the index was planned.

        Raises:
            ConfigError: what it was planned for is gone or has changed, or too much has come.
        """
        if not has_own_settings(self):
            return
        if _plan_files(self.folder):
            plan = read_plan(self.folder)
            check_unchanged(plan, [self.raw, self.clip])
            new = [Path(path).stem for shard in self.shards()[plan["times"] :] for path in shard.inputs]
            rows = plan["rows"] + sum(self._rows_of(new).values())
            check_growth(rows, plan["planned_for"])
            self._tell_if_another_would_be_chosen(plan, rows)
        forget(self)

    def _tell_if_another_would_be_chosen(self, plan: dict[str, Any], rows: int) -> None:
        for modality, made in plan["modalities"].items():
            choice = choose_index(
                rows, made["dim"], exact_rows=self.exact_rows, memory_budget_gb=self.memory_budget_gb
            )
            if (choice.kind, choice.code_bytes) != (made["kind"], made["code_bytes"]):
                logger.warning(
                    "the index of %ss is %s with %d bytes a vector, made for %d rows; for the %d that there are now it "
                    "would be %s with %d. It is kept up to %d times the rows it was made for; to have the other one, "
                    "delete the folder index/ and run stage=index again",
                    modality, made["kind"], made["code_bytes"], plan["planned_for"], rows,
                    choice.kind, choice.code_bytes, MOST_GROWTH,
                )  # fmt: skip

    def _rows_of(self, names: Iterable[str]) -> dict[str, int]:
        return {name: int(read_stats(self.clip, name)["counts"]["rows_out"]) for name in names}

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the plan and the trained indexes; for shards that came later, their parts."""
        rows = self._rows_of(Path(path).stem for path in shard.inputs)
        earlier = read_plan(self.folder)["parts"] if _plan_files(self.folder) else []
        parts = cut_parts(rows, self.rows_per_part, earlier)
        for part in parts:
            part["digests"] = [shard_digest([self.raw, self.clip], name) for name in part["shards"]]
        plan: dict[str, Any] = {"parts": parts, "rows": sum(rows.values())}
        if not earlier:
            plan |= self._trained(rows, temporary)
        text = json.dumps(plan, indent=2, ensure_ascii=False) + "\n"
        (temporary / (shard.name + _SUFFIX)).write_text(text, "utf-8")
        return Counts(rows_in=plan["rows"], rows_out=plan["rows"])

    def _trained(self, rows: dict[str, int], temporary: Path) -> dict[str, Any]:
        """Writes the trained indexes; the model of the embeddings, and what was chosen for each modality."""
        faiss = load_faiss()

        model, modalities, first = model_record(self.clip), {}, next(iter(rows))
        for modality in MODALITIES:
            source = source_of(self.clip, model, modality)
            if not source.exists(first):
                continue
            dim = source.read_shard(first)[1].shape[1]
            choice = choose_index(
                sum(rows.values()),
                dim,
                exact_rows=self.exact_rows,
                memory_budget_gb=self.memory_budget_gb,
            )
            logger.info("index of %ss: %s", modality, choice.in_words())
            sample = _sample(choice, rows, source)
            faiss.write_index(train(choice, sample), str(temporary / f"plan.{modality}.faiss"))
            modalities[modality] = choice.to_json()
        return {"model": model, "modalities": modalities}


def _sample(choice: IndexChoice, rows: dict[str, int], source: EmbeddingSource) -> np.ndarray:
    """[train_rows, D] float32 unit vectors, from every shard its share; the same ones each time."""
    generator, total = np.random.default_rng(0), max(sum(rows.values()), 1)
    parts = [np.empty((0, choice.dim), np.float32)]
    for name, count in rows.items():
        share = min(count, -(-choice.train_rows * count // total))
        if share == 0:
            continue
        values = source.read_shard(name)[1]
        check_width(source.paths(name)[0], values, choice.dim)
        chosen = values[np.sort(generator.choice(len(values), min(share, len(values)), replace=False))]
        parts.append(unit(chosen[usable(chosen)]))
    return np.concatenate(parts)


def check_width(path: Path, values: np.ndarray, dim: int) -> None:
    """Raises DataError for embeddings of another width than the first shard's."""
    if values.shape[1] != dim:
        raise DataError(
            f"the embeddings in {path} have {values.shape[1]} dimensions, those of the first shard {dim}: they are "
            "of two models; delete tags/clip and run stage=tag again"
        )


def cut_parts(
    rows: dict[str, int], rows_per_part: int, earlier: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Consecutive shards together, up to `rows_per_part` rows: name, shards, base (number of its first row), rows.

    Args:
        rows: shard -> its rows.
        rows_per_part: at most, but for a shard that has more.
        earlier: parts that there are already: they stay as they are, and the new ones come after them.
    """
    parts: list[dict[str, Any]] = []
    for name, count in rows.items():
        if parts and parts[-1]["rows"] + count <= rows_per_part:
            parts[-1]["shards"].append(name)
            parts[-1]["rows"] += count
            continue
        before = [*earlier[-1:], *parts[-1:]]
        end = before[-1]["base"] + before[-1]["rows"] if before else 0
        base = -(-end // _ALIGNMENT) * _ALIGNMENT
        number = len(earlier) + len(parts)
        parts.append({"name": f"{number:06d}", "shards": [name], "base": base, "rows": count})
    return parts


def model_record(clip: Path) -> dict[str, Any]:
    """The model of the embeddings, as the clip tagger's manifest has it, and the text towers that match it.

    Returns:
        name, model, pretrained, weights_sha256 of the first model, and `towers`: name -> text_model (null: the model's
        own text tower) of each entry with the same image tower.
    """
    models = read_settings(clip)["models"]
    first = models[0]
    image_tower = ("model", "pretrained", "weights_sha256")
    return {
        **{key: first[key] for key in ("name", *image_tower)},
        "towers": {
            each["name"]: each["text_model"]
            for each in models
            if all(each[key] == first[key] for key in image_tower)
        },
    }


def source_of(clip: Path, model: dict[str, Any], modality: str) -> EmbeddingSource:
    """The embeddings of one modality of the model that a plan records."""
    names = (model["name"],) if modality == "image" else tuple(model["towers"])
    return EmbeddingSource(clip, modality, names)


def read_plan(folder: Path) -> dict[str, Any]:
    """What the stage with this folder has planned, the first time and since.

    Returns:
        model, modalities, parts and rows of all times, `planned_for`, the rows of the first time, which the index was
        chosen and trained for, and `times`, how often it was planned. A part has name, shards, base, rows, `digests` of
        its shards and `plan`, the file that it is from.

    Raises:
        DataError: there is no plan, or it is damaged.
    """
    files = _plan_files(folder) or [folder / (_plan_name(0) + _SUFFIX)]
    plans = [read_json(path) for path in files]
    parts = [
        {**part, "plan": str(path)} for path, plan in zip(files, plans, strict=True) for part in plan["parts"]
    ]
    return {
        **plans[0],
        "parts": parts,
        "rows": sum(plan["rows"] for plan in plans),
        "planned_for": plans[0]["rows"],
        "times": len(plans),
    }


def _plan_name(number: int) -> str:
    return f"plan-{number:04d}" if number else "plan"


def _plan_files(folder: Path) -> list[Path]:
    """The plans that are finished, the first one first."""
    files: list[Path] = []
    while is_finished(folder, _plan_name(len(files))):
        files.append(folder / (_plan_name(len(files)) + _SUFFIX))
    return files
