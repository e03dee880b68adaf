"""results.html: the results of one or many models, to look at; made from `Result` objects alone.

The page is one file without scripts, opens offline, and holds the numbers of every figure as a table.
"""

from collections.abc import Sequence
from pathlib import Path

from crawl2clip.files import atomic_path
from evaluate.reports.drawing import Key, legend
from evaluate.reports.few_shot_plot import few_shot_figures
from evaluate.reports.heat_map import heat_map
from evaluate.reports.markup import Html
from evaluate.reports.names import Models
from evaluate.reports.page import Section, counted, folded, paragraph, render_page, side_by_side
from evaluate.reports.provenance_blocks import note_blocks, provenance_blocks
from evaluate.reports.reliability_plot import reliability_figures
from evaluate.reports.result_tables import result_tables, verdict_blocks
from evaluate.reports.robustness_plot import robustness_blocks
from evaluate.reports.rows import in_order, rows_of
from evaluate.reports.scaling_plot import scaling_blocks
from evaluate.results import Result

REPORT_NAME = "results.html"
_SHOWN_FIGURES = 4  # more reliability diagrams than these are folded away


def write_html(results: Sequence[Result], output_dir: Path) -> Path:
    """Writes `<output_dir>/results.html` and returns its path."""
    path = output_dir / REPORT_NAME
    with atomic_path(path) as temporary:
        temporary.write_text(html_report(results), encoding="utf-8")
    return path


def html_report(results: Sequence[Result]) -> str:
    """The page; the same results give the same bytes, in whatever order they come."""
    results = in_order(results)
    if not results:
        empty = paragraph(
            "There is no result yet: python -m evaluate writes one for each model, data set and task."
        )
        return render_page("Evaluation", "No results.", [Section("Results", [empty])])
    models = Models.of(results)
    names = models.names
    rows = rows_of(results)
    datasets = {r.dataset for r in results if r.task != "average"}
    precisions = ", ".join(sorted({r.precision for r in results}))
    subtitle = (
        f"{counted(len(names), 'model')} in {precisions} on {counted(len(datasets), 'data set')}. "
        "Values are percent unless a unit is given; intervals are 95%, for few-shot one standard deviation over the "
        "draws of samples."
    )
    sections = [
        Section("Overview", [heat_map(rows, names), *verdict_blocks(rows, names)]),
        Section("Few-shot", _with_legend(_columns(few_shot_figures(results, models)), models)),
        Section("Robustness", _with_legend(robustness_blocks(results, models), models)),
        Section("Scaling", _with_legend(scaling_blocks(results, models), models)),
        Section("Calibration", _calibration(results, models)),
        Section("All results", result_tables(rows, names)),
        Section("Notes", note_blocks(results, names)),
        Section("Provenance", provenance_blocks(results, names)),
    ]
    return render_page("Evaluation", subtitle, [section for section in sections if section.blocks])


def _columns(figures: list[Html]) -> list[Html]:
    return [side_by_side(figures)] if figures else []


def _with_legend(blocks: list[Html], models: Models) -> list[Html]:
    """The legend that all figures of a section share, above them."""
    keys = [Key(models.series(key), models.legend_name(key)) for key in models.names]
    return [legend(keys), *blocks] if blocks else []


def _calibration(results: Sequence[Result], models: Models) -> list[Html]:
    figures = reliability_figures(results, models)
    if len(figures) <= _SHOWN_FIGURES:
        return _columns(figures)
    more = folded(f"{len(figures) - _SHOWN_FIGURES} more data sets", side_by_side(figures[_SHOWN_FIGURES:]))
    return [side_by_side(figures[:_SHOWN_FIGURES]), more]
