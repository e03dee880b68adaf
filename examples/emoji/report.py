"""The demo's report: report.html and the table that is printed at the end.

Only this file reads the web's truth: which pairs were planted as mismatches, and which concepts can have been seen.
The pipeline's own sections (funnel, similarity, examples) come from `data_pipeline.report`; here are added the scores,
the loss curve, and how well the filter found what was planted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from markupsafe import Markup

from crawl2clip.files import atomic_path
from crawl2clip.shards import list_shards, raise_fault, read_samples
from data_pipeline.report import pipeline_sections
from data_pipeline.report_data import read_stage_rows
from data_pipeline.report_page import (
    Section,
    figure,
    new_figure,
    paragraph,
    render_report,
    side_by_side,
    table,
    tiles,
)
from data_pipeline.select import read_decisions, read_recipe
from evaluate.intervals import Estimate, wilson
from evaluate.reports.tables import markdown_table
from evaluate.results import Result, read_results
from examples.emoji.web import Web
from train.monitoring.metrics import read_metrics

REPORT_NAME = "report.html"
_SIMILARITY_REASON = "low_similarity"


@dataclass(frozen=True)
class FilterQuality:
    """How well the similarity rule found the planted mismatches among the pairs it judged."""

    name: str  # which pairs: all, or one language bucket
    judged: int  # pairs that reached the rule
    planted: int  # of these, planted mismatches
    dropped: int  # of the judged, dropped by the rule
    caught: int  # planted and dropped

    @property
    def precision(self) -> Estimate:
        """Share of the dropped pairs that were planted; dropping at random would give the planted share."""
        return wilson(self.caught, self.dropped, self.planted / self.judged if self.judged else None)

    @property
    def recall(self) -> Estimate:
        """Share of the planted pairs that were dropped; dropping at random would give the dropped share."""
        return wilson(self.caught, self.planted, self.dropped / self.judged if self.judged else None)


def write_report(folder: Path, web: Web, seconds: Mapping[str, float]) -> str:
    """Writes `<folder>/report.html` and returns the table to print.

    Args:
        folder: the demo's output folder, all steps done.
        web: what was crawled; its truth is read here and nowhere before.
        seconds: what each step of the demo took.
    """
    results = read_results(folder / "results")
    quality = filter_quality(folder / "data", web.truth)
    seen = seen_concepts(folder / "data", web)
    sections = [
        _scores_section(results, web, seen),
        _filter_section(quality),
        _training_section(folder),
        _time_section(seconds),
        *pipeline_sections(folder / "data"),
    ]
    subtitle = (
        "A small real web of emoji, crawled, filtered, trained on and scored on drawings that are nowhere on it. "
        "Art: Twemoji (CC-BY-4.0), OpenMoji (CC-BY-SA-4.0)."
    )
    page = render_report("From crawl to score, on emoji", sections, subtitle=subtitle)
    with atomic_path(folder / REPORT_NAME) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return "\n\n".join(
        [_funnel_text(folder / "data"), _filter_text(quality), markdown_table(results), _time_text(seconds)]
    )


def filter_quality(data: Path, truth_file: Path) -> list[FilterQuality]:
    """Precision and recall of the similarity rule on the planted mismatches, in all and by language bucket.

    Judged is every pair that reached the rule, those that a later rule dropped too.
    """
    reasons = [rule["reason"] for rule in read_recipe(data)["recipe"]["rules"]]
    later = reasons[reasons.index(_SIMILARITY_REASON) :]
    truth = pl.read_parquet(truth_file).select("uid", "planted_mismatch").unique("uid", keep="first")
    tags = pl.concat(
        [pl.read_parquet(path) for path in sorted((data / "tags" / "language").glob("*.parquet"))]
    )
    decided = read_decisions(data).with_columns(pl.col("reason").cast(pl.String))
    reached = decided.filter(pl.col("kept") | pl.col("reason").is_in(later))
    judged = reached.join(truth, on="uid", how="inner").join(tags.select("uid", "language_bucket"), on="uid")
    parts = [("all", judged)]
    for (bucket,), part in judged.group_by("language_bucket", maintain_order=False):
        parts.append((str(bucket), part))
    return [
        _quality_of(name, part) for name, part in sorted(parts, key=lambda item: (item[0] != "all", item[0]))
    ]


def _quality_of(name: str, judged: pl.DataFrame) -> FilterQuality:
    planted = judged["planted_mismatch"]
    dropped = judged.select((pl.col("reason") == _SIMILARITY_REASON).fill_null(False)).to_series()
    return FilterQuality(
        name, len(judged), int(planted.sum()), int(dropped.sum()), int((planted & dropped).sum())
    )


def seen_concepts(data: Path, web: Web) -> set[str]:
    """Codes of the concepts that a training sample shows or names, by the truth, not by what was intended."""
    uids = {
        sample.key
        for shard in list_shards(str(data / "shards"))
        for sample in read_samples(shard, raise_fault)
    }
    truth = pl.read_parquet(web.truth).filter(pl.col("uid").is_in(list(uids)))
    codes = {str(code) for column in ("concept", "caption_concept") for code in truth[column].drop_nulls()}
    base = {concept.code: concept.base for concept in web.concepts}
    return {base.get(code, code) for code in codes}


def _scores_section(results: list[Result], web: Web, seen: set[str]) -> Section:
    held_out = {concept.code for concept in web.held_out}
    rows = []
    for result in results:
        for metric, estimate in result.metrics.items():
            rows.append(_score_row(result, metric, "all", estimate))
        for group, metrics in sorted(result.groups.items()):
            rows += [_score_row(result, metric, group, estimate) for metric, estimate in metrics.items()]
    zero_shot = next((result for result in results if result.task == "zero_shot"), None)
    blocks: list[Markup] = []
    if zero_shot is not None:
        headline = zero_shot.metrics["acc1"]
        blocks.append(
            tiles(
                {
                    "zero-shot top-1": f"{headline.value:.1%}",
                    "95% interval": f"{headline.low:.1%} to {headline.high:.1%}",
                    "chance": f"{headline.chance:.2%}" if headline.chance is not None else "–",
                    "concepts": len(held_out),
                    "of these never in training": len(held_out - seen),
                }
            )
        )
    blocks.append(
        paragraph(
            "Every drawing scored here is OpenMoji's, and none of them is on the web: the model has seen these "
            "concepts in Twemoji's hand only. Concepts of the themes that opted out it has not seen at all; they are "
            "the group never_seen, classified among all the others."
        )
    )
    columns = ("data set", "task", "metric", "group", "value", "low", "high", "interval", "chance", "n")
    blocks.append(table(columns, rows, caption="Scores in percent."))
    return Section("Scores", blocks)


def _score_row(result: Result, metric: str, group: str, estimate: Estimate) -> tuple[object, ...]:
    value, low, high = (round(100 * x, 2) for x in (estimate.value, estimate.low, estimate.high))
    chance = None if estimate.chance is None else round(100 * estimate.chance, 3)
    return (
        result.dataset,
        result.task,
        metric,
        group,
        value,
        low,
        high,
        estimate.interval,
        chance,
        estimate.num,
    )


def _filter_section(quality: list[FilterQuality]) -> Section:
    columns = (
        "language",
        "pairs judged",
        "planted",
        "dropped",
        "caught",
        "precision",
        "recall",
        "recall at random",
    )
    rows = [
        (
            q.name,
            q.judged,
            q.planted,
            q.dropped,
            q.caught,
            _percent(q.precision),
            _percent(q.recall),
            _chance(q.recall),
        )
        for q in quality
    ]
    text = (
        "Some pairs of the web were planted with the caption of another image. The pipeline does not know which; "
        "this is how many of them its similarity rule dropped, with 95% intervals."
    )
    return Section("The filter against the planted mismatches", [paragraph(text), table(columns, rows)])


def _percent(estimate: Estimate) -> str:
    if estimate.num == 0:
        return "–"
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _chance(estimate: Estimate) -> str:
    return "–" if estimate.chance is None else f"{estimate.chance:.1%}"


def _training_section(folder: Path) -> Section:
    blocks = []
    for title, run in (("CLIP", folder / "clip"), ("the filter", folder / "filter")):
        if not (run / "metrics.jsonl").is_file():
            continue
        steps = [record for record in read_metrics(run / "metrics.jsonl") if "loss" in record]
        drawn, (axes,) = new_figure(4.4, 2.8)
        seen = [record["samples_seen"] for record in steps]
        losses = [record["loss"] for record in steps]
        axes.plot(seen, losses, linewidth=0.6, alpha=0.35, color="#4477aa")
        axes.plot(seen, _smooth(losses), linewidth=1.6, color="#4477aa")
        axes.set_xlabel("samples seen")
        axes.set_ylabel("contrastive loss")
        last = f"{losses[-1]:.2f}" if losses else "none"
        blocks.append(
            figure(
                drawn,
                caption=f"Training {title}: {seen[-1] if seen else 0:,} samples seen.",
                description=f"Loss of {title} against samples seen; it ends at {last}.",
            )
        )
    return Section("Training", [side_by_side(blocks)] if blocks else [])


def _smooth(values: list[float], weight: float = 0.6) -> list[float]:
    """Exponential moving average, started at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else weight * smoothed[-1] + (1 - weight) * value)
    return smoothed


