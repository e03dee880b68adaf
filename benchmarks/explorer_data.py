"""A tagged run of synthetic pairs for benchmarks/explorer.py: embeddings in clusters, tags, no images."""

import json
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from crawl2clip.schema import DOWNLOAD_SCHEMA
from data_pipeline.embeddings import image_name, uids_name
from data_pipeline.subset import uid_halves

CLUSTERS = 2_000
SPREAD = 1.2
"""Noise of a row around its cluster's centre, relative to the centre's length: two rows of one cluster then have a
cosine of 0.4 and rows of two clusters none; captions of images in CLIP's space lie like that."""

MODEL = {
    "name": "b32", "model": "ViT-B-32", "pretrained": "openai", "text_model": None, "weights_sha256": None,
    "languages": [],
}  # fmt: skip


def centres(dim: int) -> np.ndarray:
    """[CLUSTERS, dim] float32 unit vectors, the same each time."""
    values = np.random.default_rng(1).normal(size=(CLUSTERS, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def near(some: np.ndarray, generator: np.random.Generator, count: int, spread: float = SPREAD) -> np.ndarray:
    """[count, dim] float32 unit vectors, each around one of some centres."""
    dim = some.shape[1]
    chosen = some[generator.integers(len(some), size=count)]
    noise = generator.standard_normal((count, dim), np.float32) * np.float32(spread / np.sqrt(dim))
    values = chosen + noise
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write_run(folder: Path, rows: int, dim: int, rows_per_shard: int) -> None:
    """Raw tables, language, clip and unsafe tags of `rows` pairs; nothing where they are already."""
    if (folder / "tags" / "clip" / "manifest.json").exists():
        return
    names = [f"{number:08d}" for number in range(-(-rows // rows_per_shard))]
    around = centres(dim)
    for each in ("raw", "tags/language", "tags/clip", "tags/unsafe"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        generator = np.random.default_rng(number + 100)
        count = min(rows_per_shard, rows - number * rows_per_shard)
        halves = generator.integers(0, 2**63, size=(count, 2)).astype(np.uint64)
        uids = [f"{int(high):016x}{int(low):016x}" for high, low in halves]
        _write_shard(folder, name, uids, generator)
        np.save(
            folder / "tags" / "clip" / image_name(name, "b32"),
            near(around, generator, count).astype(np.float16),
        )
        packed = np.ascontiguousarray(uid_halves(pl.Series(uids))).view("u8,u8").reshape(-1)
        np.save(folder / "tags" / "clip" / uids_name(name), packed)
    for each in ("raw", "tags/language", "tags/unsafe", "tags/clip"):
        manifest = {
            "stage": each,
            "shards": [{"name": name} for name in names],
            "settings": {"models": [MODEL]},
        }
        (folder / each / "manifest.json").write_text(json.dumps(manifest))


def _write_shard(folder: Path, name: str, uids: list[str], generator: np.random.Generator) -> None:
    count = len(uids)
    domains = generator.zipf(1.3, size=count).clip(max=50_000)
    given = {
        "uid": uids,
        "url": [f"https://host{domain}.example/{uid}.jpg" for domain, uid in zip(domains, uids, strict=True)],
        "text": [f"a caption of a picture with the number {uid[:8]}" for uid in uids],
        "text_source": ["alt"] * count,
        "status": ["success"] * count,
        "page_date": ["2024-08-01"] * count,
        "format": ["jpeg"] * count,
        "bytes": generator.integers(5_000, 500_000, size=count),
        "original_width": generator.integers(64, 2_000, size=count),
        "original_height": generator.integers(64, 2_000, size=count),
    }
    lacking = [field.name for field in DOWNLOAD_SCHEMA if field.name not in given]
    frame = pl.DataFrame(given).with_columns(pl.lit(None).alias(each) for each in lacking)
    table = frame.select(DOWNLOAD_SCHEMA.names).to_arrow().cast(DOWNLOAD_SCHEMA)
    pq.write_table(table, folder / "raw" / f"{name}.parquet")
    with tarfile.open(folder / "raw" / f"{name}.tar", "w"):
        pass
    languages = np.array(["en", "de", "fr", "ja", "zh"])[
        generator.choice(5, size=count, p=[0.5, 0.2, 0.15, 0.1, 0.05])
    ]
    tags = folder / "tags"
    pl.DataFrame({"uid": uids, "language": languages}).write_parquet(tags / "language" / f"{name}.parquet")
    score = generator.normal(0.25, 0.05, size=count).astype(np.float32)
    pl.DataFrame({"uid": uids, "clip_score": score}).write_parquet(tags / "clip" / f"{name}.parquet")
    unsafe = (generator.random(count) ** 4).astype(np.float32)
    pl.DataFrame({"uid": uids, "punsafe": unsafe}).write_parquet(tags / "unsafe" / f"{name}.parquet")
    stats = json.dumps(
        {"counts": {"rows_in": count, "rows_out": count, "dropped": {}, "extra": {}}, "seconds": 0.0}
    )
    for each in ("raw", "tags/language", "tags/clip", "tags/unsafe"):
        (folder / each / f"{name}.stats.json").write_text(stats)
