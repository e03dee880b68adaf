"""A curriculum in one run: stages that differ in image size, caption length, masking, batch and learning rate.

A stage is a complete segment of the run. At its start the model is built anew with the stage's architecture and
takes up the state of the stage before it, resized (train/model/resize.py), so that a resume is always a resume within a
stage. A run without `stages` is one stage with the run's own settings, so nobody asks whether there are any. What
stages a config means is worked out in train/stage_plan.py.
"""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crawl2clip.errors import ConfigError
from train.data.text_mask import TextMask
from train.optimization.schedule import ScheduleConfig, scheduled_lr


@dataclass(kw_only=True)
class StageConfig:
    """One stage: its length, and what is different in it. Null is the run's own setting, not the stage before's."""

    fraction: float | None = None  # of the run's samples, above 0; all stages together have 1
    samples_seen: int | None = None  # or so many samples; all stages together have the run's
    image_size: int | None = None  # side in pixels
    context_length: int | None = None  # tokens that a caption is cut to, start and end of text included
    text_mask: TextMask | None = None  # which tokens of a longer caption are kept; null: cut, its first
    patch_dropout: float | None = (
        None  # fraction of the image's patches that is left out in training, 0 to below 1
    )
    global_batch_size: int | None = None  # samples of one optimizer step over all ranks
    lr: float | None = (
        None  # peak of a schedule that begins with this stage; null goes on with the one before
    )
    warmup_steps: int | None = None  # of that schedule; given with lr, null without

    def __post_init__(self) -> None:
        if (self.fraction is None) == (self.samples_seen is None):
            raise ConfigError(
                f"a stage has fraction={self.fraction} and samples_seen={self.samples_seen}; give exactly one of them"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ConfigError(f"a stage has fraction={self.fraction}; give a fraction above 0 up to 1")
        least = {
            "samples_seen": 1,
            "image_size": 1,
            "context_length": 3,
            "global_batch_size": 1,
            "warmup_steps": 0,
        }
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ConfigError(f"a stage has {name}={value}; give {minimum} or more")
        if self.patch_dropout is not None and not 0 <= self.patch_dropout < 1:
            raise ConfigError(
                f"a stage has patch_dropout={self.patch_dropout}; give a fraction from 0 to below 1"
            )
        if self.lr is not None and not self.lr > 0:
            raise ConfigError(f"a stage has lr={self.lr}; give a peak learning rate above 0")
        if (self.lr is None) != (self.warmup_steps is None):
            raise ConfigError(
                f"a stage has lr={self.lr} and warmup_steps={self.warmup_steps}; give both, for a schedule of its own, "
                "or neither"
            )


@dataclass(frozen=True)
class Stage:
    """A stage with its place in the run. Steps count from 1, positions in the run's sample stream from 0."""

    number: int  # from 0
    first_step: int
    num_steps: int
    first_position: int  # of the first sample of its first batch
    image_size: int
    context_length: int
    text_mask: TextMask
    patch_dropout: float
    global_batch_size: int
    per_rank_batch_size: int
    peak_lr: float  # of the schedule that this stage is part of
    warmup_steps: int  # of that schedule
    schedule_first_step: int  # the step at which that schedule began, in this stage or an earlier one
    schedule_num_steps: int  # of that schedule, over all stages that it spans

    @property
    def last_step(self) -> int:
        """The last optimizer step of the stage."""
        return self.first_step + self.num_steps - 1

    @property
    def samples(self) -> int:
        """Samples seen in the stage."""
        return self.num_steps * self.global_batch_size


def stage_of(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that optimizer step `step`, counted from 1, belongs to; the last one beyond the end."""
    return next((stage for stage in stages if step <= stage.last_step), stages[-1])


def stage_lr(stage: Stage, schedule: ScheduleConfig, step: int) -> float:
    """The learning rate of optimizer step `step` of the run."""
    own = dataclasses.replace(schedule, warmup_steps=stage.warmup_steps)
    return scheduled_lr(
        step - stage.schedule_first_step + 1, own, peak_lr=stage.peak_lr, total_steps=stage.schedule_num_steps
    )


def architecture_for(stage: Stage, architecture: dict[str, Any]) -> dict[str, Any]:
    """The open_clip model_cfg of a stage's model, a fresh copy."""
    changed = copy.deepcopy(architecture)
    changed["vision_cfg"]["image_size"] = stage.image_size
    changed["text_cfg"]["context_length"] = stage.context_length
    if stage.patch_dropout or "patch_dropout" in changed["vision_cfg"]:
        changed["vision_cfg"]["patch_dropout"] = stage.patch_dropout
    return changed


def budget_parts(stages: Sequence[Stage], architecture: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """Each stage's architecture and the samples it sees, for `train.model.flops.total_budget`."""
    return [(architecture_for(stage, architecture), stage.samples) for stage in stages]
