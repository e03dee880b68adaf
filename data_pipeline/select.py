"""The select stage: a recipe's verdict on every downloaded pair.

Download table and tags are joined by uid, shard by shard, reading only the columns that the rules use. Output, in
`subset/`: `subset.uids.npy` (DataComp's format: the kept uids, sorted, as pairs of unsigned 64-bit numbers),
`subset.decisions.parquet` (uid, shard, kept, reason) and `subset.recipe.json` (the recipe, the funnel and, for each
top fraction, the score it came to).

Memory: one shard's columns, 16 bytes for each kept pair (the sorted array is the output), and while a top fraction
is found the column's own 4 or 8 bytes for each pair still in play. Each top fraction costs two more passes over the
tables; it is exact over all shards, and pairs with equal scores are told apart by uid.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json
from data_pipeline import storage
from data_pipeline.recipe import (
    KeepRule,
    RecipeConfig,
    Rule,
    TopFractionRule,
    base_schema,
    columns_to_read,
    compile_rules,
    with_derived,
)
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, is_finished
from data_pipeline.subset import sorted_uids, uid_halves
from data_pipeline.tables import read_table
from data_pipeline.tag import known_columns, tag_columns
from data_pipeline.top_fraction import Cuts, above_cut, find_cuts

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

UIDS_NAME = "subset.uids.npy"
DECISIONS_NAME = "subset.decisions.parquet"
RECIPE_NAME = "subset.recipe.json"

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
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One: a top fraction looks at every row.

        Raises:
            DataError: a tagger has not tagged every raw shard.
        """
        names = finished_shards(self.raw)
        inputs = [str(self.raw / f"{name}.parquet") for name in names]
        for tagger in self._taggers_needed():
            missing = [name for name in names if not is_finished(self.tags / tagger, name)]
            if missing:
                raise DataError(
                    f"recipe {self.recipe.name!r} needs the columns of the {tagger} tagger, but {len(missing)} of "
                    f"{len(names)} raw shards have no {self.tags / tagger}/NAME.parquet (the first: {missing[0]}); run "
                    "stage=tag with the same settings"
                )
            inputs += [str(self.tags / tagger / f"{name}.parquet") for name in names]
        return [Shard("subset", tuple(inputs))] if names else []

    def _taggers_needed(self) -> list[str]:
        """The taggers whose columns some rule reads."""
        read = columns_to_read(self.rules)
        return [tagger for tagger, columns in self.tagger_columns.items() if read & set(columns)]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the subset."""
        cuts: dict[str, Cuts] = {}
        for number, rule in enumerate(self.rules):
            if isinstance(rule, TopFractionRule):
                cuts[rule.reason] = find_cuts(rule, partial(self._survivors, number, cuts))
        reason = reason_of(self.rules, cuts)
        counts, kept = Counts(), []
        with pq.ParquetWriter(temporary / DECISIONS_NAME, DECISIONS_SCHEMA, compression="zstd") as writer:
            for name, frame in self._tables():
                decided = with_derived(frame.lazy(), self.rules).select("uid", reason=reason).collect()
                counts.rows_in += len(decided)
                counts.dropped.update(dict(decided["reason"].drop_nulls().value_counts().iter_rows()))
                kept.append(uid_halves(decided.filter(pl.col("reason").is_null())["uid"]))
                writer.write_table(_decisions_table(name, decided))
        uids = sorted_uids(kept)
        counts.rows_out = len(uids)
        np.save(temporary / UIDS_NAME, uids)
        self._write_recipe(temporary / RECIPE_NAME, counts, cuts)
        return counts

    def _tables(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """(raw shard name, one row for each stored pair with the columns the rules read), in shard order."""
        read = columns_to_read(self.rules)
        stored = [
            "uid",
            *sorted(read - {"uid"} - {c for columns in self.tagger_columns.values() for c in columns}),
        ]
        for name in finished_shards(self.raw):
            frame = read_table(self.raw / f"{name}.parquet", stored, stored_only=True)
            for tagger in self._taggers_needed():
                columns = [column for column in self.tagger_columns[tagger] if column in read]
                tags = read_table(self.tags / tagger / f"{name}.parquet", ["uid", *columns])
                frame = frame.join(tags, on="uid", how="left", maintain_order="left")
            yield name, frame

    def _survivors(self, number: int, cuts: dict[str, Cuts]) -> Iterator[pl.DataFrame]:
        """uid and the columns of rule `number`, of the rows that passed the rules before it and can be ranked."""
        rule, before = self.rules[number], self.rules[:number]
        ranked = [pl.col(name).is_not_null() for name in rule.columns]
        for _, frame in self._tables():
            lazy = with_derived(frame.lazy(), [*before, rule]).filter(
                reason_of(before, cuts).is_null(), *ranked
            )
            yield lazy.select("uid", *dict.fromkeys(rule.columns)).collect()

    def _write_recipe(self, path: Path, counts: Counts, cuts: dict[str, Cuts]) -> None:
        left, steps = counts.rows_in, []
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
            "conditions": {rule.reason: rule.sql for rule in self.rules if isinstance(rule, KeepRule)},
            "rows_in": counts.rows_in,
            "rows_out": counts.rows_out,
            "funnel": funnel,
            "top_fractions": {
                reason: {group or "all": asdict(cut) for group, cut in groups.items()}
                for reason, groups in cuts.items()
            },
        }
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def reason_of(rules: list[Rule], cuts: dict[str, Cuts]) -> pl.Expr:
    """Text column: the reason of the first rule that a row fails; null for a row that passes them all.

    Args:
        rules: in order.
        cuts: by reason, for each top-fraction rule among them.
    """
    reasons = []
    for rule in rules:
        keep = rule.expression if isinstance(rule, KeepRule) else above_cut(rule, cuts[rule.reason])
        missing = [pl.when(pl.col(name).is_null()).then(pl.lit(f"missing_{name}")) for name in rule.columns]
        unanswered = pl.coalesce(*missing, pl.lit("missing_value"))
        reasons.append(pl.when(keep.is_null()).then(unanswered).when(~keep).then(pl.lit(rule.reason)))
    return pl.coalesce(*reasons, pl.lit(None, pl.String))


def _decisions_table(shard: str, decided: pl.DataFrame) -> pa.Table:
    reasons = decided["reason"].to_arrow().cast(pa.string()).dictionary_encode()
    columns = [
        decided["uid"].to_arrow().cast(pa.string()),
        pa.array([shard] * len(decided), pa.string()).dictionary_encode(),
        decided["reason"].is_null().to_arrow(),
        reasons,
    ]
    return pa.table(columns, schema=DECISIONS_SCHEMA)


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
    return SelectStage(
        name="select",
        folder=output / "subset",
        settings={"recipe": asdict(recipe)},
        raw=output / "raw",
        tags=output / "tags",
        recipe=recipe,
        tagger_columns={tagger: list(columns) for tagger, columns in tag_columns(config.tagger).items()},
        rules=rules,
    )


def read_decisions(output_dir: str | Path) -> pl.DataFrame:
    """The verdict on every downloaded pair of a run: uid, shard, kept, reason.

    Raises:
        DataError: the select stage has not run.
    """
    path = Path(output_dir) / "subset" / DECISIONS_NAME
    if not storage.exists(path):
        raise DataError(f"{path} is missing; run stage=select")
    storage.fetch(path)
    return pl.read_parquet(path)


def read_recipe(output_dir: str | Path) -> dict[str, Any]:
    """What select wrote about its recipe: recipe, conditions, rows_in, rows_out, funnel, top_fractions."""
    path = Path(output_dir) / "subset" / RECIPE_NAME
    if storage.exists(path):
        storage.fetch(path)
    return read_json(path)