def _time_section(seconds: Mapping[str, float]) -> Section:
    rows = [(title, round(value, 1)) for title, value in seconds.items()]
    return Section("Time", [table(("step", "seconds"), [*rows, ("in all", round(sum(seconds.values()), 1))])])


def _funnel_text(data: Path) -> str:
    lines = [f"{'stage':<24}{'rows in':>10}{'rows out':>10}{'samples/s/worker':>18}"]
    for row in read_stage_rows(data):
        speed = f"{row.counts.rows_in / row.worker_seconds:,.0f}" if row.worker_seconds else "-"
        lines.append(f"{row.stage:<24}{row.counts.rows_in:>10,}{row.counts.rows_out:>10,}{speed:>18}")
    return "\n".join(lines)


def _filter_text(quality: list[FilterQuality]) -> str:
    lines = [
        f"{'filter':<10}{'judged':>8}{'planted':>9}{'dropped':>9}{'precision':>11}{'recall':>9}{'random recall':>15}"
    ]
    for q in quality:
        precision = f"{q.precision.value:.1%}" if q.dropped else "-"
        recall = f"{q.recall.value:.1%}" if q.planted else "-"
        lines.append(
            f"{q.name:<10}{q.judged:>8,}{q.planted:>9,}{q.dropped:>9,}{precision:>11}{recall:>9}{_chance(q.recall):>15}"
        )
    return "\n".join(lines)


def _time_text(seconds: Mapping[str, float]) -> str:
    lines = [f"{title:<52}{value:>8.1f} s" for title, value in seconds.items()]
    return "\n".join([*lines, f"{'in all':<52}{sum(seconds.values()):>8.1f} s"])
