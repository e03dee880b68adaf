"""The clip tagger: how similar CLIP finds image and text, for every stored pair, and the image embeddings.

For each raw shard it writes `NAME.parquet` (one row for each stored pair, in the order of the raw parquet: uid,
clip_score, clip_model, clip_score_<model name>, clip_error) and `NAME.npy` (the image embeddings, float16
[rows, D], L2-normalised, row i belongs to row i of the parquet; further image towers: `NAME.<model name>.npy`).

Each image is decoded once, whatever the number of models, and each image tower runs once however many text towers
are compared with it: LAION-5B scored English with OpenAI's text tower and the rest with a multilingual one, both
against the same image features. A pair without an image that decodes keeps its row, with null scores, NaN
embeddings and the reason in clip_error.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from crawl2clip.errors import ConfigError
from crawl2clip.shards import ShardFault, read_samples
from data_pipeline.clip_models import (
    ClipModelConfig,
    SentenceTextTower,
    TextTower,
    check_models,
    clip_columns,
    weights_fingerprint,
)
from data_pipeline.stage import Counts, Shard, Stage, finished_shards
from data_pipeline.stored_images import decode_image, image_extension
from data_pipeline.tables import read_table

if TYPE_CHECKING:
    import torch

    from crawl2clip.encoder import Encoder
    from data_pipeline.config import PipelineConfig

CLIP_ERRORS = ("missing_image", "undecodable", "not_finite", "no_model_for_language")


@dataclass
class LoadedModels:
    """What a worker holds: the distinct image towers, and each model's text tower."""

    image_towers: "dict[str, Encoder]"  # by the name of the first model that uses it
    tower_of: dict[str, str]  # model name -> its image tower's key
    text_towers: dict[str, TextTower]  # by model name


