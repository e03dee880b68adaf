"""The tag stage: taggers add columns to downloaded pairs, and drop nothing.

Each tagger is a stage of its own with its own folder, `tags/<tagger>/NNNNNNNN.parquet` beside raw shard NNNNNNNN,
joined by uid, so a new tagger or another model never means doing the others again. What to keep is decided later,
by a recipe.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.clip_models import ClipModelConfig, check_models, clip_columns, weights_fingerprint
from data_pipeline.clip_tagger import ClipStage
from data_pipeline.language import LanguageDetector, require_detector
from data_pipeline.language_tagger import LANGUAGE_COLUMNS, LanguageStage
from data_pipeline.stage import Stage

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig


@dataclass(kw_only=True, slots=True)
class TagConfig:
    """Which columns are added, and with which models."""

    taggers: list[str] = field(default_factory=list)  # names in TAGGERS, in order
    language_detector: LanguageDetector = (
        MISSING  # fasttext, or cld3 with its flag as LAION-5B (extra `cld3`)
    )
    # 0 to 1; below it a text's language bucket is `unknown`. cld3's own flag asks for more than 0.5 already.
    min_language_probability: float = MISSING
    model: str | None = None  # image tower of the clip tagger: open_clip name; null with an export folder
    pretrained: str | None = None  # its weights: open_clip tag, .pt or .safetensors file, or export folder
    models: list[ClipModelConfig] = field(default_factory=list)  # which text tower scores which languages
    device: str = MISSING  # auto, cpu or cuda; every worker loads the models, workers take the GPUs in turn
    precision: str = MISSING  # of the towers: fp32, bf16 or fp16; the cosine is always float32
    image_batch_size: int = MISSING  # images a forward pass, 1 or more

    def __post_init__(self) -> None:
        for tagger in self.taggers:
            if tagger not in TAGGERS:
                raise ConfigError(unknown_name("tagger", tagger, TAGGERS))
        if len(set(self.taggers)) < len(self.taggers):
            raise ConfigError(
                f"tagger.taggers names a tagger twice: {', '.join(self.taggers)}; name each once"
            )
        if (
            isinstance(self.min_language_probability, float)
            and not 0.0 <= self.min_language_probability <= 1.0
        ):
            raise ConfigError(
                f"tagger.min_language_probability is {self.min_language_probability}; give 0 to 1"
            )
        if isinstance(self.image_batch_size, int) and self.image_batch_size < 1:
            raise ConfigError(f"tagger.image_batch_size is {self.image_batch_size}; give 1 or more images")
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"tagger.models has several entries of one name: {', '.join(names)}; names become columns"
            )
        inherits = not self.models or any(
            model.model is None and model.pretrained is None for model in self.models
        )
        if not inherits and (self.model is not None or self.pretrained is not None):
            raise ConfigError(
                "tagger.model or tagger.pretrained is set, but every entry of tagger.models names its own; change "
                "the entry, or leave its model and pretrained out"
            )
        if "clip" in self.taggers:
            self._check_clip()

    def _check_clip(self) -> None:
        if not self.models:
            raise ConfigError(
                "the clip tagger is asked for, but tagger.models is empty; give at least {name: clip}"
            )
        needs_language = [model.name for model in self.models if model.languages]
        before_clip = self.taggers[: self.taggers.index("clip")]
        if needs_language and "language" not in before_clip:
            raise ConfigError(
                f"clip model {needs_language[0]!r} scores some languages only, which needs the language tagger first; "
                f"tagger.taggers is {self.taggers}: give [language, clip]"
            )

    def resolved_models(self) -> tuple[ClipModelConfig, ...]:
        """The entries of `models`, those that name no image tower given `model` and `pretrained`."""
        return tuple(
            ClipModelConfig(
                name=entry.name,
                model=self.model if entry.model is None and entry.pretrained is None else entry.model,
                pretrained=self.pretrained
                if entry.model is None and entry.pretrained is None
                else entry.pretrained,
                text_model=entry.text_model,
                languages=list(entry.languages),
            )
            for entry in self.models
        )


def _language_stage(config: "PipelineConfig") -> Stage:
    output, tagger = Path(config.output_dir), config.tagger
    require_detector(tagger.language_detector)
    return LanguageStage(
        name="tag/language",
        folder=output / "tags" / "language",
        settings={
            "language_detector": tagger.language_detector.value,
            "min_language_probability": tagger.min_language_probability,
        },
        raw=output / "raw",
        detector=tagger.language_detector,
        min_probability=tagger.min_language_probability,
    )


def _clip_stage(config: "PipelineConfig") -> Stage:
    output, tagger = Path(config.output_dir), config.tagger
    models = tagger.resolved_models()
    check_models(models)
    needs_language = any(model.languages for model in models)
    settings: dict[str, Any] = {
        "models": [
            {
                "name": model.name,
                "model": model.model,
                "pretrained": model.pretrained,
                "text_model": model.text_model,
                "languages": model.languages,
                "weights_sha256": weights_fingerprint(model.pretrained),
            }
            for model in models
        ],
        "precision": tagger.precision,
    }
    return ClipStage(
        name="tag/clip",
        folder=output / "tags" / "clip",
        settings=settings,
        raw=output / "raw",
        language_tags=output / "tags" / "language" if needs_language else None,
        models=models,
        device=tagger.device,
        precision=tagger.precision,
        image_batch_size=tagger.image_batch_size,
    )


TAGGERS = {"language": _language_stage, "clip": _clip_stage}
"""How each tagger's stage is made."""


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stages of the taggers that are asked for, in order."""
    return [TAGGERS[name](config) for name in config.tagger.taggers]


def tag_columns(config: TagConfig) -> dict[str, dict[str, Any]]:
    """tagger name -> the columns it adds, with their Polars types; the join key uid is left out."""
    columns: dict[str, dict[str, Any]] = {"language": LANGUAGE_COLUMNS, "clip": clip_columns(config.models)}
    return {name: columns[name] for name in config.taggers}


def known_columns(config: TagConfig, base: pl.Schema) -> pl.Schema:
    """`base` and the columns of the taggers, the names a rule may use."""
    schema = dict(base)
    for columns in tag_columns(config).values():
        schema.update(columns)
    return pl.Schema(schema)
