"""A cell of the table of results: one model, one data set, one task; what is known of it before and after scoring."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crawl2clip.encoder import Encoder
from evaluate.data.datasets import EvaluationDataset, Task
from evaluate.results import Result, Score
from evaluate.resume import Identity, ResultStore, identity_of
from evaluate.scoring import Material, TaskSettings, prompts_of

PROMPTED_TASKS = (Task.zero_shot, Task.multi_label)


@dataclass(frozen=True)
class Model:
    """The model of a run and what is written beside its numbers."""

    encoder: Encoder
    pretrained: str | None  # what the weights are called; None for a live model, which is not hashed
    record: dict[str, Any]
    notes: Sequence[str]
    max_bad_images: int


@dataclass(frozen=True)
class Cell:
    """One task of one data set."""

    task: Task
    blank: Result  # its record before anything is measured
    found: Result | None  # its result, when that is on disk already


def plan_of(
    model: Model, dataset: EvaluationDataset, settings: TaskSettings, store: ResultStore | None
) -> list[Cell]:
    """The cells of a data set; hashes weights and data unless the model is a live one."""
    cells = []
    for task in dataset.tasks:
        identity = None
        if model.pretrained is not None:
            identity = identity_of(
                model.encoder,
                dataset,
                task,
                settings.of(task),
                pretrained=model.pretrained,
                max_bad_images=model.max_bad_images,
            )
        blank = _blank(model, dataset, task, identity)
        cells.append(Cell(task, blank, store.find(blank) if store is not None and identity else None))
    return cells


def due(plan: Sequence[Cell]) -> list[Task]:
    """The tasks that have to be scored."""
    return [cell.task for cell in plan if cell.found is None]


def prompts_due(datasets: Sequence[EvaluationDataset], plans: Sequence[list[Cell]]) -> list[str]:
    """Prompts of all data sets at once, so that those of like length share batches whatever set they are of."""
    prompts: dict[str, None] = {}
    for dataset, plan in zip(datasets, plans, strict=True):
        if any(task in PROMPTED_TASKS for task in due(plan)):
            prompts |= dict.fromkeys(prompts_of(dataset))
    return list(prompts)


def filled(cell: Cell, material: Material, score: Score, notes: Sequence[str]) -> Result:
    """The record of a cell with what was measured."""
    has_classes = material.test.labels is not None or material.test.targets is not None
    return dataclasses.replace(
        cell.blank,
        # Few-shot has a headline of its own, for its largest k.
        metric=list(score.metrics)[-1] if cell.task is Task.few_shot else cell.blank.metric,
        metrics=score.metrics,
        groups=score.groups,
        num_samples=len(material.test.features),
        num_bad_images=len(material.test.faults),
        num_classes=material.num_classes if has_classes else None,
        details=score.details,
        notes=[*score.notes, *notes],
    )


def _blank(model: Model, dataset: EvaluationDataset, task: Task, identity: Identity | None) -> Result:
    return Result(
        model=model.encoder.name,
        pretrained=model.pretrained,
        precision=model.encoder.precision,
        weights_sha256=identity.weights_sha256 if identity else None,
        data_sha256=identity.data_sha256 if identity else None,
        identity_sha256=identity.sha256 if identity else None,
        dataset=dataset.name,
        split=dataset.test_split,
        task=task.value,
        metric=dataset.metric,
        metrics={},
        num_samples=0,
        prompts_sha256=dataset.prompts.sha256 if dataset.prompts and task in PROMPTED_TASKS else None,
        provenance=model.record,
    )
