"""The settings of `python -m train`, and the checks that need more than one of them.

Each component's settings are defined beside the component. `validate` runs before any process group, data
or GPU is touched; `make_plan` is the one place that derives numbers from settings.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig, architecture_of
from train.augmentation.augment import AugmentConfig
from train.checkpoints.saving import SaveConfig
from train.data.training_data import DataConfig
from train.in_loop import EvaluationConfig
from train.losses.loss import LossConfig, LossName
from train.losses.teacher import check_teacher
from train.model.compute import ComputeConfig
from train.model.ema import EmaConfig
from train.model.precision import PrecisionConfig
from train.monitoring.metrics import LoggingConfig, WandbConfig
from train.monitoring.profiling import ProfileConfig
from train.monitoring.safety import SafetyConfig
from train.monitoring.watchdog import WatchdogConfig
from train.optimization.optimizer import OptimizerConfig
from train.optimization.schedule import ScheduleConfig
from train.preflight import PreflightConfig
from train.stage_plan import plan_stages
from train.stages import Stage, StageConfig, architecture_for
from train.strategies import StrategyConfig, check_combination


@dataclass(kw_only=True)
class DurationConfig:
    """How long a run is and how a step is cut up; exactly one of samples_seen and epochs is given."""

    global_batch_size: int = MISSING  # samples of one optimizer step over all ranks
    accumulation_steps: int = MISSING  # micro-batches a rank's share of the batch is computed in; 1 or more
    samples_seen: int | None = None  # stop when this many samples were drawn
    epochs: int | None = None  # or after so many passes over the data set
    log_every_steps: int = MISSING  # steps between lines of metrics.jsonl

    def __post_init__(self) -> None:
        if (self.samples_seen is None) == (self.epochs is None):
            raise ConfigError(
                f"train.samples_seen is {self.samples_seen} and train.epochs is {self.epochs}; give exactly one of "
                "them and leave the other null"
            )
        names = ("global_batch_size", "accumulation_steps", "samples_seen", "epochs", "log_every_steps")
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name} is {value}; give 1 or more")
        if self.samples_seen is not None and self.samples_seen < self.global_batch_size:
            raise ConfigError(
                f"train.samples_seen={self.samples_seen} is less than one batch of train.global_batch_size="
                f"{self.global_batch_size}; give at least one batch"
            )


@dataclass(kw_only=True)
class TrainConfig:
    """Everything `python -m train` can be told."""

    run_name: str = MISSING  # names the run's folder and its line in wandb
    run_folder: str = (
        MISSING  # where everything of the run is written, s3://bucket/folder too; the same one resumes
    )
    seed: int = MISSING  # of weights, sample order, augmentation and dropout; 0 or more
    device: str = MISSING  # auto, cpu or cuda
    dry_run: bool = MISSING  # check everything that can be checked without training, show it, and stop
    model: ModelConfig = MISSING
    data: DataConfig = MISSING
    augment: AugmentConfig = MISSING
    loss: LossConfig = MISSING
    optimizer: OptimizerConfig = MISSING
    schedule: ScheduleConfig = MISSING
    stages: list[StageConfig] | None = None  # a curriculum in one run; null: one stage with the settings here
    ema: EmaConfig | None = None  # a running average of the weights, evaluated and exported; null: none
    strategy: StrategyConfig = MISSING
    precision: PrecisionConfig = MISSING
    compute: ComputeConfig = MISSING
    train: DurationConfig = MISSING
    checkpoint: SaveConfig = MISSING
    safety: SafetyConfig = MISSING
    watchdog: WatchdogConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    wandb: WandbConfig = MISSING
    logging: LoggingConfig = MISSING
    profile: ProfileConfig | None = None  # a trace of some steps; null: none
    preflight: PreflightConfig = MISSING

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; give 0 or more")


@dataclass(frozen=True)
class Plan:
    """Numbers derived from the settings, the data set and the number of ranks."""

    stages: list[Stage]
    samples_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.stages[-1].last_step

    @property
    def total_samples(self) -> int:
        """Samples that the run sees."""
        return sum(stage.samples for stage in self.stages)

    def samples_seen(self, step: int) -> int:
        """Samples seen when optimizer step `step` is done."""
        return sum(
            max(0, min(step, stage.last_step) - stage.first_step + 1) * stage.global_batch_size
            for stage in self.stages
        )


def image_size_of(model: ModelConfig) -> int:
    """Side in pixels of the images a model takes.

    Raises:
        ConfigError: the model is unknown, or its images are not square.
    """
    size: Any = architecture_of(model)["vision_cfg"].get("image_size", 224)
    if isinstance(size, int):
        return size
    if len(set(size)) > 1:
        raise ConfigError(
            f"model {model.name!r} takes images of {list(size)} pixels; training takes square ones only"
        )
    return size[0]


def model_of(config: TrainConfig, stage: Stage) -> ModelConfig:
    """The model of a stage: the run's, with what the stage changes in its architecture."""
    return dataclasses.replace(
        config.model, architecture=architecture_for(stage, architecture_of(config.model))
    )


