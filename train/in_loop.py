"""Evaluation inside the training loop: the `evaluate` library on the live model, on all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import MISSING
from torch import nn

from crawl2clip import storage
from crawl2clip.distributed import World
from crawl2clip.encoder import encoder_of
from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig
from evaluate.averages import averages_of
from evaluate.config import SuiteConfig
from evaluate.data.datasets import EvaluationDataset, bring_datasets, open_datasets
from evaluate.run import evaluate
from train.model.precision import PrecisionConfig, encoder_precision


@dataclass(kw_only=True)
class EvaluationConfig:
    """When the live model is scored, and on what."""

    every_steps: int = MISSING  # optimizer steps between evaluations; the last step is always scored
    suite: SuiteConfig | None = (
        None  # a choice of configs/suite (suite@evaluation.suite=...); null scores nothing
    )
    data_root: str = MISSING  # folder that the data sets' paths start from, or s3://bucket/folder
    image_batch_size: int = MISSING  # images a forward pass on one rank
    num_workers: int = MISSING  # processes a rank that decode images
    max_bad_images: int = MISSING  # undecodable images allowed in a split

    def __post_init__(self) -> None:
        for name, least in (
            ("every_steps", 1),
            ("image_batch_size", 1),
            ("num_workers", 0),
            ("max_bad_images", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluation.{name} is {getattr(self, name)}; give {least} or more")


def open_evaluation(config: EvaluationConfig, world: World) -> list[EvaluationDataset]:
    """The data sets to score on, opened and checked before training starts; none without a suite. Collective.

    Raises:
        ConfigError, DataError: a data set is missing or does not fit its task.
    """
    if config.suite is None:
        return []
    data_root = storage.local_path(config.data_root)
    bring_datasets(config.suite.datasets, data_root, world)
    return open_datasets(config.suite.datasets, data_root=data_root)


def evaluate_live(
    model: nn.Module,
    model_config: ModelConfig,
    datasets: Sequence[EvaluationDataset],
    config: EvaluationConfig,
    precision: PrecisionConfig,
    world: World,
) -> dict[str, float]:
    """Scores of the model as it is: "evaluation/<data set>/<task>/<metric>" -> value; every rank takes part."""
    if not datasets or config.suite is None:
        return {}
    results = evaluate(
        encoder_of(model, model_config, device=world.device, precision=encoder_precision(precision.name)),
        datasets,
        world=world,
        image_batch_size=config.image_batch_size,
        num_workers=config.num_workers,
        max_bad_images=config.max_bad_images,
        few_shot=config.suite.few_shot,
        linear_probe=config.suite.linear_probe,
        knn=config.suite.knn,
        show_progress=False,
    )
    results += [result for average in config.suite.averages for result in averages_of(average, results)]
    return {f"evaluation/{name}": value for result in results for name, value in result.scalars().items()}
