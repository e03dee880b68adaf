"""All that is known of one pair: where it came from, what the taggers say, why it was kept or dropped, what is like it.

Read from the run's own tables by uid when it is asked for, so nothing of it is held in memory.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from crawl2clip.errors import DataError
from data_pipeline.explorer.library import Library
from data_pipeline.index import FOLDER
from data_pipeline.index_columns import DECISION, KEPT, tag_tables, taggers_of
from data_pipeline.select import RECIPE_NAME, read_recipe

_PROVENANCE = ("crawl_file", "offset", "page_url", "page_date", "page_language", "license", "consent")
_DERIVED = ("short_side", "aspect_ratio", "text_length")  # what rules read and nobody stores but the index
_NEIGHBOURS = 24


def sample_detail(library: Library, row: int) -> dict[str, Any]:
    """provenance, download, tags (by tagger) and decisions (by recipe) of a pair."""
    run, part, place = library.run_of(row)
    uid = part.uids(np.array([place]))[0]
    shard = part.shards[part.column("shard")[place].as_py()]
    stored = _row(run.folder / "raw" / f"{shard}.parquet", uid)
    tags = {
        path.parent.name: {name: value for name, value in _row(path, uid).items() if name != "uid"}
        for path in tag_tables(run.folder / "tags", taggers_of(run.folder / "tags"), shard)
    }
    derived = library.take(np.array([row]), [name for name in _DERIVED if name in library.columns])
    values = stored | {name: column[0] for name, column in derived.items()}
    values |= {name: value for columns in tags.values() for name, value in columns.items()}
    return {
        "uid": uid,
        "url": stored.get("url"),
        "text": stored.get("text"),
        "run": run.name,
        "shard": shard,
        "provenance": {name: stored.get(name) for name in _PROVENANCE},
        "download": {
            name: value
            for name, value in stored.items()
            if name not in (*_PROVENANCE, "uid", "url", "text") and value is not None
        },
        "tags": tags,
        "decisions": _decisions(
            run.folder, library.take(np.array([row]), _decision_columns(library)), values
        ),
    }


def _row(path: Path, uid: str) -> dict[str, Any]:
    """A table's row of a uid, by predicate; empty when it has none.

    Raises:
        DataError: the table is missing or damaged.
    """
    try:
        found = pl.scan_parquet(path).filter(pl.col("uid") == uid).head(1).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); put it back, or make the index again without it"
        ) from error
    return found.row(0, named=True) if len(found) else {}


def _decision_columns(library: Library) -> list[str]:
    return [name for name in library.columns if name.startswith(DECISION)]


def recipe_folders(run: Path) -> list[Path]:
    """The folders of a run that hold a recipe's verdicts, its own first."""
    others = sorted((run / FOLDER / "select").glob("*")) if (run / FOLDER / "select").is_dir() else []
    return [folder for folder in (run / "subset", *others) if (folder / RECIPE_NAME).is_file()]


def recipes_of(run: Path) -> list[dict[str, Any]]:
    """What each recipe's file says: recipe, conditions, rows_in, rows_out, funnel, top_fractions."""
    # read_recipe takes the folder above `subset`; a comparison's folder has the same file under its own name.
    own = run / "subset"
    return [
        read_recipe(run) if folder == own else _read(folder / RECIPE_NAME) for folder in recipe_folders(run)
    ]


def _read(path: Path) -> dict[str, Any]:
    from crawl2clip.files import read_json

    return read_json(path)


def _decisions(run: Path, verdicts: dict[str, list[Any]], values: dict[str, Any]) -> list[dict[str, Any]]:
    """For each recipe: kept, and its rules in order with how the pair fared and the values they looked at."""
    made = []
    for told in recipes_of(run):
        name = told["recipe"]["name"]
        if DECISION + name not in verdicts:
            continue
        verdict = verdicts[DECISION + name][0]
        if verdict is None:
            continue
        made.append(
            {
                "recipe": name,
                "version": told["recipe"]["version"],
                "kept": verdict == KEPT,
                "reason": None if verdict == KEPT else verdict,
                "rules": _rules(told, verdict, values),
            }
        )
    return made


def _rules(told: dict[str, Any], verdict: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    rules, reached = [], True
    for rule in told["recipe"]["rules"]:
        reason = rule["reason"]
        condition = told["conditions"].get(reason) or _in_words(rule, told)
        # A missing value is counted as missing_<column>, under the rule that needed it.
        words = set(re.findall(r"[a-z_][a-z0-9_]*", condition))
        failed = reached and verdict in (reason, *(f"missing_{word}" for word in words), "missing_value")
        outcome = "failed" if failed else "passed" if reached else "not looked at"
        looked_at = {
            name: values[name] for name in sorted(words) if name in values and name not in ("text", "uid")
        }
        rules.append({"reason": reason, "condition": condition, "outcome": outcome, "values": looked_at})
        reached = reached and not failed
    return rules


def _in_words(rule: dict[str, Any], told: dict[str, Any]) -> str:
    """A rule without a condition, with the score it came to."""
    if rule.get("top_fraction") is None:
        return "; ".join(
            f"{key} {value}" for key, value in rule.items() if value is not None and key != "reason"
        )
    groups = told.get("top_fractions", {}).get(rule["reason"], {})
    cuts = ", ".join(
        f"{group}: {cut['score']:.4g}" for group, cut in groups.items() if cut.get("score") is not None
    )
    by = f" in each {rule['by']}" if rule.get("by") else ""
    return f"top {100 * rule['top_fraction']:g}% by {rule['of']}{by}" + (
        f" (lowest kept: {cuts})" if cuts else ""
    )


def near_duplicates(library: Library, row: int, min_cosine: float) -> list[tuple[int, float]]:
    """Rows whose image is nearly this one's, and the cosine; not all where there are very many."""
    vector = library.embeddings_of("image", np.array([row]))[0]
    if not np.isfinite(vector).all() or not vector.any():
        return []
    rows, scores = library.nearest("image", vector, _NEIGHBOURS + 1, [None] * len(library.runs))
    return [
        (int(other), float(score))
        for other, score in zip(rows, scores, strict=True)
        if score >= min_cosine and other != row
    ]
