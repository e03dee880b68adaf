"""A run's metadata in the forms that others publish, for tools that read those.

    python -m data_pipeline.export laion5b runs/laion out/laion5b
    python -m data_pipeline.export datacomp runs/pool out/datacomp

- `laion400m`: the kept pairs, parquet with the columns of LAION-400M: SAMPLE_ID, URL, TEXT, HEIGHT, WIDTH, LICENSE,
  NSFW, similarity.
- `laion5b`: the kept pairs, parquet with the columns of LAION-5B's joined sets: URL, TEXT, WIDTH, HEIGHT, LANGUAGE,
  similarity, hash, pwatermark, punsafe, md5, aesthetic; those of taggers that did not run are left out.
- `datacomp`: every stored pair, as DataComp's pools are: `metadata/NAME.parquet` (uid, url, text, original_width,
  original_height, clip_b32_similarity_score, clip_l14_similarity_score, face_bboxes, sha256), `metadata/NAME.npz`
  (b32_img, b32_txt, l14_img, l14_txt: float16, rows as in the parquet) and, when the run is selected, `subset.npy`.

One file a raw shard, several at a time. An export that is killed goes on when it is run again.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from crawl2clip.errors import Crawl2ClipError, DataError
from crawl2clip.files import atomic_path
from crawl2clip.logs import setup_logging
from data_pipeline.completion import read_settings
from data_pipeline.embeddings import image_name, read_embeddings, text_name, uids_name
from data_pipeline.executors import executor_of_command
from data_pipeline.select import UIDS_NAME
from data_pipeline.stage import (
    MANIFEST,
    Counts,
    Executor,
    Shard,
    Stage,
    is_finished,
    run_stage,
    stream_finished,
)
from data_pipeline.subset import is_in_subset, open_uids, uid_halves
from data_pipeline.tables import read_table

OPENAI_MODELS = {"b32": "ViT-B-32", "l14": "ViT-L-14"}
"""DataComp's names for the two models whose scores it publishes -> open_clip's; both with OpenAI's weights."""
_STORED = ("url", "text", "license", "original_width", "original_height", "md5", "sha256")


class ExportForm(str, Enum):
    """The forms there are."""

    laion400m = "laion400m"
    laion5b = "laion5b"
    datacomp = "datacomp"


@dataclass
class ExportStage(Stage):
    """Writes the metadata of one raw shard at a time."""

    name: str
    folder: Path
    settings: dict[str, Any]
    run_dir: Path
    form: ExportForm

    def shards(self) -> Iterator[Shard]:
        """One for each complete raw shard."""
        raw = self.run_dir / "raw"
        extra = [] if self.form == ExportForm.datacomp else [str(self.run_dir / "subset" / UIDS_NAME)]
        for name in stream_finished(raw):
            yield Shard(name, (str(raw / f"{name}.parquet"), *extra))

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes one file, or two."""
        frame = _tagged(self.run_dir, shard.name)
        counts = Counts(rows_in=len(frame))
        if self.form != ExportForm.datacomp:
            kept = is_in_subset(uid_halves(frame["uid"]), open_uids(self.run_dir / "subset" / UIDS_NAME))
            frame = frame.filter(pl.Series(kept, dtype=pl.Boolean))
        table = COLUMNS[self.form](self.run_dir, frame)
        counts.rows_out = len(table)
        if counts.rows_in > counts.rows_out:
            counts.dropped["not_selected"] = counts.rows_in - counts.rows_out
        table.write_parquet(temporary / f"{shard.name}.parquet")
        if self.form == ExportForm.datacomp:
            arrays = _embeddings(self.run_dir, shard.name, frame["uid"])
            if arrays:
                with open(temporary / f"{shard.name}.npz", "wb") as file:
                    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return counts


def _tagged(run_dir: Path, name: str) -> pl.DataFrame:
    """The stored pairs of a raw shard with every column that the taggers added."""
    frame = read_table(run_dir / "raw" / f"{name}.parquet", ["uid", *_STORED], stored_only=True)
    for manifest in sorted((run_dir / "tags").glob(f"*/{MANIFEST}")):
        path = manifest.parent / f"{name}.parquet"
        if is_finished(manifest.parent, name) and path.is_file():
            columns = [column for column in pl.read_parquet_schema(path) if column not in frame.columns]
            tags = read_table(path, ["uid", *columns])
            frame = frame.join(tags, on="uid", how="left", maintain_order="left")
    return frame


def _column(frame: pl.DataFrame, name: str, kind: Any) -> pl.Expr:
    return (pl.col(name) if name in frame.columns else pl.lit(None)).cast(kind)


def laion400m_columns(run_dir: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """LAION-400M's columns. SAMPLE_ID is the first half of our uid, since theirs is nowhere described."""
    half = pl.col("uid").str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)
    return frame.select(
        half.reinterpret(signed=True).alias("SAMPLE_ID"),
        URL="url",
        TEXT="text",
        HEIGHT=pl.col("original_height").cast(pl.Int32),
        WIDTH=pl.col("original_width").cast(pl.Int32),
        LICENSE=pl.col("license").fill_null("?"),
        NSFW=_column(frame, "nsfw", pl.String),
        similarity=_column(frame, "clip_score", pl.Float64),
    )


