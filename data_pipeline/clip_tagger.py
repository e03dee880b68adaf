"""The clip tagger: how similar CLIP finds image and text, for every stored pair, and the embeddings of both.

For each raw shard it writes `NAME.parquet` (one row for each stored pair, in the order of the raw parquet: uid,
clip_score, clip_model, clip_score_<model name>, clip_error) and the embeddings as `data_pipeline.embeddings` has them.

Each image is decoded once, whatever the number of models, and each image tower runs once however many text towers
are compared with it: LAION-5B scored English with OpenAI's text tower and the rest with a multilingual one, both
against the same image features. The watermark tagger's network runs on the same pass over the images when both start
together (`NAME.watermark.npy`). A pair without an image that decodes keeps its row, with null scores, NaN embeddings,
and the reason in clip_error.

The captions are encoded while the first images are being decoded, so that the model never waits for the disk at the
start of a shard.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from crawl2clip.errors import ConfigError
from crawl2clip.shards import ShardFault
from data_pipeline.clip_models import (
    ClipModelConfig,
    SentenceTextTower,
    TextTower,
    check_models,
    clip_columns,
    tower_names,
    weights_fingerprint,
)
from data_pipeline.embeddings import image_name, text_name, uids_name, write_uids
from data_pipeline.stage import Counts, Shard, Stage, stream_finished
from data_pipeline.tables import read_table
from data_pipeline.taggers.watermark import (
    WatermarkNet,
    no_probabilities,
    put_probabilities,
    runs_with_clip,
    watermark_name,
    weights_of,
)
from data_pipeline.taggers.weights_file import WeightsFile
from data_pipeline.worker_device import device_of_worker, max_model_workers

if TYPE_CHECKING:
    import torch

    from crawl2clip.encoder import Encoder
    from data_pipeline.config import PipelineConfig
    from data_pipeline.pixel_batches import PixelBatches, View

CLIP_ERRORS = ("missing_image", "undecodable", "not_finite", "no_model_for_language")

logger = logging.getLogger(__name__)


@dataclass
class LoadedModels:
    """What a worker holds.

    Attributes:
        device: of all of them.
        image_towers: the distinct ones, by the name of the first model that uses each.
        views: what each image tower sees of an image.
        tower_of: model name -> its image tower's key.
        text_towers: by model name.
        watermark: its network, when it shares the images.
        waited_s, busy_s: time that models waited for images, and time in `run`, over all shards of this worker.
    """

    device: "torch.device"
    image_towers: "dict[str, Encoder]"
    views: "dict[str, View]"
    tower_of: dict[str, str]
    text_towers: dict[str, TextTower]
    watermark: WatermarkNet | None = None
    waited_s: float = 0.0
    busy_s: float = 0.0


@dataclass
class ClipStage(Stage):
    """Tags raw shards with CLIP similarity and embeddings."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    language_tags: Path | None  # the language tagger's folder, when a model scores some languages only
    models: tuple[ClipModelConfig, ...]  # model and pretrained filled in
    device: str
    precision: str
    image_batch_size: int
    decode_margin: float | None
    watermark: WeightsFile | None = None  # its network runs on the same images
    max_workers: int | None = None

    @property
    def gpus_per_worker(self) -> int:  # type: ignore[override]  # what a cluster is asked for follows from the device
        """One, unless the CPU is asked for."""
        return 0 if self.device == "cpu" else 1

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard."""
        for name in stream_finished(self.raw):
            inputs = [self.raw / f"{name}.parquet", self.raw / f"{name}.tar"]
            if self.language_tags is not None:
                inputs.append(self.language_tags / f"{name}.parquet")
            yield Shard(name, tuple(str(path) for path in inputs))

    def setup(self) -> LoadedModels:
        """Loads the models on this worker's device."""
        from crawl2clip import fused_mlp, image_attention
        from crawl2clip.encoder import load_encoder
        from data_pipeline.pixel_batches import view_of

        device = device_of_worker(self.device)
        loaded = LoadedModels(device, {}, {}, tower_names(self.models), {})
        for config in self.models:
            key = loaded.tower_of[config.name]
            if key == config.name:
                tower = load_encoder(config.model, config.pretrained, device=device, precision=self.precision)
                image_attention.install(tower.model)  # the same features, but for rounding
                if device.type == "cpu" and self.precision == "fp32":
                    fused_mlp.install(tower.model)
                loaded.image_towers[key], loaded.views[key] = tower, view_of(tower.preprocess, config.name)
            tower = loaded.image_towers[key]
            loaded.text_towers[config.name] = (
                tower if config.text_model is None else SentenceTextTower(config.text_model, device)
            )
        if self.watermark is not None:
            loaded.watermark = WatermarkNet(self.watermark, device, self.precision)
        return loaded

    def run(self, context: LoadedModels, shard: Shard, temporary: Path) -> Counts:
        """Scores one raw shard."""
        started = time.perf_counter()
        pairs = self._read_pairs(shard)
        counts = Counts(rows_in=len(pairs), rows_out=len(pairs))
        batches = self._batches(shard.inputs[1], pairs, context, counts)
        with closing(batches):
            texts = {config.name: self._encode_texts(config, pairs, context) for config in self.models}
            images, watermark, errors = self._run_models(batches, context, len(pairs))
        scores = {
            name: np.einsum("nd,nd->n", images[context.tower_of[name]], features)
            for name, features in texts.items()
        }
        table = self._table(pairs, scores, errors)
        table.write_parquet(temporary / f"{shard.name}.parquet")
        write_uids(temporary / uids_name(shard.name), pairs["uid"].to_list())
        for key, values in images.items():
            np.save(temporary / image_name(shard.name, key), values.astype(np.float16))
        for name, values in texts.items():
            np.save(temporary / text_name(shard.name, name), values.astype(np.float16))
        if context.watermark is not None:
            np.save(temporary / watermark_name(shard.name), watermark)
        for reason, rows in table["clip_error"].drop_nulls().value_counts().iter_rows():
            counts.extra[f"no_score_{reason}"] += rows
        context.waited_s += batches.waited_s
        context.busy_s += time.perf_counter() - started
        logger.info(
            "%s %s: %d pairs in %.1f s; so far the models waited %.1f%% of the time for images", self.name,
            shard.name, len(pairs), time.perf_counter() - started, 100 * context.waited_s / context.busy_s,
        )  # fmt: skip
        return counts

    def _read_pairs(self, shard: Shard) -> pl.DataFrame:
        """uid, text and, where a model asks for it, language_bucket of the shard's stored pairs."""
        pairs = read_table(shard.inputs[0], ["uid", "text"], stored_only=True)
        if self.language_tags is None:
            return pairs.with_columns(language_bucket=pl.lit(None, pl.String))
        languages = read_table(shard.inputs[2], ["uid", "language_bucket"])
        return pairs.join(languages, on="uid", how="left", maintain_order="left")

    def _batches(
        self, tar: str, pairs: pl.DataFrame, context: LoadedModels, counts: Counts
    ) -> "PixelBatches":
        """The shard's images, which are being decoded from now on."""
        import torch

        from data_pipeline.pixel_batches import PixelBatches

        def count_fault(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        def count_unlisted() -> None:
            counts.extra["shard_unlisted_sample"] += 1

        views = list(context.views.values())
        if context.watermark is not None:
            views.append(context.watermark.view)
        return PixelBatches(
            tar, {uid: row for row, uid in enumerate(pairs["uid"])}, views, batch_size=self.image_batch_size,
            decode_margin=self.decode_margin, threads=torch.get_num_threads(), device=context.device,
            on_fault=count_fault, on_unlisted=count_unlisted,
        )  # fmt: skip

    def _run_models(
        self, batches: "PixelBatches", context: LoadedModels, rows: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Image features by tower, float32 [rows, D], NaN without an image; watermark probabilities; errors."""
        features = {
            key: np.full((rows, tower.embed_dim), np.nan, np.float32)
            for key, tower in context.image_towers.items()
        }
        watermark = no_probabilities(rows)
        errors = np.full(rows, "missing_image", dtype=object)
        for batch in batches:
            errors[batch.undecodable] = "undecodable"
            errors[batch.rows] = None
            for key, tower in context.image_towers.items():
                if batch.rows:
                    view = context.views[key]
                    pixels = view.normalized(batch.pixels[view.key])
                    features[key][batch.rows] = tower.encode_images(pixels).numpy()
            if context.watermark is not None:
                put_probabilities(watermark, context.watermark, batch)
        return features, watermark, errors

    def _encode_texts(
        self, config: ClipModelConfig, pairs: pl.DataFrame, context: LoadedModels
    ) -> np.ndarray:
        """Text features, float32 [rows, D], NaN where the language is not the model's own."""
        width = context.image_towers[context.tower_of[config.name]].embed_dim
        features = np.full((len(pairs), width), np.nan, np.float32)
        mine = np.ones(len(pairs), bool)
        if config.languages:
            mine = pairs["language_bucket"].is_in(config.languages).fill_null(False).to_numpy()
        rows = np.flatnonzero(mine)
        if len(rows) == 0:
            return features
        found = context.text_towers[config.name].encode_texts(pairs["text"][rows].to_list()).numpy()
        if found.shape[1] != width:
            raise ConfigError(
                f"clip model {config.name!r}: the text tower {config.text_model!r} gives {found.shape[1]} "
                f"dimensions, the image tower {config.model or config.pretrained!r} {width}; name a text tower that "
                "was trained to match this image tower"
            )
        features[rows] = found
        return features

    def _table(self, pairs: pl.DataFrame, scores: dict[str, np.ndarray], errors: np.ndarray) -> pl.DataFrame:
        columns = {f"clip_score_{name}": pl.Series(values).fill_nan(None) for name, values in scores.items()}
        table = pairs.select("uid", "language_bucket").with_columns(
            **columns, clip_error=pl.Series(errors.tolist(), dtype=pl.String)
        )
        asked = [
            pl.lit(True)
            if not config.languages
            else pl.col("language_bucket").is_in(config.languages).fill_null(False)
            for config in self.models
        ]
        # The first model that scores the pair's language, whether or not its score came out finite.
        chosen = pl.coalesce(
            pl.when(is_asked).then(pl.lit(config.name))
            for is_asked, config in zip(asked, self.models, strict=True)
        )
        score = pl.coalesce(
            pl.when(pl.col("clip_model") == config.name).then(pl.col(f"clip_score_{config.name}"))
            for config in self.models
        )
        why = (
            pl.when(pl.col("clip_error").is_not_null())
            .then("clip_error")
            .when(pl.col("clip_model").is_null())
            .then(pl.lit("no_model_for_language"))
            .when(pl.col("clip_score").is_null())
            .then(pl.lit("not_finite"))
        )
        table = (
            table.with_columns(clip_model=chosen).with_columns(clip_score=score).with_columns(clip_error=why)
        )
        return table.select("uid", *clip_columns(self.models))


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage, after a check that its models can be there."""
    output, tagger = Path(config.output_dir), config.tagger
    models = tagger.resolved_models()
    check_models(models)
    watermark = weights_of(tagger.watermark, tagger.weights_cache) if runs_with_clip(config) else None
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
        "decode_margin": tagger.decode_margin,
        "watermark": None if watermark is None else watermark.sha256,
    }
    stage = ClipStage(
        name="tag/clip",
        folder=output / "tags" / "clip",
        settings=settings,
        raw=output / "raw",
        language_tags=output / "tags" / "language" if needs_language else None,
        models=models,
        device=tagger.device,
        precision=tagger.precision,
        image_batch_size=tagger.image_batch_size,
        decode_margin=tagger.decode_margin,
        watermark=watermark,
        max_workers=max_model_workers(tagger.device),
    )
    return [stage]
