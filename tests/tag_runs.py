"""Runs taggers on one made raw shard: a tiny model's export, images, captions, settings."""

import io
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from toy_stages import Inline

from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.language import LanguageDetector
from data_pipeline.stage import Counts, run_stage
from data_pipeline.tag import TagConfig, make_stages, tag_columns

NAME = "00000000"
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}
CAPTIONS = (
    "a photo of a cat",
    "ein Bild von einem Hund im Garten",
    "3.14",
    "the red house on the hill",
    "猫の写真です",
)


def export(folder, seed=0):
    torch.manual_seed(seed)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, folder, provenance={})
    return str(folder)


def png(seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(256, size=(20, 24, len(mode)), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def write_raw(output, images, *, statuses=None, texts=CAPTIONS, **columns):
    """One raw shard, a pair for each text; an image of None is left out of the tar. Returns the uids."""
    uids = [uid_of(f"http://a.b/{index}", text) for index, text in enumerate(texts)]
    pairs = [
        {"uid": uid, "text": text, **{name: values[row] for name, values in columns.items()}}
        for row, (uid, text) in enumerate(zip(uids, texts, strict=True))
    ]
    for pair, status in zip(pairs, statuses or [], strict=False):
        pair["status"] = status
    write_raw_shards(output, [pairs], [images])
    return uids


def write_raw_shards(output, shards, images=None):
    """Raw shards of lists of rows (`status` is success where it is not given), as the download stage leaves them."""
    raw = output / "raw"
    raw.mkdir(parents=True)
    blank = {
        **dict.fromkeys(DOWNLOAD_SCHEMA.names),
        "url": "",
        "text_source": "alt",
        "text": "",
        "status": "success",
    }
    names = [f"{number:08d}" for number in range(len(shards))]
    for number, (name, rows) in enumerate(zip(names, shards, strict=True)):
        table = pa.Table.from_pylist([{**blank, **row} for row in rows], DOWNLOAD_SCHEMA)
        pq.write_table(table, raw / f"{name}.parquet")
        if images is not None:
            with ShardWriter(raw / f"{name}.tar") as writer:
                for row, image in zip(rows, images[number], strict=True):
                    if image is not None:
                        parts = {"png": image, "txt": b"the parquet's text counts", "json": b"{}"}
                        writer.write(row["uid"], parts)
        counts = Counts(len(rows), len(rows)).to_json()
        (raw / f"{name}.stats.json").write_text(json.dumps({"counts": counts, "seconds": 0.0}))
    (raw / "manifest.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))


def config_of(weights=None, models=(), taggers=("language", "clip"), **more):
    settings = {
        "language_detector": LanguageDetector.fasttext, "min_language_probability": 0.5,
        "device": "cpu", "precision": "fp32", "image_batch_size": 2, "decode_margin": 2.0, "weights_cache": "unused",
    }  # fmt: skip
    models = [ClipModelConfig(**model) for model in models]
    return TagConfig(taggers=list(taggers), pretrained=weights, models=models, **{**settings, **more})


def tag(output, config):
    """Runs the taggers; returns their tables, all shards together, and the last stage's counts."""
    counts = None
    for stage in make_stages(SimpleNamespace(output_dir=str(output), tagger=config)):
        counts = run_stage(stage, Inline(), max_failed_fraction=0.0).counts.to_json()
    tables = {}
    for tagger, columns in tag_columns(config).items():
        tables[tagger] = pl.read_parquet(sorted((output / "tags" / tagger).glob("[0-9]*.parquet")))
        assert dict(tables[tagger].schema) == {"uid": pl.String, **columns}
        assert tables[tagger].columns == ["uid", *columns]
    return tables, counts
