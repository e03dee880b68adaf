"""The tag stage: taggers add columns to downloaded pairs, and drop nothing.

Each tagger has its own folder, `tags/<tagger>/NNNNNNNN.parquet` beside raw shard NNNNNNNN, joined by uid, so a new
tagger or another model never means doing the others again. Most are one stage; those that look at all shards together
(duplicates) are several. What to keep is decided later, by a recipe.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline import clip_tagger
from data_pipeline.clip_models import ClipModelConfig, clip_columns
from data_pipeline.language import LanguageDetector, require_detector
from data_pipeline.language_tagger import LANGUAGE_COLUMNS, LanguageStage
from data_pipeline.stage import Stage
from data_pipeline.taggers import watermark
from data_pipeline.taggers.contamination import CONTAMINATION_COLUMNS, ContaminationConfig
from data_pipeline.taggers.duplicates import DUPLICATES_COLUMNS, DuplicatesConfig
from data_pipeline.taggers.heads import (
    HeadConfig,
    HeadTagger,
    check_heads,
    chosen_heads,
    head_columns,
    make_head_stages,
)
from data_pipeline.taggers.image_cluster import IMAGE_CLUSTER_COLUMNS, ImageClusterConfig
from data_pipeline.taggers.imagenet_text import IMAGENET_TEXT_COLUMNS, ImagenetTextConfig
from data_pipeline.taggers.metaclip import METACLIP_COLUMNS, MetaclipConfig
from data_pipeline.taggers.text import TEXT_COLUMNS, TextConfig
from data_pipeline.taggers.watermark import WATERMARK_COLUMNS, WatermarkConfig
from data_pipeline.taggers.zero_shot import ZeroShotConfig, check_zero_shot, zero_shot_columns

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
    # JPEGs are decoded at a DCT scale (1/2, 1/4, 1/8) that leaves at least this multiple of what the largest model
    # sees, 1 or more; null: always in full
    decode_margin: float | None = MISSING
    weights_cache: str = MISSING  # folder where weights fetched from an address are kept, under their SHA-256
    # The catalogue of heads, and which of them the taggers aesthetic, unsafe and head use, the first one first.
    heads: dict[str, HeadConfig] = field(default_factory=dict)
    use_heads: list[str] = field(default_factory=list)
    watermark: WatermarkConfig = field(default_factory=WatermarkConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)
    text: TextConfig = field(default_factory=TextConfig)
    imagenet_text: ImagenetTextConfig = field(default_factory=ImagenetTextConfig)
    metaclip: MetaclipConfig = field(default_factory=MetaclipConfig)
    image_cluster: ImageClusterConfig = field(default_factory=ImageClusterConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)

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
        if isinstance(self.decode_margin, float) and self.decode_margin < 1:
            raise ConfigError(f"tagger.decode_margin is {self.decode_margin}; give 1 or more, or null")
        self._check_models()
        self._check_heads()
        for tagger in self.taggers:
            TAGGERS[tagger].check(self)

    def _check_models(self) -> None:
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

    def _check_heads(self) -> None:
        for name in self.heads:
            if not name.isidentifier() or not name.islower():
                raise ConfigError(
                    f"a head of tagger.heads is named {name!r}; the name becomes a column, so give lower-case letters, "
                    "digits and _, a letter first"
                )
        for name in self.use_heads:
            if name not in self.heads:
                do = "tagger.use_heads names it; add it to tagger.heads, or take one of these."
                raise ConfigError(unknown_name("head", name, self.heads, do=do))

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


@dataclass(frozen=True)
class Tagger:
    """One line of the table of taggers.

    Attributes:
        stages: the settings -> its stages, in order; the last one writes `tags/<tagger>`. Checks, without loading a
            model, that what it needs is there.
        columns: the tag settings -> the columns it adds, with their Polars types; the join key uid is left out.
        check: raises ConfigError for tag settings that cannot work.
    """

    stages: "Callable[[PipelineConfig], list[Stage]]"
    columns: Callable[[TagConfig], dict[str, Any]]
    check: Callable[[TagConfig], None] = lambda config: None


def _language_stages(config: "PipelineConfig") -> list[Stage]:
    output, tagger = Path(config.output_dir), config.tagger
    require_detector(tagger.language_detector)
    stage = LanguageStage(
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
    return [stage]


def _check_clip(config: TagConfig) -> None:
    if not config.models:
        raise ConfigError(
            "the clip tagger is asked for, but tagger.models is empty; give at least {name: clip}"
        )
    needs_language = [model.name for model in config.models if model.languages]
    before_clip = config.taggers[: config.taggers.index("clip")]
    if needs_language and "language" not in before_clip:
        raise ConfigError(
            f"clip model {needs_language[0]!r} scores some languages only, which needs the language tagger first; "
            f"tagger.taggers is {config.taggers}: give [language, clip]"
        )


def _heads(kind: HeadTagger) -> Tagger:
    return Tagger(
        lambda config: make_head_stages(kind, config),
        lambda c: head_columns(kind, list(chosen_heads(kind, c.heads, c.use_heads))),
        lambda c: check_heads(kind, c),
    )


def _not_yet(config: "PipelineConfig") -> list[Stage]:
    raise ConfigError(
        "this tagger is being built: its columns and settings are known, its stages are not here"
    )


TAGGERS = {
    "language": Tagger(_language_stages, lambda c: LANGUAGE_COLUMNS),
    "clip": Tagger(clip_tagger.make_stages, lambda c: clip_columns(c.models), _check_clip),
    "aesthetic": _heads(HeadTagger.aesthetic),
    "unsafe": _heads(HeadTagger.unsafe),
    "head": _heads(HeadTagger.head),
    "watermark": Tagger(watermark.make_stages, lambda c: WATERMARK_COLUMNS),
    "zero_shot": Tagger(_not_yet, lambda c: zero_shot_columns(c.zero_shot.sets), check_zero_shot),
    "text": Tagger(_not_yet, lambda c: TEXT_COLUMNS),
    "imagenet_text": Tagger(_not_yet, lambda c: IMAGENET_TEXT_COLUMNS),
    "metaclip": Tagger(_not_yet, lambda c: METACLIP_COLUMNS),
    "image_cluster": Tagger(_not_yet, lambda c: IMAGE_CLUSTER_COLUMNS),
    "duplicates": Tagger(_not_yet, lambda c: DUPLICATES_COLUMNS),
    "contamination": Tagger(_not_yet, lambda c: CONTAMINATION_COLUMNS),
}
"""Every tagger there is."""


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stages of the taggers that are asked for, in order."""
    return [stage for name in config.tagger.taggers for stage in TAGGERS[name].stages(config)]


def tag_columns(config: TagConfig) -> dict[str, dict[str, Any]]:
    """tagger name -> the columns it adds, with their Polars types; the join key uid is left out."""
    return {name: TAGGERS[name].columns(config) for name in config.taggers}


def known_columns(config: TagConfig, base: pl.Schema) -> pl.Schema:
    """`base` and the columns of the taggers, the names a rule may use."""
    schema = dict(base)
    for columns in tag_columns(config).values():
        schema.update(columns)
    return pl.Schema(schema)
