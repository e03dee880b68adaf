"""What a run knows of the model it exports, for the model card."""

import re
from collections.abc import Mapping
from pathlib import Path

from crawl2clip.model_card import CardScore, ModelCard
from evaluate.data.datasets import Task
from train.data.data_config import DataConfig
from train.monitoring.metrics import METRICS_NAME, read_metrics

# Data sets have slashes in their names, tasks have not.
_SCORE = re.compile(rf"evaluation/(.+)/({'|'.join(task.value for task in Task)})/(.+)")


def card_of_run(run_folder: Path, data: DataConfig, *, num_samples: int, samples_seen: int) -> ModelCard:
    """The card of a finished run; settings and scores are read from its folder, so a resumed run has them all.

    Args:
        run_folder: with config.yaml and metrics.jsonl.
        data: what it trained on.
        num_samples: usable samples of the data.
        samples_seen: samples drawn by the end.
    """
    settings = run_folder / "config.yaml"
    scored = [record for record in read_metrics(run_folder / METRICS_NAME) if _scores_of(record)]
    return ModelCard(
        data=", ".join(f"{source.shards}" for source in data.source_list),
        num_samples=num_samples,
        samples_seen=samples_seen,
        config=settings.read_text(encoding="utf-8") if settings.is_file() else None,
        scores=_scores_of(scored[-1]) if scored else (),
        scored_step=scored[-1].get("step") if scored else None,
    )


def _scores_of(record: Mapping[str, object]) -> list[CardScore]:
    """The scores in a record of metrics.jsonl, "evaluation/<data set>/<task>/<metric>[/<group>]"."""
    found = []
    for name, value in record.items():
        match = _SCORE.fullmatch(name)
        if match is not None and isinstance(value, (int, float)):
            found.append(CardScore(dataset=match[1], task=match[2], metric=match[3], value=float(value)))
    return found
