"""The report stage: `report/report.html`, one page that shows what a run kept, what it dropped, and why.

Beside it lie the data set's papers: `report.datasheet.md`, `report.croissant.json` and `report.dataset_card.md`, the
README.md of a data set on the Hugging Face hub (report_papers.py).

`pipeline_sections` makes the page's sections from a run's folders, `report_page.render_report` the page; a script
that has more to tell (scores, loss curves) puts its own sections beside these and renders the page itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from data_pipeline.funnel_files import FILE_FUNNEL, StepFiles, read_step_files
from data_pipeline.judge import BLOCKED
from data_pipeline.report_data import (
    ExamplePair,
    Gathered,
    Histogram,
    StageRow,
    gather,
    read_stage_rows,
)
from data_pipeline.report_facts import gather_facts
from data_pipeline.report_page import (
    DROPPED_COLOR,
    KEPT_COLOR,
    Example,
    Section,
    bars,
    figure,
    grid,
    new_figure,
    paragraph,
    render_report,
    side_by_side,
    stacked_bars,
    table,
    tiles,
)
from data_pipeline.report_papers import croissant_text, dataset_card, datasheet
from data_pipeline.select import read_recipe
from data_pipeline.stage import Counts, Shard, Stage, finished_shards

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

REPORT_NAME = "report.html"
DATASHEET_NAME, CARD_NAME, CROISSANT_NAME = (
    f"report.{name}" for name in ("datasheet.md", "dataset_card.md", "croissant.json")
)
EXAMPLES_PER_REASON = 24
VALUES_SHOWN = 15
FILES_SHOWN = 50


@dataclass
class ReportStage(Stage):
    """Writes the page."""

    name: str
    folder: Path
    settings: dict[str, Any]
    output_dir: Path
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One, made from the selection and the shards behind it."""
        selection = [
            str(self.output_dir / "subset" / f"{name}.decisions.parquet") for name in self._selected()
        ]
        raw = [
            str(self.output_dir / "raw" / f"{name}.parquet")
            for name in finished_shards(self.output_dir / "raw")
        ]
        return [Shard("report", (*selection, *raw))] if selection else []

    def _selected(self) -> list[str]:
        return finished_shards(self.output_dir / "subset")

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes report.html."""
        recipe = read_recipe(self.output_dir)
        gathered = gather(self.output_dir, examples_per_reason=EXAMPLES_PER_REASON)
        facts = gather_facts(self.output_dir, gathered)
        title = f"Recipe {recipe['recipe']['name']}: {recipe['rows_out']:,} pairs kept"
        sections = sections_of(self.output_dir, gathered)
        texts = {
            REPORT_NAME: render_report(title, sections, subtitle=recipe["recipe"]["source"]),
            DATASHEET_NAME: datasheet(facts),
            CARD_NAME: dataset_card(facts),
            CROISSANT_NAME: croissant_text(facts),
        }
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        return Counts(rows_in=recipe["rows_in"], rows_out=recipe["rows_in"])


def make_stage(config: "PipelineConfig") -> ReportStage:
    """The report stage of a run."""
    output_dir = Path(config.output_dir)
    return ReportStage("report", output_dir / "report", {}, output_dir)


def pipeline_sections(
    output_dir: Path | str, *, examples_per_reason: int = EXAMPLES_PER_REASON
) -> list[Section]:
    """All sections about a run that has been selected: funnel, recipe, similarity, images and texts, examples.

    Raises:
        DataError: the run has no selection yet, or a table is damaged.
    """
    output_dir = Path(output_dir)
    return sections_of(output_dir, gather(output_dir, examples_per_reason=examples_per_reason))


def sections_of(output_dir: Path, gathered: Gathered) -> list[Section]:
    """The sections, of what was gathered."""
    recipe = read_recipe(output_dir)
    stages = read_stage_rows(output_dir)
    sections = [
        funnel_section(stages),
        files_section(read_step_files(output_dir, [stage.stage for stage in stages])),
        recipe_section(recipe),
        similarity_section(gathered),
        pairs_section(gathered),
        origin_section(gathered),
        *example_sections(gathered, recipe),
    ]
    return [section for section in sections if section.blocks]


def funnel_section(stages: list[StageRow]) -> Section:
    """Rows in and out of every stage, why rows were dropped, and how fast it went; empty without stages."""
    if not stages:
        return Section("Funnel")
    rows = [
        (
            stage.stage,
            stage.counts.rows_in,
            stage.counts.rows_out,
            [f"{reason}: {count:,}" for reason, count in stage.counts.dropped.most_common()] or None,
            stage.wall_seconds,
            stage.counts.rows_in / stage.worker_seconds if stage.worker_seconds else None,
        )
        for stage in stages
    ]
    columns = ("stage", "rows in", "rows out", "dropped", "seconds", "rows/s/worker")
    left = [(stage.stage, stage.counts.rows_out) for stage in stages]
    caption = "A row is one (url, text) pair. Seconds are of the clock; rows/s/worker leaves out the start of workers."
    return Section(
        "Funnel",
        [bars(left, caption="Rows that each stage passed on."), table(columns, rows, caption=caption)],
    )


def files_section(steps: list[StepFiles]) -> Section:
    """How many files of each step were made, which were damaged, and which lost most; empty without tables."""
    if not steps:
        return Section("Files")
    made = [
        (each.step, each.shards, each.done, len(each.damaged), f"{FILE_FUNNEL}/{each.step}.parquet")
        for each in steps
    ]
    blocks = [
        table(
            ("step", "shards", "made", "damaged or missing", "table"),
            made,
            caption="A row a shard and a column a reason are in the tables in the folder funnel/.",
        )
    ]
    damaged = [(each.step, source or shard, wrong) for each in steps for shard, source, wrong in each.damaged]
    if damaged:
        caption = f"Files that were cut off, unreadable or not made: {len(damaged):,}."
        if len(damaged) > FILES_SHOWN:
            caption += f" The first {FILES_SHOWN} are shown; the tables have all."
        blocks.append(table(("step", "file", "what happened"), damaged[:FILES_SHOWN], caption=caption))
    lost = [
        (each.step, shard, rows_in, dropped, f"{100 * dropped / max(rows_in, 1):.1f}%", reason)
        for each in steps
        for shard, rows_in, dropped, reason in each.most_lost
        if each.shards > 1
    ]
    if lost:
        columns = ("step", "shard", "rows in", "dropped", "share", "most frequent reason")
        blocks.append(table(columns, lost, caption="Files that lost the largest part of their rows."))
    return Section("Files", blocks)


def recipe_section(recipe: dict[str, Any]) -> Section:
    """The recipe's rules in order, with what each dropped."""
    rules = {rule["reason"]: rule for rule in recipe["recipe"]["rules"]}
    rows = []
    for step in recipe["funnel"]:
        rule = rules.get(step["reason"])
        words = recipe["conditions"].get(step["reason"]) or rule_in_words(step["reason"], rule)
        rows.append((step["reason"], words, step["dropped"], step["left"]))
    blocks = [
        tiles(
            {
                "pairs looked at": recipe["rows_in"],
                "kept": recipe["rows_out"],
                "kept, share": f"{100 * recipe['rows_out'] / max(recipe['rows_in'], 1):.1f}%",
                "version": recipe["recipe"]["version"],
            }
        ),
        paragraph(f"Source: {recipe['recipe']['source']}"),
        table(
            ("reason", "rule", "dropped", "left"), rows, caption="The first rule a pair fails is its reason."
        ),
    ]
    cuts = [
        (reason, group, cut["rows"], cut["kept"], cut["score"])
        for reason, groups in recipe["top_fractions"].items()
        for group, cut in groups.items()
    ]
    if cuts:
        columns = ("rule", "group", "pairs", "kept", "lowest kept score")
        blocks.append(table(columns, cuts, caption="What the top fractions came to."))
    return Section("Recipe", blocks)


