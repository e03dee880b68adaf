"""Settings of `python -m evaluate`."""

import importlib.util
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from crawl2clip import storage
from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig
from evaluate.averages import AverageConfig, check_averages
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.tasks.few_shot import FewShotConfig
from evaluate.tasks.knn import KnnConfig
from evaluate.tasks.linear_probe import LinearProbeConfig


class Precision(str, Enum):
    """Arithmetic of the two towers; features and scores are float32 in any case."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Device(str, Enum):
    """Where the towers run."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass(kw_only=True)
class PrecisionConfig:
    """A choice of configs/precision."""

    name: Precision = MISSING


@dataclass(kw_only=True)
class SuiteConfig:
    """Data sets that are scored together."""

    name: str = MISSING
    datasets: dict[str, DatasetConfig] = MISSING  # by name; CLIP_benchmark's names find published values
    averages: list[AverageConfig] = field(default_factory=list)  # means over data sets, each with its metric
    few_shot: FewShotConfig | None = None  # needed by data sets with the few_shot task
    linear_probe: LinearProbeConfig | None = None  # null: logistic regression on projected features
    knn: KnnConfig | None = None  # needed by data sets with the knn task

    def __post_init__(self) -> None:
        if self.datasets == MISSING or any(entry.tasks == MISSING for entry in self.datasets.values()):
            return  # an incomplete config names its missing settings elsewhere
        if not self.datasets:
            raise ConfigError(f"suite {self.name!r} has no data sets; add some under suite.datasets")
        self._check_settings(Task.few_shot, self.few_shot, "its shots, seeds and one_shot_l2")
        self._check_settings(Task.knn, self.knn, "its num_neighbors and temperature")
        check_averages(self.averages, self.datasets, self.name)

    def _check_settings(self, task: Task, settings: object, what: str) -> None:
        wants = [name for name, entry in self.datasets.items() if task in entry.tasks]
        if wants and settings is None:
            raise ConfigError(
                f"suite {self.name!r}: {', '.join(wants)} have the {task.value} task, but suite.{task.value} is not "
                f"set; give {what}"
            )


@dataclass(kw_only=True)
class ModelChoice:
    """One of several models of a run."""

    model: str | None = None  # open_clip name; an export folder knows its own
    pretrained: str = (
        MISSING  # open_clip tag, .pt or .safetensors file, or export folder; the latter at s3:// too
    )


@dataclass(kw_only=True)
class EvaluateConfig:
    """One run of the command: one or several models, one suite."""

    model: ModelConfig | None = (
        None  # open_clip name or a choice of configs/model; an export folder knows its own
    )
    pretrained: str | None = (
        None  # open_clip tag, .pt or .safetensors file, or export folder; those at s3:// too
    )
    models: list[ModelChoice] = field(
        default_factory=list
    )  # instead of the two above: several models, one after another
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    data_root: str = MISSING  # folder that the data sets' paths start from
    output_dir: str = MISSING  # results/, results.md, .csv, .html and config.yaml are written here
    cache_dir: str | None = None  # encoded features are kept here; null: nowhere
    cache_limit_gb: float | None = None  # the longest unused features beyond it are deleted; null: no limit
    save_predictions: bool = False  # keep predictions by sample, which `evaluate compare` needs
    precision: PrecisionConfig = MISSING
    device: Device = MISSING
    image_batch_size: int = (
        MISSING  # images a forward pass on one rank; does not depend on the number of ranks
    )
    text_batch_size: int = MISSING  # texts a forward pass on one rank
    num_workers: int = MISSING  # processes a rank that decode images; 0 decodes in the main one
    max_bad_images: int = MISSING  # a split: images that may fail to decode; they are left out and counted
    download: bool = False  # whether data sets may be fetched

    def __post_init__(self) -> None:
        for name, least in (
            ("image_batch_size", 1),
            ("text_batch_size", 1),
            ("num_workers", 0),
            ("max_bad_images", 0),
            ("cache_limit_gb", 0),
        ):
            value = getattr(self, name)
            if value is not None and value != MISSING and value < least:
                raise ConfigError(f"{name} is {value}; give {least} or more")
        self._check_places()
        self._check_models()

    def _check_places(self) -> None:
        if self.cache_dir is not None and self.cache_dir.startswith(storage.SCHEME):
            raise ConfigError(
                f"cache_dir is {self.cache_dir}; features are kept in a folder of this machine: give one, or null to "
                "keep none"
            )
        if self.download and self.data_root.startswith(storage.SCHEME):
            raise ConfigError(
                f"download=true with data_root={self.data_root}: data sets are fetched to a folder of this machine; "
                "give a local data_root and copy it to the store afterwards, or leave download=false"
            )

    def _check_models(self) -> None:
        if self.models and (self.pretrained is not None or self.model is not None):
            raise ConfigError(
                f"models names {len(self.models)} models, and model or pretrained another; give either models or the "
                "other two"
            )
        if not self.models and self.pretrained is None:
            raise ConfigError(
                "no weights are named; give pretrained=<open_clip tag, .pt or .safetensors file, or export folder> "
                "(with model=<name>, which an export folder knows itself), or models=[{model: ..., pretrained: ...}]"
            )
        named = [(choice.model, choice.pretrained) for choice in self.models]
        twice = next((entry for entry in named if named.count(entry) > 1), None)
        if twice is not None:
            raise ConfigError(
                f"models names {twice[0] or ''} {twice[1]} more than once; name each model once"
            )


def register_zoo() -> None:
    """Makes `model=<name>` work for every open_clip model, by one option of the config group `model` each.

    `model` is a group (configs/model), and Hydra takes `model=x` for a choice of that group. The names are
    those of the package's files, so that open_clip, which takes seconds to import, is not.
    """
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for file in sorted(Path(folder, "model_configs").glob("*.json")):
            ConfigStore.instance().store(group="model", name=file.stem, node={"name": file.stem})
