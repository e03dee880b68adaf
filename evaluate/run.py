"""The evaluation: encode each data set once, let every task be matrix algebra on the features.

`evaluate` is the library entry. It takes an encoder, so the command, the in-loop check and anyone's model
go through the same lines; it runs on every rank, and every rank gets the same results.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crawl2clip.distributed import World
from crawl2clip.encoder import Encoder
from evaluate.cache import FeatureCache
from evaluate.cells import Cell, Model, due, filled, plan_of, prompts_due
from evaluate.data.config import TRAINED_TASKS
from evaluate.data.datasets import EvaluationDataset, Task
from evaluate.features import ImageFeatures, encode_images
from evaluate.ranks import main_decides
from evaluate.results import Result
from evaluate.resume import ResultStore
from evaluate.scoring import SCORERS, Material, TaskSettings
from evaluate.sweep import Sweep, num_images_of
from evaluate.tasks.few_shot import FewShotConfig
from evaluate.tasks.knn import KnnConfig
from evaluate.tasks.linear_probe import LinearProbeConfig
from evaluate.texts import TextFeatures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """What every data set of a run shares."""

    model: Model
    settings: TaskSettings
    world: World
    encode: Callable[..., ImageFeatures]
    texts: TextFeatures
    store: ResultStore | None


def evaluate(
    encoder: Encoder,
    datasets: Sequence[EvaluationDataset],
    *,
    world: World,
    image_batch_size: int = 128,
    text_batch_size: int = 256,
    num_workers: int = 0,
    max_bad_images: int = 0,
    few_shot: FewShotConfig | None = None,
    linear_probe: LinearProbeConfig | None = None,
    knn: KnnConfig | None = None,
    cache: FeatureCache | None = None,
    store: ResultStore | None = None,
    sweep: Sweep | None = None,
    pretrained: str | None = None,
    record: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    show_progress: bool = True,
) -> list[Result]:
    """Scores an encoder on data sets; a collective call that gives every rank the same results.

    Args:
        encoder: on this rank's device; its model's training mode is left as it was.
        datasets: from `open_datasets`, the same on every rank; may be used again for the next checkpoint.
        world: the ranks that share the encoding. The results do not depend on how many there are.
        image_batch_size: images a forward pass.
        text_batch_size: texts a forward pass.
        num_workers: processes a rank that decode images.
        max_bad_images: undecodable images allowed in a split; they are left out and counted.
        few_shot: shots and seeds, for data sets with that task.
        linear_probe: solver and features of the linear probe; None: logistic regression on
            projected features.
        knn: neighbours and temperature, for data sets with that task.
        cache: features kept on disk; None for a model in training, whose features are never met again.
        store: results kept on disk as soon as they are there, and taken from there when nothing they depend on has
            changed; needs `pretrained`.
        sweep: counts data sets over several calls; None counts this call's.
        pretrained: what the weights are called, for the record and for published values; None for a live model,
            whose weights and data are not hashed either, since that takes seconds.
        record: stored in each result as its provenance.
        notes: stored in each result beside the notes of its task.
        show_progress: whether rank 0 draws bars and logs how far the sweep is.

    Raises:
        DataError: undecodable images, labels that fit no class, or features that are not finite.
        ConfigError: a task without its settings, or features before the projection of a model that has none.
    """
    settings = TaskSettings(few_shot=few_shot, linear_probe=linear_probe, knn=knn)
    settings.check(datasets, encoder)
    model = Model(encoder, pretrained, record or {}, notes, max_bad_images)
    shared = {"world": world, "cache": cache, "show_progress": show_progress}
    texts = TextFeatures(encoder, batch_size=text_batch_size, **shared)
    encode = functools.partial(
        encode_images, encoder, batch_size=image_batch_size, num_workers=num_workers,
        max_bad_images=max_bad_images, **shared,
    )  # fmt: skip
    run = _Run(model, settings, world, encode, texts, store)
    plans = main_decides(world, lambda: [plan_of(model, dataset, settings, store) for dataset in datasets])
    texts.add(prompts_due(datasets, plans), "all prompts")
    sweep = sweep or Sweep(len(datasets), num_images_of(datasets))
    results: list[Result] = []
    for dataset, plan in zip(datasets, plans, strict=True):
        results += _results_of(run, dataset, plan)
        if show_progress and world.is_main:
            sweep.finished(dataset.name, num_images_of([dataset]), reused=not due(plan))
    return results


def _results_of(run: _Run, dataset: EvaluationDataset, plan: Sequence[Cell]) -> list[Result]:
    """The results of a data set in the order of its tasks, those on disk as they are."""
    tasks = due(plan)
    if not tasks:
        return [cell.found for cell in plan if cell.found is not None]
    material = Material(dataset, _encoded(run, dataset, tasks), run.model.encoder, run.settings)
    return [cell.found or _scored(run, cell, material) for cell in plan]


def _encoded(run: _Run, dataset: EvaluationDataset, tasks: Sequence[Task]) -> dict[str, ImageFeatures]:
    """Features of the splits that the tasks read, each image in one pass however many tasks there are."""
    learns = any(task in TRAINED_TASKS for task in tasks)
    penultimate = run.settings.probe_is_penultimate and Task.linear_probe in tasks
    splits = {"test": dataset.test, "train": dataset.train, "val": dataset.val}
    return {
        name: run.encode(split, penultimate=penultimate)
        for name, split in splits.items()
        if split is not None and (name == "test" or learns)
    }


def _scored(run: _Run, cell: Cell, material: Material) -> Result:
    """The result of a cell: all ranks encode its texts, rank 0 scores and writes."""
    logger.info("%s of %s", cell.task.value, material.dataset.name)
    scorer = SCORERS[cell.task]
    run.texts.add(scorer.texts(material), material.dataset.name)

    def scored() -> Result:
        score = scorer.score(material, run.texts.of)
        result = filled(cell, material, score, run.model.notes)
        if run.store is not None:
            run.store.keep(result, score, material.test)
        return result

    return main_decides(run.world, scored)
