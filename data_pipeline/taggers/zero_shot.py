"""Zero-shot tags: which of some prompts an image is nearest to, as LAION-400M told unsafe images.

For each set of prompts, `zero_shot_<set>` counts how many of the `top` nearest prompts are flagged ones. The set
`nsfw` also gives the column `nsfw` in LAION's words: none flagged UNLIKELY, all of them NSFW, else UNSURE.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError
from data_pipeline.clip_models import ClipModelConfig, check_models, weights_fingerprint
from data_pipeline.embeddings import ImageEmbeddings, read_embeddings
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.taggers.heads import check_clip_model
from data_pipeline.worker_device import device_of_worker, max_model_workers

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig
    from data_pipeline.tag import TagConfig

NSFW = "nsfw"  # the set whose count also becomes LAION's word


@dataclass(kw_only=True, slots=True)
class PromptSetConfig:
    """Prompts that compete for an image."""

    top: int = MISSING  # how many of the nearest prompts are looked at, 1 or more
    plain: list[str] = field(default_factory=list)  # prompts
    flagged: list[str] = field(default_factory=list)  # prompts that count

    def __post_init__(self) -> None:
        if isinstance(self.top, int) and not 1 <= self.top <= len(self.plain) + len(self.flagged):
            raise ConfigError(
                f"a zero-shot set looks at the top {self.top} of {len(self.plain) + len(self.flagged)} prompts; give "
                "1 up to the number of its prompts"
            )


@dataclass(kw_only=True, slots=True)
class ZeroShotConfig:
    """Which prompts, and whose embeddings."""

    clip_model: str | None = (
        None  # name in tagger.models, whose own text tower reads the prompts; null: the first
    )
    sets: dict[str, PromptSetConfig] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.sets:
            if not name.isidentifier() or not name.islower():
                raise ConfigError(
                    f"a set of tagger.zero_shot is named {name!r}; the name becomes a column, so give lower-case "
                    "letters, digits and _, a letter first"
                )


def zero_shot_columns(sets: Iterable[str]) -> dict[str, Any]:
    """The columns that the tagger adds, with their Polars types."""
    names = list(sets)
    return {
        **({NSFW: pl.String} if NSFW in names else {}),  # UNLIKELY, UNSURE or NSFW
        **{f"zero_shot_{name}": pl.Int32 for name in names},  # flagged prompts among the `top` nearest
        "zero_shot_error": pl.String,  # one of heads.HEAD_ERRORS; else null
    }


def check_zero_shot(config: "TagConfig") -> None:
    """Checks that there are prompts, and the model that reads them.

    Raises:
        ConfigError: there are none.
    """
    asked = config.zero_shot
    if not asked.sets:
        raise ConfigError("the zero_shot tagger is asked for, but tagger.zero_shot.sets is empty; give a set")
    check_clip_model(config, "zero_shot", asked.clip_model, "tagger.zero_shot.clip_model names it.")


@dataclass
class ZeroShotStage(Stage):
    """Compares the image embeddings of raw shards with those of prompts."""

    name: str
    folder: Path
    settings: dict[str, Any]
    source: ImageEmbeddings
    model: ClipModelConfig  # model and pretrained filled in
    sets: dict[str, PromptSetConfig]
    device: str
    precision: str
    max_workers: int | None = None

    def shards(self) -> Iterator[Shard]:
        """One for each shard of the clip tagger."""
        return self.source.shards()

    def setup(self) -> dict[str, np.ndarray]:
        """Embeddings of each set's prompts, float32 [prompts, D], the plain ones first."""
        from crawl2clip.encoder import load_encoder

        device = device_of_worker(self.device)
        encoder = load_encoder(
            self.model.model, self.model.pretrained, device=device, precision=self.precision
        )
        return {
            name: encoder.encode_texts([*prompts.plain, *prompts.flagged]).numpy()
            for name, prompts in self.sets.items()
        }

    def run(self, context: dict[str, np.ndarray], shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        uids, embeddings = read_embeddings(*shard.inputs)
        features = np.asarray(embeddings, np.float32)
        present = np.isfinite(features).all(axis=1)
        columns: dict[str, pl.Series] = {}
        for name, prompts in self.sets.items():
            found = np.zeros(len(uids), np.int32)
            found[present] = _flagged_of_best(features[present], context[name], prompts)
            count = pl.Series(found).set(pl.Series(~present), None)
            if name == NSFW:
                columns[NSFW] = _laion_word(count, prompts.top)
            columns[f"zero_shot_{name}"] = count
        why = pl.Series(["no_embedding"] * len(uids), dtype=pl.String).set(pl.Series(present), None)
        table = pl.DataFrame({"uid": pl.Series(uids, dtype=pl.String), **columns, "zero_shot_error": why})
        table.select("uid", *zero_shot_columns(self.sets)).write_parquet(temporary / f"{shard.name}.parquet")
        counts = Counts(rows_in=len(uids), rows_out=len(uids))
        if not present.all():
            counts.extra["zero_shot_no_embedding"] = int((~present).sum())
        return counts


def _flagged_of_best(features: np.ndarray, prompts: np.ndarray, config: PromptSetConfig) -> np.ndarray:
    """int [N]: flagged prompts among the `top` with the largest cosine."""
    similarity = features @ prompts.T
    best = np.argsort(-similarity, axis=1, kind="stable")[:, : config.top]
    return (best >= len(config.plain)).sum(axis=1)


def _laion_word(flagged: pl.Series, top: int) -> pl.Series:
    frame = flagged.to_frame("flagged")
    word = (
        pl.when(pl.col("flagged") == 0)
        .then(pl.lit("UNLIKELY"))
        .when(pl.col("flagged") == top)
        .then(pl.lit("NSFW"))
        .when(pl.col("flagged").is_not_null())
        .then(pl.lit("UNSURE"))
    )
    return frame.select(word.alias(NSFW))[NSFW]


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage."""
    asked, output = config.tagger, Path(config.output_dir)
    models = asked.resolved_models()
    check_models(models)
    source = ImageEmbeddings(output / "tags" / "clip", models, asked.zero_shot.clip_model)
    model = next(entry for entry in models if entry.name == source.model)
    settings = {
        "model": model.model,
        "pretrained": model.pretrained,
        "weights_sha256": weights_fingerprint(model.pretrained),
        "precision": asked.precision,
        "sets": {name: asdict(prompts) for name, prompts in asked.zero_shot.sets.items()},
    }
    stage = ZeroShotStage(
        name="tag/zero_shot",
        folder=output / "tags" / "zero_shot",
        settings=settings,
        source=source,
        model=model,
        sets=dict(asked.zero_shot.sets),
        device=asked.device,
        precision=asked.precision,
        max_workers=max_model_workers(asked.device),
    )
    return [stage]
