"""What a data set's papers say about it, gathered from the run's own records: nothing in them is written by hand."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crawl2clip.files import read_json
from crawl2clip.logs import provenance
from crawl2clip.shards import MANIFEST_NAME
from data_pipeline.completion import read_settings
from data_pipeline.report_data import Gathered, StageRow, read_stage_rows
from data_pipeline.select import read_recipe
from data_pipeline.stage import MANIFEST, progress_of

VALUES_TOLD = 20
CONSENT_REASONS = ("robots_disallowed", "opted_out")


@dataclass(frozen=True)
class Shards:
    """The training shards, once they are there."""

    files: int
    samples: int
    size_bytes: int
    sha256: dict[str, str]  # by file name


@dataclass(frozen=True)
class Facts:
    """A data set in numbers."""

    name: str  # of the recipe
    version: str
    source: str  # the publication
    looked_at: int  # pairs
    kept: int
    funnel: list[dict[str, Any]]  # the recipe's: reason, dropped, left
    conditions: dict[str, str]  # by reason
    stages: list[StageRow]
    taggers: dict[str, str]  # name -> the models it used, in words
    blocklists: int
    takedowns: list[str]
    languages: list[tuple[str, int]]  # kept pairs of the most frequent ones
    domains: list[tuple[str, int]]
    licenses: list[tuple[str, int]]
    num_languages: int
    num_domains: int
    shards: Shards | None
    crawl_files: int | None
    made: dict[str, Any] = field(default_factory=dict)  # provenance

    @property
    def consent(self) -> dict[str, int]:
        """Addresses that were not fetched or not stored, because a site said so."""
        dropped = next((row.counts.dropped for row in self.stages if row.stage == "download"), {})
        return {reason: dropped.get(reason, 0) for reason in CONSENT_REASONS}

    @property
    def date(self) -> str:
        """When the papers were made: YYYY-MM-DD."""
        return str(self.made["time"])[:10]


def gather_facts(output_dir: Path, gathered: Gathered) -> Facts:
    """The facts about a run that has been selected."""
    told = read_recipe(output_dir)
    recipe = told["recipe"]
    return Facts(
        name=recipe["name"],
        version=recipe["version"],
        source=recipe["source"],
        looked_at=told["rows_in"],
        kept=told["rows_out"],
        funnel=told["funnel"],
        conditions=told["conditions"],
        stages=read_stage_rows(output_dir),
        taggers={tagger: _models(output_dir / "tags" / tagger) for tagger in gathered.taggers},
        blocklists=told.get("blocklists", 0),
        takedowns=sorted(path.name.removeprefix("takedown-") for path in output_dir.glob("takedown-*")),
        languages=_kept(gathered.languages.kept),
        domains=_kept(gathered.domains.kept),
        licenses=_kept(gathered.licenses.kept),
        num_languages=len(gathered.languages.kept),
        num_domains=len(gathered.domains.kept),
        shards=_shards(output_dir / "shards"),
        crawl_files=_num_shards(output_dir / "candidates"),
        made=provenance(),
    )


def _kept(counts: Any) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:VALUES_TOLD]


def _models(folder: Path) -> str:
    """The models a tagger's settings name, in words."""
    settings = read_settings(folder)
    models = settings.get("models", [])
    if isinstance(models, list) and models:
        return ", ".join(
            " ".join(str(entry[key]) for key in ("model", "pretrained", "text_model") if entry.get(key))
            for entry in models
        )
    return str(settings.get("language_detector") or "")


def _num_shards(folder: Path) -> int | None:
    return progress_of(folder)[1] if (folder / MANIFEST).is_file() else None


def _shards(folder: Path) -> Shards | None:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    value = read_json(path)
    entries = value["shards"]
    return Shards(
        files=len(entries),
        samples=value["samples"],
        size_bytes=sum(entry["bytes"] for entry in entries),
        sha256={entry["name"]: entry["sha256"] for entry in entries},
    )