def validate(config: TrainConfig, world_size: int) -> None:
    """Checks across components; changes nothing and touches no data.

    Raises:
        ConfigError: settings that do not fit each other or the number of ranks.
    """
    image_size = image_size_of(config.model)
    decode_size = config.data.decode_size
    if decode_size is not None and decode_size < image_size:
        raise ConfigError(
            f"data.decode_size={decode_size} is below the {image_size} pixels that model {config.model.name!r} "
            f"takes; give {image_size} or more, or null for what the model takes"
        )
    check_combination(
        config.strategy,
        config.precision,
        config.compute,
        world_size=world_size,
        optimizer=config.optimizer.name,
        has_ema=config.ema is not None,
        accumulates=config.train.accumulation_steps > 1,
    )
    if config.train.accumulation_steps > 1 and config.loss.name in (LossName.coca, LossName.distillation):
        raise ConfigError(
            f"train.accumulation_steps={config.train.accumulation_steps} with loss={config.loss.name.value}: the whole "
            "batch is compared from features that are kept, and this loss needs more than those; set "
            "train.accumulation_steps=1 (compute=low_memory saves memory too), or take loss=infonce or sigmoid"
        )
    if config.model.pretrained is not None and any(
        stage.image_size is not None or stage.context_length is not None for stage in config.stages or ()
    ):
        raise ConfigError(
            f"model.pretrained={config.model.pretrained} with stages of another image size or context length: the "
            "weights are of one size; train the stages as runs of their own, or leave those settings of the stages null"
        )
    if config.loss.teacher is not None:
        check_teacher(config.loss.teacher, config.model)
    if config.train.samples_seen is not None:
        make_plan(config, max(config.train.samples_seen, config.train.global_batch_size), world_size)


def make_plan(config: TrainConfig, num_samples: int, world_size: int) -> Plan:
    """Stages, batch sizes and step counts of the run.

    Args:
        config: of the run.
        num_samples: usable samples of the data set.
        world_size: ranks.

    Raises:
        ConfigError: the data set does not fill a global batch, ranks and micro-batches cannot share one, or a
            schedule does not end.
    """
    samples_seen = config.train.samples_seen
    stages = plan_stages(
        config.stages,
        architecture=architecture_of(config.model),
        samples_seen=samples_seen if samples_seen is not None else num_samples * (config.train.epochs or 0),
        num_samples=num_samples,
        global_batch_size=config.train.global_batch_size,
        lr=config.optimizer.lr,
        schedule=config.schedule,
        decode_size=config.data.decode_size,
        world_size=world_size,
    )
    for stage in stages:
        if stage.per_rank_batch_size % config.train.accumulation_steps:
            raise ConfigError(
                f"train.accumulation_steps={config.train.accumulation_steps} does not divide a rank's "
                f"{stage.per_rank_batch_size} samples of a batch of {stage.global_batch_size}; give a divisor"
            )
    return Plan(stages, num_samples)
