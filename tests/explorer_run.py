"""A small run as the pipeline leaves it, with embeddings that are known: for tests of the index and the explorer."""

import io
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from toy_stages import Inline

from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter
from data_pipeline import index
from data_pipeline.embeddings import image_name, text_name, uids_name, write_uids
from data_pipeline.index import IndexConfig
from data_pipeline.select import DECISIONS_NAME, DECISIONS_SCHEMA, RECIPE_NAME
from data_pipeline.stage import run_stage

DIM = 32
LANGUAGES = ("en", "de", "ja", None)
DOMAINS = ("a.example", "b.example", "c.example")
MODEL = {
    "name": "tiny",
    "model": "ViT-B-32",
    "pretrained": "openai",
    "text_model": None,
    "weights_sha256": None,
    "languages": [],
}


@dataclass
class MadeRun:
    """What was written, in the order of the shards."""

    folder: Path
    rows: pl.DataFrame  # uid, url, text, language, clip_score, punsafe, kept
    images: np.ndarray  # [N, D] float16, unit; NaN for a pair without an embedding
    texts: np.ndarray


def jpeg(colour, size=(48, 40)):
    """A plain picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def unit_rows(generator, count, dim=DIM, clusters=20):
    """Unit vectors in groups, as embeddings are, float16."""
    centres = generator.normal(size=(clusters, dim))
    values = centres[generator.integers(clusters, size=count)] + 0.6 * generator.normal(size=(count, dim))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16)


def write_run(folder, *, rows=240, shards=3, seed=0, punsafe=True, images=None, model=None, name="first"):
    """Raw shards, language, unsafe and clip tags, and a recipe's decisions."""
    generator = np.random.default_rng(seed)
    embeddings = unit_rows(generator, rows) if images is None else images
    texts = unit_rows(generator, rows)
    if images is None:
        embeddings[5] = np.nan  # a pair whose image did not decode
    table = pl.DataFrame(
        [
            {
                "uid": uid_of(f"http://{DOMAINS[n % 3]}/{name}/{n}.jpg", f"caption {n} of {name}"),
                "url": f"http://{DOMAINS[n % 3]}/{name}/{n}.jpg",
                "text": f"caption {n} of {name}",
                "language": LANGUAGES[n % 4],
                "clip_score": float(np.float32(n / rows)),
                "punsafe": (n % 10) / 10 if punsafe else None,
                "kept": n % 2 == 0,
            }
            for n in range(rows)
        ]
    )
    edges = np.linspace(0, rows, shards + 1).astype(int)
    names = [f"{number:08d}" for number in range(shards)]
    taggers = ["language", "clip", *(["unsafe"] if punsafe else [])]
    for tagger in ("raw", *(f"tags/{each}" for each in taggers)):
        (folder / tagger).mkdir(parents=True)
        manifest = {"stage": tagger, "shards": [{"name": each} for each in names], "settings": {}}
        if tagger == "tags/clip":
            manifest["settings"] = {"models": [model or MODEL], "precision": "fp32"}
        (folder / tagger / "manifest.json").write_text(json.dumps(manifest))
    for shard, (start, end) in zip(names, pairwise(edges), strict=True):
        part = table[start:end]
        _write_raw(folder / "raw", shard, part)
        tags = folder / "tags"
        part.select("uid", "language").write_parquet(tags / "language" / f"{shard}.parquet")
        part.select("uid", "clip_score", clip_error=pl.lit(None, pl.String)).write_parquet(
            tags / "clip" / f"{shard}.parquet"
        )
        if punsafe:
            part.select("uid", pl.col("punsafe").cast(pl.Float32)).write_parquet(
                tags / "unsafe" / f"{shard}.parquet"
            )
        write_uids(tags / "clip" / uids_name(shard), part["uid"].to_list())
        np.save(tags / "clip" / image_name(shard, "tiny"), embeddings[start:end])
        np.save(tags / "clip" / text_name(shard, "tiny"), texts[start:end])
        for tagger in ("raw", *(f"tags/{each}" for each in taggers)):
            write_stats(folder / tagger, shard, len(part))
    _write_decisions(folder / "subset", table, dict(zip(names, pairwise(edges), strict=True)))
    return MadeRun(folder, table, embeddings, texts)


