"""The select stage: a recipe's verdict on every downloaded pair.

Download table and tags are joined by uid, some shards at a time, reading only the columns that the rules use. Output,
in `subset/`: `subset.uids.npy` (DataComp's format: the kept uids, sorted, as pairs of unsigned 64-bit numbers),
`subset.decisions.parquet` (uid, shard, kept, reason) and `subset.recipe.json` (the recipe, the funnel and, for each
top fraction, the score it came to).

Memory does not grow with the run: some shards' columns, counters, and one 256th of the kept uids at a time. Each top
fraction costs two more passes over the tables, or a few more where scores are equal, and each balancing one.
"""

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import MISSING

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json, sha256_of
from data_pipeline.blocked import Blocked, sort_blocklists
from data_pipeline.blocklist import BlockKind
from data_pipeline.blocklist_files import check_blocklists
from data_pipeline.judge import BLOCKED, Judge
from data_pipeline.recipe import RecipeConfig
from data_pipeline.rules import KeepRule, Rule, base_schema, columns_to_read, compile_rules
from data_pipeline.run_tables import Batch, RunTables
from data_pipeline.stage import Counts, Shard, Stage
from data_pipeline.subset import SubsetWriter, uid_halves
from data_pipeline.tag import known_columns, tag_columns
from data_pipeline.taggers.hamming import MAX_RADIUS, HammingIndex

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

UIDS_NAME = "subset.uids.npy"
DECISIONS_NAME = "subset.decisions.parquet"
RECIPE_NAME = "subset.recipe.json"
_BLOCKED_REASONS = [f"blocked_{kind.value}" for kind in BlockKind]


@dataclass(kw_only=True, slots=True)
class SelectConfig:
    """What is taken out whatever the recipe says."""

    # Hash lists (`python -m data_pipeline.blocklist --help`), all kinds; applied before the first rule, counted as
    # blocked_<kind>.
    blocklist: list[str] = field(default_factory=list)
    phash_distance: int = MISSING  # bits of 64 in which a perceptual hash may differ from a listed one

    def __post_init__(self) -> None:
        if isinstance(self.phash_distance, int) and not 0 <= self.phash_distance <= MAX_RADIUS:
            raise ConfigError(
                f"select.phash_distance is {self.phash_distance}; give 0 to {MAX_RADIUS} bits of 64"
            )


DECISIONS_SCHEMA = pa.schema(
    [
        pa.field("uid", pa.string(), nullable=False),
        pa.field(
            "shard", pa.dictionary(pa.int32(), pa.string()), nullable=False
        ),  # raw shard that holds the image
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field(
            "reason", pa.dictionary(pa.int32(), pa.string())
        ),  # of the first rule it failed; null when kept
    ]
)
"""A row for every downloaded pair, in the order of the raw shards."""


