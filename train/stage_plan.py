"""From the config's stages to a plan: lengths in whole batches, places in the run, schedules, and what cannot be."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from crawl2clip.errors import ConfigError
from train.data.text_mask import TextMask
from train.optimization.schedule import ScheduleConfig, check_length
from train.stages import Stage, StageConfig


def plan_stages(
    stages: Sequence[StageConfig] | None,
    *,
    architecture: dict[str, Any],
    samples_seen: int,
    num_samples: int,
    global_batch_size: int,
    lr: float,
    schedule: ScheduleConfig,
    decode_size: int | None,
    world_size: int,
) -> list[Stage]:
    """The run's stages, in order, without a gap; one stage when none are configured.

    Args:
        stages: the config's.
        architecture: the run's open_clip model_cfg.
        samples_seen: how long the run is.
        num_samples: usable samples of the data set.
        global_batch_size: the run's own.
        lr: optimizer.lr.
        schedule: the run's.
        decode_size: data.decode_size, the side that images leave the loader with; None: what each stage takes.
        world_size: ranks.

    Raises:
        ConfigError: lengths that do not add up, a batch that the ranks cannot share or the data cannot fill, an
            image size that is not whole patches or above decode_size, a schedule that does not fit.
    """
    configs = list(stages) if stages else [StageConfig(fraction=1.0)]
    planned: list[Stage] = []
    end, step, position = 0.0, 1, 0
    for number, (config, length) in enumerate(zip(configs, _lengths(configs, samples_seen), strict=True)):
        end += length
        settings = _settings(config, architecture, global_batch_size)
        batch = settings["global_batch_size"]
        _check_stage(number, settings, architecture, num_samples, decode_size, world_size)
        # Rounded where it ends, not in its length, so that what one stage lacks the next one gets.
        steps = int((end - position + 1e-6 * batch) // batch)
        if steps < 1:
            raise ConfigError(
                f"stage {number} has {length:.0f} samples, less than one batch of {batch}; give it a longer "
                "fraction or samples_seen, or a smaller global_batch_size"
            )
        stage = Stage(
            number=number,
            first_step=step,
            num_steps=steps,
            first_position=position,
            per_rank_batch_size=batch // world_size,
            peak_lr=lr if config.lr is None else config.lr,
            warmup_steps=schedule.warmup_steps if config.warmup_steps is None else config.warmup_steps,
            schedule_first_step=step,
            schedule_num_steps=steps,
            **settings,
        )
        planned.append(stage)
        step, position = step + steps, position + stage.samples
    return _with_schedules(planned, configs, schedule)


def _lengths(configs: list[StageConfig], samples_seen: int) -> list[float]:
    """Samples of each stage, not yet whole batches."""
    fractions = [config.fraction for config in configs if config.fraction is not None]
    counts = [config.samples_seen for config in configs if config.samples_seen is not None]
    if fractions and counts:
        raise ConfigError(
            f"{len(fractions)} stages give a fraction and {len(counts)} give samples_seen; give the same for all"
        )
    if counts:
        if sum(counts) != samples_seen:
            raise ConfigError(
                f"the stages see {sum(counts)} samples ({' + '.join(map(str, counts))}), the run {samples_seen}; set "
                f"train.samples_seen={sum(counts)}, or change a stage"
            )
        return [float(count) for count in counts]
    if abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"the stages' fractions are {' + '.join(map(str, fractions))} = {sum(fractions):g}; make them add up to 1"
        )
    return [fraction * samples_seen for fraction in fractions]


def _settings(config: StageConfig, architecture: dict[str, Any], global_batch_size: int) -> dict[str, Any]:
    """What a stage's model and batches are like, the run's own where the config has null."""
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    size = vision.get("image_size", 224)
    own = {
        "image_size": size if isinstance(size, int) else size[0],
        "context_length": text.get("context_length", 77),
        "text_mask": TextMask.cut,
        "patch_dropout": float(vision.get("patch_dropout", 0.0)),
        "global_batch_size": global_batch_size,
    }
    return {
        name: value if getattr(config, name) is None else getattr(config, name) for name, value in own.items()
    }


def _check_stage(
    number: int,
    settings: dict[str, Any],
    architecture: dict[str, Any],
    num_samples: int,
    decode_size: int | None,
    world_size: int,
) -> None:
    batch, size = settings["global_batch_size"], settings["image_size"]
    where = f"in stage {number} "
    if batch % world_size:
        near = [
            value
            for value in (batch // world_size * world_size, -(-batch // world_size) * world_size)
            if value
        ]
        raise ConfigError(
            f"global batch {batch} {where}is not divisible by {world_size} ranks; set it to "
            f"{' or '.join(map(str, near))}"
        )
    if batch > num_samples:
        raise ConfigError(
            f"global batch {batch} {where}is more than the {num_samples} usable samples of the data; set it to "
            f"{num_samples // world_size * world_size} or less, or add data"
        )
    vision = architecture["vision_cfg"]
    is_vit = "timm_model_name" not in vision and isinstance(vision.get("layers", 12), int)
    patch = vision.get("patch_size", 16)
    if is_vit and size % patch:
        raise ConfigError(
            f"image size {size} {where}is not a multiple of the model's {patch}-pixel patches; give "
            f"{max(size // patch, 1) * patch} or {(size // patch + 1) * patch}"
        )
    if decode_size is not None and size > decode_size:
        raise ConfigError(
            f"image size {size} {where}is above data.decode_size={decode_size}, so images would be enlarged; set "
            f"data.decode_size={size} or more"
        )
    text = architecture["text_cfg"]
    whole = text.get("context_length", 77)
    if settings["text_mask"] is not TextMask.cut and settings["context_length"] >= whole:
        raise ConfigError(
            f"text_mask={settings['text_mask'].value} {where}has nothing to leave out: the stage's context_length is "
            f"{settings['context_length']} and the model's own {whole}; give the stage a shorter one, or leave "
            "text_mask null"
        )
    if settings["text_mask"] is not TextMask.cut and (
        text.get("hf_tokenizer_name") or text.get("hf_model_name")
    ):
        raise ConfigError(
            f"text_mask={settings['text_mask'].value} {where}keeps the marks of start and end of CLIP's own tokenizer, "
            f"and this model has {text.get('hf_tokenizer_name') or text.get('hf_model_name')}'s; leave text_mask null"
        )
    if settings["patch_dropout"] > 0 and not is_vit and "timm_model_name" not in vision:
        raise ConfigError(
            f"patch_dropout={settings['patch_dropout']} {where}has no effect on a ResNet, which has no patches; "
            "leave it null, or take a ViT"
        )


def _with_schedules(
    planned: list[Stage], configs: list[StageConfig], schedule: ScheduleConfig
) -> list[Stage]:
    """Stages that share a schedule: each begins with a stage that gives an lr and ends before the next of those."""
    begins = [number for number, config in enumerate(configs) if number == 0 or config.lr is not None]
    found = []
    for begin, end in zip(begins, [*begins[1:], len(planned)], strict=True):
        head = planned[begin]
        steps = sum(stage.num_steps for stage in planned[begin:end])
        check_length(
            dataclasses.replace(schedule, warmup_steps=head.warmup_steps), steps, _span(begin, end, planned)
        )
        shared = {
            "peak_lr": head.peak_lr,
            "warmup_steps": head.warmup_steps,
            "schedule_first_step": head.first_step,
            "schedule_num_steps": steps,
        }
        found += [dataclasses.replace(stage, **shared) for stage in planned[begin:end]]
    return found


def _span(begin: int, end: int, planned: list[Stage]) -> str:
    if end - begin == len(planned):
        return "the run"
    return f"stage {begin}" if end - begin == 1 else f"stages {begin} to {end - 1}"
