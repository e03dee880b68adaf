"""Scores a model on one or more gloo ranks, each a process of its own.

Tests import this file under its bare name, which the ranks know it by.
"""

import os
import signal
from pathlib import Path
from typing import Any

import evaluate.resume
from crawl2clip.distributed import World
from crawl2clip.encoder import load_encoder
from evaluate.cache import FeatureCache
from evaluate.config import SuiteConfig
from evaluate.data.datasets import open_datasets
from evaluate.results import Result, write_result
from evaluate.resume import ResultStore
from evaluate.run import evaluate as evaluated


def scores(world: World, suite: SuiteConfig, data_root: Path, export: Path) -> dict[tuple[str, Any], Any]:
    """What this rank measured, by data set and task."""
    results = evaluated(
        load_encoder(None, str(export)),
        open_datasets(suite.datasets, data_root=data_root),
        world=world,
        image_batch_size=8,
        text_batch_size=8,
        few_shot=suite.few_shot,
        show_progress=False,
    )
    return {(r.dataset, r.task): (r.metrics, r.groups, r.details, r.num_samples) for r in results}


def stored_results(
    world: World, suite: SuiteConfig, data_root: Path, export: Path, output_dir: Path
) -> list[Result]:
    """Results kept in a folder with their predictions, and features in its `cache`."""
    return evaluated(
        load_encoder(None, str(export)),
        open_datasets(suite.datasets, data_root=data_root),
        world=world,
        image_batch_size=8,
        text_batch_size=8,
        few_shot=suite.few_shot,
        cache=FeatureCache(output_dir / "cache"),
        store=ResultStore(output_dir, save_predictions=True),
        pretrained=str(export),
        show_progress=False,
    )


def killed_at_result(
    world: World, suite: SuiteConfig, data_root: Path, export: Path, output_dir: Path, number: int
) -> None:
    """The same, ended by kill -9 between the predictions and the JSON of a result."""
    written = []

    def write(result: Result, folder: Path) -> Path:
        if len(written) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(result)
        return write_result(result, folder)

    evaluate.resume.write_result = write  # this process runs nothing else
    stored_results(world, suite, data_root, export, output_dir)