@dataclass
class SelectStage(Stage):
    """Applies a recipe to all raw shards at once."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path
    tags: Path
    recipe: RecipeConfig
    tagger_columns: dict[str, list[str]]  # tagger -> the columns it adds
    rules: list[Rule]
    blocklist: tuple[str, ...] = ()
    phash_distance: int = 0
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One: a top fraction looks at every row.

        Raises:
            DataError: a tagger has not tagged every raw shard.
        """
        names, inputs = self._tables().inputs(f"recipe {self.recipe.name!r}")
        return [Shard("subset", tuple(inputs))] if names else []

    def _tables(self) -> RunTables:
        return tables_for(self.raw, self.tags, self.rules, self.tagger_columns)

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the subset."""
        with tempfile.TemporaryDirectory() as sorted_lists:
            blocked = sort_blocklists(self.blocklist, Path(sorted_lists)) if self.blocklist else None
            return self._run(blocked, temporary)

    def _run(self, blocked: Blocked | None, temporary: Path) -> Counts:
        tables, judge = self._tables(), Judge(self.rules, has_blocklist=blocked is not None)
        if blocked is not None:
            tables.stored = list(dict.fromkeys([*tables.stored, *blocked.columns]))

        near = None if blocked is None else blocked.near(self.phash_distance)

        def batches() -> Iterator[Batch]:
            for batch in tables.batches():
                yield batch if blocked is None or near is None else _marked(batch, blocked, near)

        judge.learn(lambda: (batch.frame for batch in batches()))
        counts, kept = Counts(), SubsetWriter(temporary / UIDS_NAME)
        # A dictionary of uids, none of which comes twice, would take longer than the rest.
        coded: Any = ["shard", "reason"]
        path = temporary / DECISIONS_NAME
        with pq.ParquetWriter(path, DECISIONS_SCHEMA, compression="zstd", use_dictionary=coded) as writer:
            for batch in batches():
                reasons = judge.reasons(batch.frame)
                counts.rows_in += len(reasons)
                counts.dropped.update(dict(reasons.drop_nulls().value_counts().iter_rows()))
                kept.add(uid_halves(batch.frame["uid"].filter(reasons.is_null())))
                for table in _decisions(batch, reasons):
                    writer.write_table(table)
        counts.rows_out = kept.close()
        self._write_recipe(temporary / RECIPE_NAME, counts, judge)
        return counts

    def _write_recipe(self, path: Path, counts: Counts, judge: Judge) -> None:
        left = counts.rows_in
        steps = [reason for reason in _BLOCKED_REASONS if counts.dropped[reason]]
        for rule in self.rules:
            missing = [f"missing_{column}" for column in (*rule.columns, "value")]
            steps.append(rule.reason)
            steps += [reason for reason in missing if reason not in steps]
        funnel = []
        for reason in steps:
            dropped = counts.dropped[reason]
            left -= dropped
            if dropped or not reason.startswith("missing_"):
                funnel.append({"reason": reason, "dropped": dropped, "left": left})
        value = {
            "recipe": asdict(self.recipe),
            "blocklists": len(self.blocklist),  # never their names or entries
            "conditions": {rule.reason: rule.sql for rule in self.rules if isinstance(rule, KeepRule)},
            "rows_in": counts.rows_in,
            "rows_out": counts.rows_out,
            "funnel": funnel,
            "top_fractions": {
                reason: {group or "all": asdict(cut) for group, cut in groups.items()}
                for reason, groups in judge.cuts.items()
            },
        }
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tables_for(raw: Path, tags: Path, rules: list[Rule], tagger_columns: dict[str, list[str]]) -> RunTables:
    """The tables of a run with the columns that rules read.

    Args:
        raw: the download stage's folder.
        tags: holds a folder for each tagger.
        rules: what is to be judged by.
        tagger_columns: tagger -> the columns it adds; what is of no tagger is read from the download tables.
    """
    read = columns_to_read(rules)
    tagged = {
        tagger: [name for name in columns if name in read] for tagger, columns in tagger_columns.items()
    }
    of_taggers = {name for columns in tagger_columns.values() for name in columns}
    return RunTables(
        raw,
        tags,
        stored=sorted(read - {"uid"} - of_taggers),
        tagged={tagger: columns for tagger, columns in tagged.items() if columns},
    )


def _marked(batch: Batch, blocked: Blocked, near: HammingIndex) -> Batch:
    """The batch with the column that says what is blocked."""
    kinds = blocked.kinds(batch.frame, near)
    places = np.where(kinds < 0, len(_BLOCKED_REASONS), kinds)
    names = pl.Series(BLOCKED, [*_BLOCKED_REASONS, None]).gather(places)
    return Batch(batch.frame.with_columns(names), batch.shards)


def _decisions(batch: Batch, reasons: pl.Series) -> Iterator[pa.Table]:
    """A table for each raw shard of the batch."""
    verdicts = pl.DataFrame({"uid": batch.frame["uid"], "kept": reasons.is_null(), "reason": reasons})
    for name, rows in batch.parts(verdicts):
        columns = [
            rows["uid"].to_arrow().cast(pa.string()),
            pa.DictionaryArray.from_arrays(pa.array([0] * len(rows), pa.int32()), pa.array([name])),
            rows["kept"].to_arrow(),
            rows["reason"].to_arrow().cast(pa.string()).dictionary_encode(),
        ]
        yield pa.table(columns, schema=DECISIONS_SCHEMA)


def make_stage(config: "PipelineConfig") -> SelectStage:
    """The select stage of a recipe; checks the recipe against the columns there will be.

    Raises:
        ConfigError: the recipe does not fit the columns, or needs a tagger that is not asked for.
    """
    recipe, output = config.recipe, Path(config.output_dir)
    lacking = [name for name in recipe.taggers if name not in config.tagger.taggers]
    if lacking:
        raise ConfigError(
            f"recipe {recipe.name!r} needs the tagger {', '.join(lacking)}, tagger.taggers is "
            f"{config.tagger.taggers}; leave tagger.taggers as the recipe has it, or add it"
        )
    rules = compile_rules(recipe, known_columns(config.tagger, base_schema()))
    settings: dict[str, Any] = {"recipe": asdict(recipe)}
    if config.select.blocklist:
        check_blocklists(config.select.blocklist, "select.blocklist")
        settings["blocklist"] = [sha256_of(path) for path in config.select.blocklist]
        settings["phash_distance"] = config.select.phash_distance
    return SelectStage(
        name="select",
        folder=output / "subset",
        settings=settings,
        raw=output / "raw",
        tags=output / "tags",
        recipe=recipe,
        tagger_columns={tagger: list(columns) for tagger, columns in tag_columns(config.tagger).items()},
        rules=rules,
        blocklist=tuple(config.select.blocklist),
        phash_distance=config.select.phash_distance,
    )


def read_decisions(output_dir: str | Path) -> pl.DataFrame:
    """The verdict on every downloaded pair of a run: uid, shard, kept, reason.

    Raises:
        DataError: the select stage has not run.
    """
    return pl.read_parquet(_decisions_file(output_dir))


def _decisions_file(output_dir: str | Path) -> Path:
    path = Path(output_dir) / "subset" / DECISIONS_NAME
    if not storage.exists(path):
        raise DataError(f"{path} is missing; run stage=select first")
    storage.fetch(path)
    return path


def iter_decisions(output_dir: str | Path) -> Iterator[tuple[str, pl.DataFrame]]:
    """(raw shard, the verdict on each of its pairs: uid, kept, reason), shard by shard, in the order of the raw shards.

    Raises:
        DataError: the select stage has not run.
    """
    held: list[pl.DataFrame] = []
    with pq.ParquetFile(_decisions_file(output_dir)) as file:
        for number in range(file.num_row_groups):
            rows = pl.DataFrame(pl.from_arrow(file.read_row_group(number)))
            rows = rows.with_columns(pl.col("shard", "reason").cast(pl.String))
            if held and len(rows) and rows["shard"][0] != held[0]["shard"][0]:
                yield held[0]["shard"][0], pl.concat(held).drop("shard")
                held = []
            held += [rows] if len(rows) else []  # a shard has one row group, a very large one several
    if held:
        yield held[0]["shard"][0], pl.concat(held).drop("shard")


def read_recipe(output_dir: str | Path) -> dict[str, Any]:
    """What select wrote about its recipe: recipe, conditions, rows_in, rows_out, funnel, top_fractions."""
    path = Path(output_dir) / "subset" / RECIPE_NAME
    if storage.exists(path):
        storage.fetch(path)
    return read_json(path)
