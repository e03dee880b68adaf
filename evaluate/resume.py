"""Results that are on disk already: found again by everything that their numbers depend on.

The identity of a result is a hash over weights, data, prompts, settings and RESULT_FORMAT. A run that finds a result
of that identity in its output folder takes it as it is, so a sweep that was killed goes on where it stopped.
Batch sizes, workers and ranks are no part of it: they change features by rounding at most.
"""

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip import storage
from crawl2clip.encoder import Encoder
from crawl2clip.errors import DataError
from evaluate.data.config import TRAINED_TASKS
from evaluate.data.datasets import EvaluationDataset, Task
from evaluate.feature_keys import model_key, preprocessing_hash, tokenizer_hash
from evaluate.features import ImageFeatures
from evaluate.results import Result, Score, hash_of, read_result, result_path, save_predictions, write_result

RESULT_FORMAT = 1  # raise when the same data and weights would give another number, or another form of it
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a result depends on."""

    sha256: str
    weights_sha256: str
    data_sha256: str  # of the scored split


def identity_of(
    encoder: Encoder,
    dataset: EvaluationDataset,
    task: Task,
    settings: Any,
    *,
    pretrained: str,
    max_bad_images: int,
) -> Identity:
    """Identity of the result that a task will give; reads all weights and data the first time.

    Args:
        encoder: the model.
        dataset: with its splits' fingerprints.
        task: one of the data set's.
        settings: the task's dataclass of settings, or None.
        pretrained: what the weights are called: it finds published values.
        max_bad_images: how many images a split may lose.
    """
    splits = [dataset.test]
    if task in TRAINED_TASKS:
        splits += [split for split in (dataset.train, dataset.val) if split is not None]
    fingerprints = [split.fingerprint() for split in splits]
    about = {
        "format": RESULT_FORMAT,
        "model": [encoder.name, pretrained, model_key(encoder), preprocessing_hash(encoder)],
        "tokenizer": tokenizer_hash(encoder),
        "data": [dataset.name, dataset.test_split, fingerprints],
        "classes": [dataset.num_classes, dataset.allow_empty_classes, dict(dataset.groups)],
        "shared_captions": dataset.shared_captions,
        "sample_groups": [dataset.group_by, dataset.group_names, dataset.ignored_groups],
        "prompts": dataset.prompts.sha256 if dataset.prompts and task not in TRAINED_TASKS else None,
        "task": [task.value, dataset.metric, dataclasses.asdict(settings) if settings is not None else None],
        "max_bad_images": max_bad_images,
    }
    return Identity(hash_of(about), encoder.weights_sha256, fingerprints[0])


class ResultStore:
    """The results in an output folder; each is written as soon as it is there."""

    def __init__(self, output_dir: Path, *, save_predictions: bool = False) -> None:
        """Looks at nothing yet.

        Args:
            output_dir: its results/ is read and written.
            save_predictions: whether predictions by sample are kept, and missed in results that lack them.
        """
        self._output_dir, self._save_predictions = output_dir, save_predictions

    def find(self, wanted: Result) -> Result | None:
        """The result on disk of the same identity, or None.

        Args:
            wanted: its model, data set, task and identity; the rest may be empty.
        """
        path = result_path(wanted, self._output_dir)
        if not path.is_file():
            return None
        try:
            found = read_result(path)
        except DataError as error:
            logger.warning("%s; scoring it again", error)
            return None
        if found.identity_sha256 is None or found.identity_sha256 != wanted.identity_sha256:
            logger.info("%s is of other weights, data or settings, and will be replaced", path)
            return None
        if self._save_predictions and not path.with_suffix(".npz").is_file():
            logger.info("%s has no predictions by sample; scoring it again", path)
            return None
        logger.info("%s of %s is taken from %s", wanted.task, wanted.dataset, path)
        return found

    def keep(self, result: Result, score: Score, scored: ImageFeatures) -> None:
        """Writes a result, and its predictions first, so that a result on disk, or in a store, is complete.

        Args:
            result: made of the score.
            score: with its predictions.
            scored: the split that it is of; what it calls its samples, and their classes, are saved too.
        """
        if self._save_predictions and score.predictions:
            named = {"keys": np.asarray(scored.keys)} if scored.keys is not None else {}
            if scored.labels is not None:
                named["label"] = scored.labels.numpy()
            storage.publish(save_predictions(result, {**score.predictions, **named}, self._output_dir))
        storage.publish(write_result(result, self._output_dir))
