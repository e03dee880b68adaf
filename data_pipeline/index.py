"""The index stage: what the explorer searches, built from the tags of a run.

Three steps of the frame in `index/`: a plan (which index, trained), parts (rows and codes, one task each), the whole
(merged, recall measured). Before them, recipes to compare with are judged, each into `index/select/<recipe>`. Rows are
found by uid; images stay where they are. Shards that were tagged since are added when the stage runs again: what was
trained and the parts that are there stay. Another crawl is a run with an index of its own; the explorer opens several.
"""

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import MISSING

from crawl2clip import storage
from crawl2clip.errors import ConfigError
from data_pipeline import select
from data_pipeline.completion import listed_shards
from data_pipeline.index_columns import taggers_of
from data_pipeline.index_faiss import require_faiss
from data_pipeline.index_growth import forget, has_own_settings
from data_pipeline.index_part import PartStage
from data_pipeline.index_plan import PlanStage, model_record
from data_pipeline.index_whole import WholeStage
from data_pipeline.recipe_by_name import load_recipe
from data_pipeline.stage import MANIFEST, Counts, Shard, Stage, progress_of

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

FOLDER = "index"


@dataclass(kw_only=True, slots=True)
class IndexConfig:
    """How a run is indexed."""

    exact_rows: int = MISSING  # up to so many rows, search is exact
    memory_budget_gb: float = MISSING  # what codes and row numbers of one modality may take, in 10^9 bytes
    rows_per_part: int = MISSING  # rows that one task indexes
    recall_queries: int = MISSING  # embeddings of the data that recall is measured with
    min_recall: float = MISSING  # recall@10 that the search effort is raised to, 0 to 1
    recipes: list[str] = field(default_factory=list)  # names in configs/recipe to judge too, for comparison

    def __post_init__(self) -> None:
        for name, least in (("exact_rows", 0), ("rows_per_part", 1), ("recall_queries", 1)):
            if isinstance(value := getattr(self, name), int) and value < least:
                raise ConfigError(f"index.{name} is {value}; give {least} or more")
        if isinstance(self.memory_budget_gb, float) and self.memory_budget_gb <= 0:
            raise ConfigError(f"index.memory_budget_gb is {self.memory_budget_gb}; give GB above 0")
        if isinstance(self.min_recall, float) and not 0 <= self.min_recall <= 1:
            raise ConfigError(f"index.min_recall is {self.min_recall}; give 0 to 1")


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The steps.

    Raises:
        ConfigError: faiss is not installed, or the run has no embeddings.
    """
    require_faiss()
    output = Path(config.output_dir)
    index, tags = output / FOLDER, output / "tags"
    if "clip" not in config.tagger.taggers:
        raise ConfigError(
            f"stage=index needs the embeddings of the clip tagger, tagger.taggers is {config.tagger.taggers}; name the "
            "recipe that the run was tagged with, or add clip and run stage=tag"
        )
    compared = [_comparison(config, name) for name in config.index.recipes]
    selections = {each.recipe.name: each.folder for each in compared}
    if progress_of(output / "subset")[0]:
        selections = {select.read_recipe(output)["recipe"]["name"]: output / "subset", **selections}
    asked = config.index
    plan = PlanStage(
        name="index/plan",
        folder=index / "plan",
        settings={
            **{name: getattr(asked, name) for name in ("exact_rows", "memory_budget_gb", "rows_per_part")},
            "model": model_record(tags / "clip"),
        },
        raw=output / "raw",
        clip=tags / "clip",
        exact_rows=asked.exact_rows,
        memory_budget_gb=asked.memory_budget_gb,
        rows_per_part=asked.rows_per_part,
    )
    parts = PartStage(
        name="index/parts",
        folder=index / "parts",
        settings={},  # tags and verdicts that change are seen by the parts
        plan=plan.folder,
        raw=output / "raw",
        tags=tags,
        taggers=taggers_of(tags),
        selections=selections,
    )
    whole = WholeStage(
        name="index/whole",
        folder=index / "whole",
        settings={"recall_queries": asked.recall_queries, "min_recall": asked.min_recall},
        plan=plan.folder,
        parts=parts.folder,
        recall_queries=asked.recall_queries,
        min_recall=asked.min_recall,
    )
    return [*compared, plan, parts, whole]


class Comparison(select.SelectStage):
    """The verdicts of another recipe over the same tags; nothing is dropped by them."""

    def prepare(self) -> None:
        """Judges again when there are other tagged shards than it had."""
        path, now = self.folder / MANIFEST, self.shards()
        if not path.exists() or not has_own_settings(self):
            return
        had = {entry["name"]: entry["inputs"] for entry in listed_shards(self.folder, {})}
        if had != {shard.name: storage.public(shard.inputs) for shard in now}:
            forget(self, *(shard.name for shard in now))

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the subset; what the recipe would drop is counted beside the funnel."""
        counts = super().run(context, shard, temporary)
        reasons = Counter({f"{self.recipe.name}_{reason}": rows for reason, rows in counts.dropped.items()})
        return Counts(rows_in=counts.rows_in, rows_out=counts.rows_in, extra=reasons)


def _comparison(config: "PipelineConfig", name: str) -> Comparison:
    """The stage for a recipe of configs/recipe."""
    stage = select.make_stage(replace(config, recipe=load_recipe(name)))
    made = Comparison(**{each.name: getattr(stage, each.name) for each in fields(stage)})
    made.name = f"index/select/{name}"
    made.folder = Path(config.output_dir) / FOLDER / "select" / name
    return made
