"""Scores a model on one or more gloo ranks, each a process of its own.

Tests import this file under its bare name, which the ranks know it by.
"""

from pathlib import Path
from typing import Any

from crawl2clip.distributed import World
from crawl2clip.encoder import load_encoder
from evaluate.config import SuiteConfig
from evaluate.data.datasets import open_datasets
from evaluate.run import evaluate


def scores(world: World, suite: SuiteConfig, data_root: Path, export: Path) -> dict[tuple[str, Any], Any]:
    """What this rank measured, by data set and task."""
    results = evaluate(
        load_encoder(None, str(export)),
        open_datasets(suite.datasets, data_root=data_root),
        world=world,
        image_batch_size=8,
        text_batch_size=8,
        few_shot=suite.few_shot,
        show_progress=False,
    )
    return {(r.dataset, r.task): (r.metrics, r.groups, r.details, r.num_samples) for r in results}
