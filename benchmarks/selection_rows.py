"""A tagged run for benchmarks/selection.py: raw tables and tags as the stages write them, without the images.

    python selection_rows.py FOLDER ROWS ROWS_PER_SHARD

Uids are random, a shard has them in the same order in every table, captions are drawn from 20,000 texts, scores are
normal around 0.2 in English and 0.18 elsewhere, sizes log-normal; a caption has 0 to 7 of 500,000 metadata entries,
frequent ones far more often than rare ones (Zipf). A twentieth of the rows were not downloaded. Uids and scores are new
for each shard; the other columns are those of one of 50 shards, since drawing 100 million of them takes an hour.
"""

import binascii
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

WORDS = (
    "cat dog red photo of the a house vintage blue car women shoes in for free image size black wall art home design "
    "new wedding card stock vector tree view city"
)
TEXTS = 20_000
ENTRIES = 500_000
TEMPLATES = 50


def write_run(folder: Path, rows: int, rows_per_shard: int) -> None:
    """Makes `folder` a run with raw/ and the tags language, clip and metaclip; does nothing when it is there."""
    if (folder / "made.json").exists() and json.loads((folder / "made.json").read_text()) == [
        rows,
        rows_per_shard,
    ]:
        return
    random = np.random.default_rng(0)
    texts = pa.array([" ".join(random.choice(WORDS.split(), random.integers(1, 12))) for _ in range(TEXTS)])
    names = [f"{number:08d}" for number in range(-(-rows // rows_per_shard))]
    folders = {
        "raw": "download",
        "tags/language": "tag/language",
        "tags/clip": "tag/clip",
        "tags/metaclip": "tag/metaclip",
    }
    for each in folders:
        (folder / each).mkdir(parents=True, exist_ok=True)
    templates = [_tables(rows_per_shard, random, texts) for _ in range(min(TEMPLATES, len(names)))]
    for number, name in enumerate(names):
        count = min(rows_per_shard, rows - number * rows_per_shard)
        for each, table in _renewed(templates[number % len(templates)], count, random).items():
            coded: Any = [column for column in table.column_names if column != "uid"]
            pq.write_table(table, folder / each / f"{name}.parquet", compression="zstd", use_dictionary=coded)
            (folder / each / f"{name}.stats.json").write_text("{}")
    for each, stage in folders.items():
        value = {"stage": stage, "settings": {}, "shards": [{"name": name, "inputs": []} for name in names]}
        (folder / each / "manifest.json").write_text(json.dumps(value))
    (folder / "made.json").write_text(json.dumps([rows, rows_per_shard]))


def _renewed(template: dict[str, pa.Table], count: int, random: np.random.Generator) -> dict[str, pa.Table]:
    """The tables of a template, the first `count` rows with new uids and scores."""
    digits = binascii.hexlify(random.bytes(16 * count))
    uids = pa.StringArray.from_buffers(
        count, pa.py_buffer(np.arange(0, 32 * count + 1, 32, dtype=np.int32)), pa.py_buffer(digits)
    )
    raw = template["raw"].slice(0, count)
    stored = uids.filter(pa.array(raw.column("status").to_numpy() == "success"))
    tables = {each: table.slice(0, len(stored)).add_column(0, "uid", stored) for each, table in template.items()
              if each != "raw"}  # fmt: skip
    clip = tables["tags/clip"]
    jitter = random.normal(0, 0.01, len(stored)).astype(np.float32)
    score = pa.array(clip.column("clip_score").to_numpy() + jitter)
    return {
        "raw": raw.add_column(0, "uid", uids),
        **tables,
        "tags/clip": clip.set_column(1, "clip_score", score),
    }


def _tables(count: int, random: np.random.Generator, texts: pa.Array) -> dict[str, pa.Table]:
    """The tables of one shard, without uids."""
    stored = random.random(count) > 0.05
    bucket = random.choice(3, count, p=[0.4, 0.38, 0.22])
    sides = np.exp(random.normal(6.2, 0.6, (2, count))).astype(np.int32) + 16
    status = pa.DictionaryArray.from_arrays(
        pa.array(np.where(stored, 0, 1), pa.int8()), pa.array(["success", "timeout"])
    )
    raw = pa.table(
        {
            "text": pa.DictionaryArray.from_arrays(
                pa.array(random.integers(0, TEXTS, count, dtype=np.int32)), texts
            ).cast(pa.string()),
            "status": status.cast(pa.string()),
            "bytes": pa.array(np.exp(random.normal(10.5, 1.2, count)).astype(np.int64)),
            "original_width": pa.array(sides[0]),
            "original_height": pa.array(sides[1]),
        }
    )
    bucket, kept = bucket[stored], int(stored.sum())
    buckets = pa.DictionaryArray.from_arrays(
        pa.array(bucket.astype(np.int8)), pa.array(["en", "other", "unknown"])
    )
    languages = pa.DictionaryArray.from_arrays(pa.array(bucket.astype(np.int8)), pa.array(["en", "de", "fr"]))
    score = random.normal(np.where(bucket == 0, 0.20, 0.18), 0.07).astype(np.float32)
    lengths = random.integers(0, 8, kept)
    entries = np.minimum(random.zipf(1.3, int(lengths.sum())) - 1, ENTRIES - 1).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return {
        "raw": raw,
        "tags/language": pa.table(
            {"language": languages.cast(pa.string()), "language_bucket": buckets.cast(pa.string())}
        ),
        "tags/clip": pa.table({"clip_score": pa.array(score)}),
        "tags/metaclip": pa.table(
            {"metaclip_entries": pa.ListArray.from_arrays(pa.array(offsets), pa.array(entries))}
        ),
    }


if __name__ == "__main__":
    write_run(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