def rule_in_words(reason: str, rule: dict[str, Any] | None) -> str:
    """What a rule without a condition keeps, or why a reason has no rule."""
    if rule is None:
        return "named by a blocklist" if reason.startswith(BLOCKED) else "the rules had no value to judge by"
    if rule["top_fraction"] is not None:
        groups = f" in each {rule['by']}" if rule["by"] else ""
        return f"top {100 * rule['top_fraction']:g}% by {rule['of']}{groups}"
    if rule["balance"] is not None:
        return (
            f"about {rule['max_per_entry']:,} rows for each entry of {rule['balance']}, seed {rule['seed']}"
        )
    return f"a random {100 * rule['sample_fraction']:g}%, seed {rule['seed']}"


def similarity_section(gathered: Gathered) -> Section:
    """CLIP similarity of kept and dropped pairs, a plot for each language bucket; empty without scores."""
    scored = {
        bucket: histogram for bucket, histogram in sorted(gathered.similarity.items()) if histogram.total
    }
    if not scored:
        return Section("Similarity")
    plots = [
        _plot(histogram, "CLIP similarity", f"Language: {bucket}.") for bucket, histogram in scored.items()
    ]
    note = "Dropped pairs may have failed another rule than the one on similarity."
    return Section("Similarity", [side_by_side(plots), paragraph(note)])


