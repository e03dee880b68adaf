"""What is different between two recipes, and how many rows it changes.

    python -m data_pipeline.recipe_diff laion5b_en mine.yaml --data runs/laion

prints the settings and rules that differ; with a run whose pairs are tagged, both recipes judge every pair, and what is
printed is how many both keep, how many only one of them, and for what reason the other drops those. Nothing is written.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from crawl2clip.errors import Crawl2ClipError, DataError
from data_pipeline.completion import read_settings
from data_pipeline.judge import Judge
from data_pipeline.recipe import RecipeConfig
from data_pipeline.recipe_by_name import load_recipe
from data_pipeline.rules import Rule, base_schema, compile_rules
from data_pipeline.run_tables import RunTables
from data_pipeline.select import tables_for
from data_pipeline.stage import MANIFEST, finished_shards

_ASIDE = ("name", "version", "source", "rules", "parameters")  # shown otherwise, or no difference


def settings_diff(a: RecipeConfig, b: RecipeConfig) -> list[str]:
    """A line for each setting and parameter that differs."""
    old, new = asdict(a), asdict(b)
    lines = [
        f"{name}: {_shown(old[name])} -> {_shown(new[name])}"
        for name in old
        if name not in _ASIDE and old[name] != new[name]
    ]
    for name in sorted(a.parameters.keys() | b.parameters.keys()):
        left, right = (recipe.parameters.get(name) for recipe in (a, b))
        if left != right:
            lines.append(f"parameters.{name}: {_shown(left)} -> {_shown(right)}")
    return lines


def rules_diff(a: RecipeConfig, b: RecipeConfig) -> list[str]:
    """A line for each rule: `=` the same, `-` only in the first, `+` only in the second, `~` changed."""
    old, new = ({rule.reason: _words(recipe, rule) for rule in recipe.rules} for recipe in (a, b))
    lines = []
    for reason, words in old.items():
        if reason not in new:
            lines.append(f"- {reason}: {words}")
        elif new[reason] != words:
            lines.append(f"~ {reason}: {words} -> {new[reason]}")
        else:
            lines.append(f"= {reason}: {words}")
    lines += [f"+ {reason}: {words}" for reason, words in new.items() if reason not in old]
    common = [reason for reason in old if reason in new]
    if common != [reason for reason in new if reason in old]:
        lines.append("! the rules that both have stand in another order")
    return lines


def _words(recipe: RecipeConfig, rule: Any) -> str:
    if rule.keep is None:
        kinds = {
            name: value for name, value in asdict(rule).items() if value is not None and name != "reason"
        }
        return ", ".join(f"{name} {value}" for name, value in kinds.items())
    values = {**recipe.parameters, "min_text_length": recipe.min_text_length, "min_bytes": recipe.min_bytes}
    words = rule.keep
    for name, value in values.items():
        words = words.replace(f"{{{name}}}", repr(value))
    return words


def _shown(value: Any) -> str:
    return "none" if value in (None, [], "") else str(getattr(value, "value", value))


def run_schema(output_dir: Path) -> tuple[pl.Schema, dict[str, list[str]]]:
    """(every column of a run that has been tagged, tagger -> its columns).

    Raises:
        DataError: the folder is not a run.
    """
    if not (output_dir / "raw" / MANIFEST).is_file():
        raise DataError(f"{output_dir} is not a run: it has no raw/{MANIFEST}; give the output_dir of one")
    schema, columns = dict(base_schema()), {}
    for manifest in sorted((output_dir / "tags").glob(f"*/{MANIFEST}")):
        tables = [manifest.parent / f"{name}.parquet" for name in finished_shards(manifest.parent)]
        if tables and tables[0].is_file():
            found = pl.read_parquet_schema(tables[0])
            columns[manifest.parent.name] = [name for name in found if name != "uid"]
            schema.update({name: found[name] for name in columns[manifest.parent.name]})
    return pl.Schema(schema), columns


def count_rows(output_dir: Path, a: RecipeConfig, b: RecipeConfig) -> Counter[tuple[str | None, str | None]]:
    """(reason by the first recipe, by the second) -> pairs of the run; None for a pair that is kept.

    Raises:
        ConfigError: a rule needs a column that the run does not have.
        DataError: the folder is not a run, or a table is missing or damaged.
    """
    schema, columns = run_schema(output_dir)
    rules = [compile_rules(recipe, schema) for recipe in (a, b)]
    judges = [_learnt(_tables(output_dir, each, columns, a.name), each) for each in rules]
    counted: Counter[tuple[str | None, str | None]] = Counter()
    for batch in _tables(output_dir, [*rules[0], *rules[1]], columns, a.name).batches():
        first, second = (judge.reasons(batch.frame) for judge in judges)
        pairs = pl.DataFrame({"first": first, "second": second}).group_by("first", "second").len()
        counted.update({(left, right): rows for left, right, rows in pairs.iter_rows()})
    return counted


def _tables(output_dir: Path, rules: list[Rule], columns: dict[str, list[str]], recipe: str) -> RunTables:
    tables = tables_for(output_dir / "raw", output_dir / "tags", rules, columns)
    tables.inputs(f"recipe {recipe!r}")
    return tables


def _learnt(tables: RunTables, rules: list[Rule]) -> Judge:
    judge = Judge(rules)

    def frames() -> Iterator[pl.DataFrame]:
        return (batch.frame for batch in tables.batches())

    judge.learn(frames)
    return judge


def rows_diff(a: str, b: str, counted: Counter[tuple[str | None, str | None]]) -> list[str]:
    """The lines that tell how many rows change, and why."""
    total = sum(counted.values())
    only_a = Counter(
        {right: rows for (left, right), rows in counted.items() if left is None and right is not None}
    )
    only_b = Counter(
        {left: rows for (left, right), rows in counted.items() if right is None and left is not None}
    )
    both = counted[None, None]
    lines = [
        f"{total:,} pairs: {both + only_a.total():,} kept by {a}, {both + only_b.total():,} by {b}",
        f"{both:,} kept by both; {only_a.total():,} by {a} only; {only_b.total():,} by {b} only; "
        f"{total - both - only_a.total() - only_b.total():,} by neither",
    ]
    for keeps, drops, reasons in ((a, b, only_a), (b, a, only_b)):
        lines += [
            f"kept by {keeps}, dropped by {drops} as {reason}: {rows:,}"
            for reason, rows in reasons.most_common()
        ]
    return lines


def tag_notes(output_dir: Path, recipes: Sequence[RecipeConfig]) -> list[str]:
    """What the run's scores were made with, where a recipe asks for something else."""
    notes = []
    manifest = output_dir / "tags" / "clip" / MANIFEST
    tagged = read_settings(manifest.parent).get("models", []) if manifest.is_file() else []
    made = {(entry.get("model"), entry.get("pretrained")) for entry in tagged}
    for recipe in recipes:
        if "clip" in recipe.taggers and recipe.clip_pretrained is not None and tagged:
            asked = (recipe.clip_model, recipe.clip_pretrained)
            if asked not in made:
                notes.append(
                    f"note: {recipe.name} asks for the scores of {asked[0]} {asked[1]}; those of this run are of "
                    + ", ".join(f"{model} {weights}" for model, weights in sorted(made, key=str))
                )
    return notes


def main(words: Sequence[str]) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.recipe_diff",
        description="Prints what is different between two recipes and, on a tagged run, how many pairs it changes.",
    )
    parser.add_argument("a", metavar="RECIPE", help="a name in configs/recipe, or a YAML file")
    parser.add_argument("b", metavar="RECIPE", help="another one")
    parser.add_argument("--data", metavar="FOLDER", help="output_dir of a run with the tags that both need")
    asked = parser.parse_args(words)
    try:
        a, b = load_recipe(asked.a), load_recipe(asked.b)
        print(f"{a.name} (version {a.version}) -> {b.name} (version {b.version})")
        print("settings", *(settings_diff(a, b) or ["the same"]), sep="\n  ")
        print("rules", *rules_diff(a, b), sep="\n  ")
        if asked.data is not None:
            output_dir = Path(asked.data)
            lines = rows_diff(a.name, b.name, count_rows(output_dir, a, b))
            print(f"rows of {output_dir}", *lines, *tag_notes(output_dir, (a, b)), sep="\n  ")
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
