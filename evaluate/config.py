"""Settings of `python -m evaluate`."""

import importlib.util
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.tasks.few_shot import FewShotConfig


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
    average: bool = False  # add the plain mean of the headlines; all of them must be the same metric
    few_shot: FewShotConfig | None = None  # needed by data sets with the few_shot task

    def __post_init__(self) -> None:
        if self.datasets == MISSING or any(entry.tasks == MISSING for entry in self.datasets.values()):
            return  # an incomplete config names its missing settings elsewhere
        if not self.datasets:
            raise ConfigError(f"suite {self.name!r} has no data sets; add some under suite.datasets")
        wants = [name for name, entry in self.datasets.items() if Task.few_shot in entry.tasks]
        if wants and self.few_shot is None:
            raise ConfigError(
                f"suite {self.name!r}: {', '.join(wants)} have the few_shot task, but suite.few_shot is not set; "
                "give its shots, seeds and one_shot_l2"
            )
        headlines = {entry.metric for entry in self.datasets.values()}
        several = [name for name, entry in self.datasets.items() if len(entry.tasks) != 1]
        if self.average and (len(headlines) > 1 or several):
            raise ConfigError(
                f"suite {self.name!r} asks for an average over different things (metrics: "
                f"{', '.join(sorted(headlines))}; more than one task: {', '.join(several) or 'none'}); give every data "
                "set one task and the same metric, or set suite.average=false"
            )


@dataclass(kw_only=True)
class EvaluateConfig:
    """One run of the command: one model, one suite."""

    model: ModelConfig | None = (
        None  # open_clip name or a choice of configs/model; an export folder knows its own
    )
    pretrained: str = MISSING  # open_clip tag, .pt or .safetensors file, or export folder
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    data_root: str = MISSING  # folder that the data sets' paths start from
    output_dir: str = MISSING  # results/, results.md, results.csv and config.yaml are written here
    cache_dir: str | None = None  # encoded features are kept here; null: nowhere
    precision: PrecisionConfig = MISSING
    device: Device = MISSING
    image_batch_size: int = (
        MISSING  # images a forward pass on one rank; does not depend on the number of ranks
    )
    text_batch_size: int = MISSING  # texts a forward pass on one rank
    num_workers: int = MISSING  # processes a rank that decode images; 0 decodes in the main one
    max_bad_images: int = MISSING  # a split: images that may fail to decode; they are left out and counted
    download: bool = False  # whether CLIP_benchmark's builders may fetch data sets

    def __post_init__(self) -> None:
        for name, least in (
            ("image_batch_size", 1),
            ("text_batch_size", 1),
            ("num_workers", 0),
            ("max_bad_images", 0),
        ):
            value = getattr(self, name)
            if value != MISSING and value < least:
                raise ConfigError(f"{name} is {value}; give {least} or more")


def register_zoo() -> None:
    """Makes `model=<name>` work for every open_clip model, by one option of the config group `model` each.

    `model` is a group (configs/model), and Hydra takes `model=x` for a choice of that group. The names are
    those of the package's files, so that open_clip, which takes seconds to import, is not.
    """
    spec = importlib.util.find_spec("open_clip")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for file in sorted(Path(folder, "model_configs").glob("*.json")):
            ConfigStore.instance().store(group="model", name=file.stem, node={"name": file.stem})