def _plot(histogram: Histogram, label: str, caption: str, *, log: bool = False) -> Markup:
    drawn, axes = new_figure(width=3.8, height=2.7)
    draw_histogram(axes[0], histogram, label, log=log)
    kept, dropped = int(histogram.kept.sum()), int(histogram.dropped.sum())
    description = f"Histogram of {label}: {kept:,} pairs kept, {dropped:,} dropped"
    return figure(drawn, caption=caption, description=description)


def draw_histogram(axis: Any, histogram: Histogram, label: str, *, log: bool = False) -> None:
    """Kept and dropped pairs as stacked bars, cut to the bins that hold something."""
    filled = np.flatnonzero(histogram.kept + histogram.dropped)
    first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, len(histogram.bins) - 1)
    edges, kept, dropped = (
        histogram.bins[first : last + 1],
        histogram.kept[first:last],
        histogram.dropped[first:last],
    )
    axis.stairs(kept, edges, fill=True, color=KEPT_COLOR, label="kept")
    axis.stairs(kept + dropped, edges, baseline=kept, fill=True, color=DROPPED_COLOR, label="dropped")
    axis.set_xlabel(label)
    axis.set_ylabel("pairs")
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    if log:
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())


def pairs_section(gathered: Gathered) -> Section:
    """Sizes of the original images, lengths of the captions."""
    blocks: list[Markup] = []
    if gathered.short_side.total:
        plots = [
            _plot(gathered.short_side, "short side, pixels", "Original images: shorter side.", log=True),
            _plot(
                gathered.pixels,
                "million pixels",
                "Original images: resolution.",
                log=True,
            ),
            _plot(
                gathered.aspect_ratio,
                "aspect ratio",
                "Original images: longer over shorter side; 6 is 6 or more.",
            ),
            _plot(gathered.text_length, "characters", "Captions: length; 300 is 300 or more."),
        ]
        blocks.append(side_by_side(plots))
    return Section("Images and captions", blocks)


def origin_section(gathered: Gathered) -> Section:
    """Languages of the captions, sites of the images, licences found on the pages."""
    blocks = []
    for tally, caption in (
        (gathered.languages, "Captions by language, best guess."),
        (gathered.domains, "Images by site."),
        (
            gathered.licenses,
            "Creative Commons licences found on the pages; they may belong to something else there.",
        ),
    ):
        if not tally.total:
            continue
        rows = tally.most_common(VALUES_SHOWN)
        kept, dropped = sum(row[1] for row in rows), sum(row[2] for row in rows)
        if tally.values > len(rows):
            others = f"{tally.values - len(rows):,} others"
            rows.append((others, tally.kept.total() - kept, tally.dropped.total() - dropped))
        about = " Counts of rare ones were let go, so these are a little low." if tally.approximate else ""
        blocks.append(stacked_bars(rows, caption=caption + about))
    return Section("Languages, sites, licences", blocks)


def example_sections(gathered: Gathered, recipe: dict[str, Any]) -> list[Section]:
    """Pictures of kept pairs, and of pairs dropped for each reason; drawn by uid, so by chance."""
    note = (
        "Pictures that a safety tagger finds unsafe, or could not judge, are blurred here."
        if gathered.unsafe_judged
        else "No safety tagger has judged these pictures, so none is blurred."
    )
    sections = []
    if None in gathered.examples:
        sections.append(Section("Examples: kept", [paragraph(note), _grid(gathered.examples[None])]))
    dropped = {step["reason"]: step["dropped"] for step in recipe["funnel"]}
    blocks = [
        _grid(gathered.examples[reason], caption=f"{reason}: {count:,} pairs")
        for reason, count in dropped.items()
        if reason in gathered.examples
    ]
    return [*sections, Section("Examples: dropped", [paragraph(note), *blocks] if blocks else [])]


def _grid(pairs: list[ExamplePair], caption: str = "") -> Markup:
    examples = []
    for pair in pairs:
        notes = [] if pair.clip_score is None else [f"similarity {pair.clip_score:.3f}"]
        notes += ["blurred: may be unsafe"] if pair.unsafe else []
        examples.append(Example(pair.image, pair.text, "; ".join(notes)))
    return grid(examples, caption=caption)