def laion5b_columns(run_dir: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """The columns of LAION-5B's joined sets, in their order."""
    import mmh3

    # The join key of LAION's own tools: the first 64 bits of MurmurHash3 (x64, 128 bits, seed 0) of url and text.
    hashes = [mmh3.hash64(url + text)[0] for url, text in zip(frame["url"], frame["text"], strict=True)]
    tags = (
        ("pwatermark", pl.Float32),
        ("punsafe", pl.Float32),
        ("md5", pl.String),
        ("aesthetic", pl.Float32),
    )
    return frame.select(
        pl.col("url").alias("URL"),
        pl.col("text").alias("TEXT"),
        pl.col("original_width").cast(pl.Int32).alias("WIDTH"),
        pl.col("original_height").cast(pl.Int32).alias("HEIGHT"),
        *([pl.col("language").alias("LANGUAGE")] if "language" in frame.columns else []),
        _column(frame, "clip_score", pl.Float64).alias("similarity"),
        pl.Series("hash", hashes, dtype=pl.Int64),
        *[pl.col(name).cast(kind) for name, kind in tags if name in frame.columns],
    )


def datacomp_columns(run_dir: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """DataComp's columns; null for a score of a model that the run has not, and for face boxes."""
    models = openai_models(run_dir)
    scores = {
        f"clip_{key}_similarity_score": _column(frame, f"clip_score_{models.get(key, '')}", pl.Float64)
        for key in OPENAI_MODELS
    }
    return frame.select(
        "uid", "url", "text",
        original_width=pl.col("original_width").cast(pl.Int64),
        original_height=pl.col("original_height").cast(pl.Int64),
        **scores,
        face_bboxes=pl.lit(None, pl.List(pl.List(pl.Float64))),
        sha256="sha256",
    )  # fmt: skip


COLUMNS: dict[ExportForm, Callable[[Path, pl.DataFrame], pl.DataFrame]] = {
    ExportForm.laion400m: laion400m_columns,
    ExportForm.laion5b: laion5b_columns,
    ExportForm.datacomp: datacomp_columns,
}


def openai_models(run_dir: Path) -> dict[str, str]:
    """b32 and l14 -> what the run's clip tagger calls the model, for those that it has with their own text tower."""
    manifest = run_dir / "tags" / "clip" / MANIFEST
    tagged = read_settings(manifest.parent).get("models", []) if manifest.is_file() else []
    return {
        key: entry["name"]
        for key, model in OPENAI_MODELS.items()
        for entry in tagged
        if (entry.get("model"), entry.get("pretrained"), entry.get("text_model")) == (model, "openai", None)
    }


def _embeddings(run_dir: Path, name: str, uids: pl.Series) -> dict[str, np.ndarray]:
    """DataComp's arrays, a row for each of the uids."""
    clip, arrays = run_dir / "tags" / "clip", {}
    for key, model in openai_models(run_dir).items():
        for suffix, file in (("img", image_name(name, model)), ("txt", text_name(name, model))):
            if not (clip / file).is_file():
                continue
            listed, values = read_embeddings(clip / uids_name(name), clip / file)
            places = pl.DataFrame({"uid": listed, "place": np.arange(len(listed))})
            order = pl.DataFrame({"uid": uids}).join(places, on="uid", how="left", maintain_order="left")[
                "place"
            ]
            if order.null_count():
                raise DataError(
                    f"{clip / uids_name(name)} lacks {order.null_count()} of the pairs of raw shard {name}; run "
                    "stage=tag again in a new output_dir"
                )
            arrays[f"{key}_{suffix}"] = np.asarray(values)[order.to_numpy()].astype(np.float16)
    return arrays


def export(form: ExportForm, run_dir: Path, output: Path, executor: Executor) -> int:
    """Writes the metadata; the number of pairs.

    Raises:
        DataError: the folder is not a run, or has not been selected.
        ConfigError: the output folder holds another export.
    """
    if not (run_dir / "raw" / MANIFEST).is_file():
        raise DataError(f"{run_dir} is not a run: it has no raw/{MANIFEST}; give the output_dir of one")
    subset = run_dir / "subset"
    if form != ExportForm.datacomp and not (subset / UIDS_NAME).is_file():
        raise DataError(
            f"{subset / UIDS_NAME} is missing; run stage=select: {form.value} has kept pairs only"
        )
    folder = output / "metadata"
    stage = ExportStage("export", folder, {"form": form.value}, run_dir, form)
    report = run_stage(stage, executor, max_failed_fraction=0.0)
    if (
        form == ExportForm.datacomp
        and (subset / UIDS_NAME).is_file()
        and not (output / "subset.npy").exists()
    ):
        with atomic_path(output / "subset.npy") as temporary:
            shutil.copyfile(subset / UIDS_NAME, temporary)
    return report.counts.rows_out


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.export",
        description="Writes a run's metadata in a form that others publish.",
    )
    parser.add_argument("form", choices=[form.value for form in ExportForm])
    parser.add_argument("run", metavar="FOLDER", help="output_dir of a run")
    parser.add_argument("output", metavar="FOLDER", help="where to write")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    asked = parser.parse_args(words)
    setup_logging()
    try:
        rows = export(
            ExportForm(asked.form), Path(asked.run), Path(asked.output), executor_of_command(asked.workers)
        )
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{rows:,} pairs written to {asked.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
