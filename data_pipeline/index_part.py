"""The second step of the index stage: each part's rows and codes, made of some tagged shards by one task.

Writes `NAME.rows.arrow` with its values (index_rows) and, for each modality, `NAME.<modality>.faiss`: the trained
index with the part's vectors in it, under their row numbers, and the embeddings themselves in its order
(index_vectors). `NAME.columns.json` tells which tags and verdicts its rows have: when a tagger or a recipe has been
run again, the parts whose rows it sees otherwise are made again, under the same row numbers.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.shards import ShardFault, index_shard
from data_pipeline.embeddings import read_uids, uids_name
from data_pipeline.index_columns import BASE, BASE_READ, DECISION, KEPT, filter_columns, tag_tables
from data_pipeline.index_embeddings import EmbeddingSource, unit, usable
from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_growth import forget, has_own_settings, shard_digest
from data_pipeline.index_plan import check_width, read_plan, source_of
from data_pipeline.index_rows import PLACES, PartRows, write_rows
from data_pipeline.index_vectors import listed_rows, write_vectors
from data_pipeline.select import DECISIONS_NAME
from data_pipeline.stage import Counts, Shard, Stage, is_finished
from data_pipeline.stored_images import IMAGE_FORMATS, image_extension
from data_pipeline.tables import read_table

logger = logging.getLogger(__name__)

_COLUMNS = ".columns.json"
_BATCH = 65_536  # vectors that are added at a time


@dataclass
class PartStage(Stage):
    """Makes the parts of the index."""

    name: str
    folder: Path
    settings: dict[str, Any]
    plan: Path  # folder of the step before
    raw: Path
    tags: Path
    taggers: list[str]  # whose columns are taken
    selections: dict[str, Path]  # recipe -> folder of its decisions
    max_workers: int | None = None

    def shards(self) -> list[Shard]:
        """One for each part of the plan."""
        decisions = [str(folder / DECISIONS_NAME) for folder in self.selections.values()]
        made = []
        for part in read_plan(self.plan)["parts"]:
            inputs = [part["plan"], *decisions]
            for shard in part["shards"]:
                inputs += [str(self.raw / f"{shard}.parquet"), str(self.raw / f"{shard}.tar")]
                inputs += [str(path) for path in tag_tables(self.tags, self.taggers, shard)]
            made.append(Shard(part["name"], tuple(inputs)))
        return made

    def prepare(self) -> None:
        """Takes the parts that have been planned since; has those made again whose tags or verdicts have changed."""
        if not has_own_settings(self):
            return
        changed = []
        for part in read_plan(self.plan)["parts"]:
            if is_finished(self.folder, part["name"]):
                made = read_json(self.folder / f"{part['name']}{_COLUMNS}")
                if made != self._digests(part["shards"]):
                    changed.append(part["name"])
        if changed:
            logger.info(
                "%s: %d parts are made again, their tags or verdicts have changed", self.name, len(changed)
            )
        forget(self, *changed)

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Makes one part."""
        plan = read_plan(self.plan)
        part = next(each for each in plan["parts"] if each["name"] == shard.name)
        counts = Counts()
        frames = [self._rows_of(number, name, counts) for number, name in enumerate(part["shards"])]
        # A category of which a shard has no value has no type there.
        frame = pl.concat(frames, how="diagonal_relaxed")
        if (repeated := frame.filter(pl.col("uid").is_duplicated())).height:
            raise DataError(
                f"the uid {repeated['uid'][0]} is in several of the raw shards {part['shards'][0]} to "
                f"{part['shards'][-1]}; run stage=deduplicate and the stages after it again, in a new output_dir"
            )
        # Noted first: what is made again in this moment is then seen to differ.
        write_json(temporary / f"{shard.name}{_COLUMNS}", self._digests(part["shards"]))
        write_rows(self._with_decisions(frame, part["shards"]), temporary / shard.name)
        rows = PartRows(temporary, shard.name, part["base"], part["shards"])
        for modality in plan["modalities"]:
            source = source_of(self.tags / "clip", plan["model"], modality)
            self._add_vectors(source, rows, temporary, counts)
        counts.rows_in = counts.rows_out = len(frame)
        return counts

    def _rows_of(self, number: int, shard: str, counts: Counts) -> pl.DataFrame:
        """A shard's pairs with everything a row has, but the verdicts."""
        stored = read_table(self.raw / f"{shard}.parquet", BASE_READ, stored_only=True)
        frame = stored.select("uid", "url", "text", *(made.alias(name) for name, made in BASE.items()))
        places = pl.DataFrame({"uid": read_uids(self.tags / "clip" / uids_name(shard))})
        places = places.with_row_index("embedding_row").with_columns(shard=pl.lit(number, pl.UInt32))
        frame = frame.join(places, on="uid", how="inner").join(
            self._images(shard, counts), on="uid", how="left"
        )
        for path in tag_tables(self.tags, self.taggers, shard):
            columns = filter_columns(read_table(path, _columns_of(path)))
            new = [name for name in columns.columns if name == "uid" or name not in frame.columns]
            frame = frame.join(columns.select(new), on="uid", how="left")
        return frame

    def _images(self, shard: str, counts: Counts) -> pl.DataFrame:
        """Where each pair's image lies in the tar."""

        def count(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        found = []
        extensions = list(IMAGE_FORMATS)
        for sample in index_shard(self.raw / f"{shard}.tar", count):
            extension = image_extension(sample.fields)
            if extension is not None:
                found.append((sample.key, *sample.fields[extension], extensions.index(extension)))
        schema = {"uid": pl.String} | {
            name: PLACES[name] for name in ("image_offset", "image_bytes", "image_extension")
        }
        return pl.DataFrame(found, schema=schema, orient="row")

    def _with_decisions(self, frame: pl.DataFrame, shards: list[str]) -> pl.DataFrame:
        """With a column for each recipe: `kept`, or why not; null where it did not judge."""
        for recipe in self.selections:
            frame = frame.join(self._verdicts(recipe, shards), on="uid", how="left")
        return frame

    def _verdicts(self, recipe: str, shards: list[str]) -> pl.DataFrame:
        """uid, and a recipe's verdict over the pairs of some shards."""
        return (
            pl.scan_parquet(self.selections[recipe] / DECISIONS_NAME)
            .with_columns(pl.col("shard", "reason").cast(pl.String))
            .filter(pl.col("shard").is_in(shards))
            .select("uid", pl.when("kept").then(pl.lit(KEPT)).otherwise("reason").alias(DECISION + recipe))
            .collect()
        )

    def _digests(self, shards: list[str]) -> dict[str, str]:
        """Tagger -> a digest of its records of some shards; recipe -> one of its verdicts over them."""
        found = {}
        for name in self.taggers:
            found[f"tags/{name}"] = _digest(shard_digest([self.tags / name], shard) for shard in shards)
        for recipe in self.selections:
            verdicts = self._verdicts(recipe, shards).sort("uid")
            found[recipe] = _digest(verdicts.select(pl.concat_str(pl.all(), ignore_nulls=True)).to_series())
        return found

    def _add_vectors(self, source: EmbeddingSource, rows: PartRows, temporary: Path, counts: Counts) -> None:
        """Writes the index and the embeddings of one modality; rows are those of the table that was just written."""
        faiss = load_faiss()

        faiss.omp_set_num_threads(1)  # every core has a worker
        index = faiss.read_index(str(self.plan / f"plan.{source.modality}.faiss"))
        for some, vectors in _vectors_of(source, rows, index.d):
            index.add_with_ids(unit(vectors), rows.base + some)
        stem = temporary / f"{rows.name}.{source.modality}"
        faiss.write_index(index, f"{stem}.faiss")
        counts.extra[f"without_{source.modality}_embedding"] += len(rows) - int(index.ntotal)
        order, dim = listed_rows(index) - rows.base, int(index.d)
        del index  # its codes are not needed beside the embeddings
        write_vectors(stem, order, len(rows), dim, _vectors_of(source, rows, dim))


def _vectors_of(source: EmbeddingSource, rows: PartRows, dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of a part, int64, and their embeddings [N, D] float16 as the tagger wrote them: those that are there."""
    shard_of, row_of = (rows.column(name).to_numpy() for name in ("shard", "embedding_row"))
    for number, shard in enumerate(rows.shards):
        values = source.read_shard(shard)[1]
        check_width(source.paths(shard)[0], values, dim)
        places = np.flatnonzero(shard_of == number)
        for start in range(0, len(places), _BATCH):
            batch = places[start : start + _BATCH]
            vectors = values[row_of[batch]]
            there = usable(vectors)
            yield batch[there], vectors[there]


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _columns_of(path: Path) -> list[str]:
    return list(pl.read_parquet_schema(path))
