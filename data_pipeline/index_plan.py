"""The first step of the index stage: what will be built. It chooses the index, trains it, and cuts the run into parts.

Writes `plan.plan.json` and for each modality the trained, empty index `plan.<modality>.faiss`.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip.errors import DataError
from crawl2clip.files import read_json
from data_pipeline.index_choice import IndexChoice, choose_index, train
from data_pipeline.index_embeddings import MODALITIES, EmbeddingSource, unit, usable
from data_pipeline.index_faiss import load_faiss
from data_pipeline.stage import MANIFEST, Counts, Shard, Stage, finished_shards, read_stats

logger = logging.getLogger(__name__)

PLAN_NAME = "plan.plan.json"
_ALIGNMENT = (
    64  # rows; a part starts at a multiple of it, so that its bits in a filter's bit map start at a byte
)


@dataclass
class PlanStage(Stage):
    """Plans the index of a run and trains it."""

    name: str
    folder: Path
    settings: dict[str, Any]
    clip: Path  # the clip tagger's folder
    exact_rows: int
    memory_budget_gb: float
    rows_per_part: int
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One, of all tagged shards."""
        names = finished_shards(self.clip)
        return [Shard("plan", tuple(str(self.clip / f"{name}.parquet") for name in names))] if names else []

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the plan and the trained indexes."""
        faiss = load_faiss()

        names = [Path(path).stem for path in shard.inputs]
        rows = {name: int(read_stats(self.clip, name)["counts"]["rows_out"]) for name in names}
        model = model_record(self.clip)
        plan: dict[str, Any] = {
            "model": model,
            "parts": cut_parts(rows, self.rows_per_part),
            "rows": sum(rows.values()),
            "modalities": {},
        }
        for modality in MODALITIES:
            source = source_of(self.clip, model, modality)
            if not source.exists(names[0]):
                continue
            dim = source.read_shard(names[0])[1].shape[1]
            choice = choose_index(
                plan["rows"], dim, exact_rows=self.exact_rows, memory_budget_gb=self.memory_budget_gb
            )
            logger.info("index of %ss: %s", modality, choice.in_words())
            sample = _sample(choice, rows, source)
            faiss.write_index(train(choice, sample), str(temporary / f"plan.{modality}.faiss"))
            plan["modalities"][modality] = choice.to_json()
        (temporary / PLAN_NAME).write_text(json.dumps(plan, indent=2, ensure_ascii=False) + "\n", "utf-8")
        return Counts(rows_in=plan["rows"], rows_out=plan["rows"])


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


def cut_parts(rows: dict[str, int], rows_per_part: int) -> list[dict[str, Any]]:
    """Consecutive shards together, up to `rows_per_part` rows: name, shards, base (number of its first row), rows."""
    parts: list[dict[str, Any]] = []
    for name, count in rows.items():
        if parts and parts[-1]["rows"] + count <= rows_per_part:
            parts[-1]["shards"].append(name)
            parts[-1]["rows"] += count
            continue
        end = parts[-1]["base"] + parts[-1]["rows"] if parts else 0
        base = -(-end // _ALIGNMENT) * _ALIGNMENT
        parts.append({"name": f"{len(parts):06d}", "shards": [name], "base": base, "rows": count})
    return parts


def model_record(clip: Path) -> dict[str, Any]:
    """The model of the embeddings, as the clip tagger's manifest has it, and the text towers that match it.

    Returns:
        name, model, pretrained, weights_sha256 of the first model, and `towers`: name -> text_model (null: the model's
        own text tower) of each entry with the same image tower.
    """
    models = read_json(clip / MANIFEST)["settings"]["models"]
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
    """The plan that the stage with this folder wrote: model, parts, rows, modalities."""
    return read_json(folder / PLAN_NAME)