@dataclass
class ClipStage(Stage):
    """Tags raw shards with CLIP similarity and image embeddings."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    language_tags: Path | None  # the language tagger's folder, when a model scores some languages only
    models: tuple[ClipModelConfig, ...]  # model and pretrained filled in
    device: str
    precision: str
    image_batch_size: int
    max_workers: int | None = None

    def shards(self) -> list[Shard]:
        """One for each complete raw shard."""
        made = []
        for name in finished_shards(self.raw):
            inputs = [self.raw / f"{name}.parquet", self.raw / f"{name}.tar"]
            if self.language_tags is not None:
                inputs.append(self.language_tags / f"{name}.parquet")
            made.append(Shard(name, tuple(str(path) for path in inputs)))
        return made

    def setup(self) -> LoadedModels:
        """Loads the models on this worker's device."""
        from crawl2clip.distributed import pick_device
        from crawl2clip.encoder import load_encoder

        device = pick_device(self.device, _gpu_of_this_worker(self.device))
        loaded = LoadedModels({}, {}, {})
        keys: dict[tuple[str | None, str | None], str] = {}
        for config in self.models:
            key = keys.setdefault((config.model, config.pretrained), config.name)
            if key == config.name:
                loaded.image_towers[key] = load_encoder(
                    config.model, config.pretrained, device=device, precision=self.precision
                )
            loaded.tower_of[config.name] = key
            tower = loaded.image_towers[key]
            loaded.text_towers[config.name] = (
                tower if config.text_model is None else SentenceTextTower(config.text_model, device)
            )
        return loaded

    def run(self, context: LoadedModels, shard: Shard, temporary: Path) -> Counts:
        """Scores one raw shard."""
        pairs = self._read_pairs(shard)
        embeddings = {
            key: np.full((len(pairs), tower.embed_dim), np.nan, dtype=np.float32)
            for key, tower in context.image_towers.items()
        }
        errors = np.full(len(pairs), "missing_image", dtype=object)
        counts = Counts(rows_in=len(pairs), rows_out=len(pairs))
        row_of = {uid: row for row, uid in enumerate(pairs["uid"])}
        for rows, images in self._batches(shard.inputs[1], row_of, context, errors, counts):
            for key, batch in images.items():
                embeddings[key][rows] = context.image_towers[key].encode_images(batch).numpy()
        scores = {config.name: self._score(config, pairs, embeddings, context) for config in self.models}
        table = self._table(pairs, scores, errors)
        table.write_parquet(temporary / f"{shard.name}.parquet")
        for number, (key, values) in enumerate(embeddings.items()):
            name = f"{shard.name}.npy" if number == 0 else f"{shard.name}.{key}.npy"
            np.save(temporary / name, values.astype(np.float16))
        for reason, rows in table["clip_error"].drop_nulls().value_counts().iter_rows():
            counts.extra[f"no_score_{reason}"] += rows
        return counts

    def _read_pairs(self, shard: Shard) -> pl.DataFrame:
        """uid, text and, where a model asks for it, language_bucket of the shard's stored pairs."""
        pairs = read_table(shard.inputs[0], ["uid", "text"], stored_only=True)
        if self.language_tags is None:
            return pairs.with_columns(language_bucket=pl.lit(None, pl.String))
        languages = read_table(shard.inputs[2], ["uid", "language_bucket"])
        return pairs.join(languages, on="uid", how="left", maintain_order="left")

    def _batches(
        self, tar: str, row_of: dict[str, int], context: LoadedModels, errors: np.ndarray, counts: Counts
    ) -> "Iterator[tuple[list[int], dict[str, torch.Tensor]]]":
        """Rows and their preprocessed images [B, 3, H, W] for each image tower; fills `errors` as it goes."""
        import torch

        def count_fault(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        rows: list[int] = []
        images: dict[str, list[torch.Tensor]] = {key: [] for key in context.image_towers}
        for sample in read_samples(tar, count_fault):
            row = row_of.get(sample.key)
            if row is None:
                counts.extra["shard_unlisted_sample"] += 1
                continue
            extension = image_extension(sample.fields)
            if extension is None:
                continue
            image = decode_image(sample.fields[extension], extension)
            if image is None:
                errors[row] = "undecodable"
                continue
            errors[row] = None
            rows.append(row)
            for key, tower in context.image_towers.items():
                images[key].append(tower.preprocess(image))
            if len(rows) == self.image_batch_size:
                yield rows, {key: torch.stack(batch) for key, batch in images.items()}
                rows, images = [], {key: [] for key in images}
        if rows:
            yield rows, {key: torch.stack(batch) for key, batch in images.items()}

    def _score(
        self,
        config: ClipModelConfig,
        pairs: pl.DataFrame,
        embeddings: dict[str, np.ndarray],
        context: LoadedModels,
    ) -> np.ndarray:
        """Cosine of image and caption, float32 [rows], NaN where there is no image or the language is not its own."""
        scores = np.full(len(pairs), np.nan, dtype=np.float32)
        image_features = embeddings[context.tower_of[config.name]]
        mine = np.isfinite(image_features).all(axis=1)
        if config.languages:
            mine &= pairs["language_bucket"].is_in(config.languages).fill_null(False).to_numpy()
        rows = np.flatnonzero(mine)
        if len(rows) == 0:
            return scores
        text_features = context.text_towers[config.name].encode_texts(pairs["text"][rows].to_list()).numpy()
        if text_features.shape[1] != image_features.shape[1]:
            raise ConfigError(
                f"clip model {config.name!r}: the text tower {config.text_model!r} gives {text_features.shape[1]} "
                f"dimensions, the image tower {config.model or config.pretrained!r} {image_features.shape[1]}; name a "
                "text tower that was trained to match this image tower"
            )
        scores[rows] = np.einsum("nd,nd->n", image_features[rows], text_features)
        return scores

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


def _gpu_of_this_worker(device: str) -> int:
    """Worker slots take the GPUs in turn; 0 on the CPU."""
    if device == "cpu":
        return 0
    import torch

    return int(os.environ.get("CRAWL2CLIP_WORKER_SLOT", "0")) % max(torch.cuda.device_count(), 1)


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage, after a check that its models can be there."""
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
    )
    return [stage]