def _write_raw(folder, shard, part):
    blank = dict.fromkeys(DOWNLOAD_SCHEMA.names)
    rows = [
        {
            **blank,
            **{key: row[key] for key in ("uid", "url", "text")},
            "text_source": "alt", "status": "success", "page_url": f"http://page.example/{row['uid']}",
            "crawl_file": "crawl/x.warc.gz", "offset": 123, "page_date": "2024-08-0" + str(1 + n % 3),
            "original_width": 480 + n, "original_height": 400, "bytes": 5000 + n, "format": "jpeg",
            "md5": "0" * 32, "sha256": "1" * 64, "phash": "2" * 16,
        }
        for n, row in enumerate(part.iter_rows(named=True))
    ]  # fmt: skip
    lost = {**blank, "uid": uid_of(f"{shard}/lost", "lost"), "url": "http://x/lost", "text": "lost"}
    rows.append({**lost, "text_source": "alt", "status": "timeout"})
    pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{shard}.parquet")
    with ShardWriter(folder / f"{shard}.tar") as writer:
        for n, row in enumerate(part.iter_rows(named=True)):
            colour = (int(row["uid"][:2], 16), n % 256, 77)
            members = {"jpg": jpeg(colour), "txt": row["text"].encode(), "json": b"{}"}
            writer.write(row["uid"], members)


def write_stats(folder, shard, rows):
    counts = {"rows_in": rows, "rows_out": rows, "dropped": {}, "extra": {}}
    (folder / f"{shard}.stats.json").write_text(json.dumps({"counts": counts, "seconds": 1.0}))


def _write_decisions(folder, table, shards):
    folder.mkdir(parents=True)
    parts = []
    for shard, (start, end) in shards.items():
        part = table[start:end]
        reasons = [None if kept else "too_low" for kept in part["kept"]]
        parts.append(
            pa.table(
                [
                    pa.array(part["uid"].to_list()),
                    pa.array([shard] * len(part)).dictionary_encode(),
                    pa.array(part["kept"].to_list()),
                    pa.array(reasons, pa.string()).dictionary_encode(),
                ],
                schema=DECISIONS_SCHEMA,
            )
        )
    pq.write_table(pa.concat_tables(parts).unify_dictionaries(), folder / DECISIONS_NAME)
    rule = {"reason": "too_low", "keep": "clip_score >= {x}", "top_fraction": None, "of": None, "by": None}
    told = {
        "recipe": {"name": "half", "version": "1", "source": "a test", "rules": [rule]},
        "conditions": {"too_low": "clip_score >= 0.5"},
        "rows_in": len(table),
        "rows_out": int(table["kept"].sum()),
        "funnel": [
            {"reason": "too_low", "dropped": int((~table["kept"]).sum()), "left": int(table["kept"].sum())}
        ],
        "top_fractions": {},
    }
    (folder / RECIPE_NAME).write_text(json.dumps(told))
    (folder / "manifest.json").write_text(json.dumps({"stage": "select", "shards": [{"name": "subset"}]}))
    write_stats(folder, "subset", len(table))


def settings(folder, **changes):
    """What the index stage looks at of the pipeline's settings."""
    values = {
        "exact_rows": 100_000, "memory_budget_gb": 1.0, "rows_per_part": 100, "recall_queries": 50,
        "min_recall": 0.95, **changes,
    }  # fmt: skip
    return SimpleNamespace(
        output_dir=str(folder),
        index=IndexConfig(**values),
        tagger=SimpleNamespace(taggers=["language", "clip"]),
    )


def build_index(folder, **changes):
    """Runs the index stage on a run."""
    for stage in index.make_stages(settings(folder, **changes)):
        run_stage(stage, Inline(), max_failed_fraction=0.0)
