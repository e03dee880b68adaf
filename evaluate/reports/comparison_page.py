"""A comparison as Markdown for the terminal and as a page: differences with intervals and corrected p-values."""

from pathlib import Path

from crawl2clip.files import atomic_path
from evaluate.reports.compare import SIGNIFICANCE, Comparison, Tested
from evaluate.reports.markup import Html, element, join, table
from evaluate.reports.page import Section, listing, paragraph, render_page
from evaluate.reports.rows import shown_number
from evaluate.reports.tables import markdown_grid, markdown_text

MARKDOWN_NAME, HTML_NAME = "comparison.md", "comparison.html"
_METHODS = {"mcnemar_exact": "McNemar, exact", "paired_bootstrap": "paired bootstrap"}
_WIDTH, _HEIGHT, _MARGIN = 150.0, 16.0, 5.0  # pixels of an interval's picture
_HEADER = (
    "data set",
    "task",
    "metric",
    "n",
    "a",
    "b",
    "b - a",
    "95% interval",
    "p",
    "p, Holm",
    "better",
    "test",
)


def comparison_markdown(comparison: Comparison) -> str:
    """The table and what has to be known to read it."""
    lines = [[markdown_text(cell) for cell in _cells(row)] for row in comparison.tested]
    notes = [f"{row.dataset} {row.task}: {note}" for row in comparison.tested for note in row.notes]
    notes += [f"not tested, {what}: {why}" for what, why in comparison.untested]
    head = f"a: {markdown_text(comparison.name_a)}\nb: {markdown_text(comparison.name_b)}\n\n"
    told = "\n".join(
        [_explanation(comparison), *(f"- {markdown_text(note)}" for note in dict.fromkeys(notes))]
    )
    return f"{head}{markdown_grid(_HEADER, lines)}\n{told}\n"


def comparison_html(comparison: Comparison) -> str:
    """The same as a page, with a picture of each interval."""
    widest = max(
        (max(abs(t.test.low), abs(t.test.high)) for t in comparison.tested if t.unit != "rank"), default=0.0
    )
    rows = [(*_cells(row), _picture(row, widest)) for row in comparison.tested]
    header = (*_HEADER, "a better | b better")
    caption = f"a is {comparison.name_a}, b is {comparison.name_b}."
    blocks = [
        table(header, rows, caption=caption, numeric=range(3, 10)),
        paragraph(_explanation(comparison)),
    ]
    sections = [Section("Paired tests", blocks)]
    notes = [f"{row.dataset} {row.task}: {note}" for row in comparison.tested for note in row.notes]
    if notes:
        sections.append(Section("Notes", [listing(list(dict.fromkeys(notes)))]))
    if comparison.untested:
        reasons = [join(element("strong", what), ": ", why) for what, why in comparison.untested]
        sections.append(Section("Not tested", [listing(reasons)]))
    return render_page("Comparison of two runs", "Both were scored on the same samples.", sections)


def write_comparison(comparison: Comparison, output_dir: Path) -> list[Path]:
    """Writes comparison.md and comparison.html and returns their paths."""
    written = []
    for name, text in (
        (MARKDOWN_NAME, comparison_markdown(comparison)),
        (HTML_NAME, comparison_html(comparison)),
    ):
        with atomic_path(output_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        written.append(output_dir / name)
    return written


def _cells(row: Tested) -> tuple[str, ...]:
    test, scale = row.test, 1 if row.unit == "rank" else 100
    return (
        row.dataset,
        row.task,
        f"{row.metric} (rank)" if row.unit == "rank" else row.metric,
        str(test.num),
        shown_number(row.value_a, row.unit),
        shown_number(row.value_b, row.unit),
        f"{scale * test.difference:+.2f}",
        f"{scale * test.low:+.2f} to {scale * test.high:+.2f}",
        _p(test.p_value),
        _p(row.adjusted_p),
        row.better or "no difference shown",
        _METHODS.get(test.method, test.method),
    )


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}" if value > 1e-99 else "below 1e-99"


def _explanation(comparison: Comparison) -> str:
    tests = len(comparison.tested)
    better = {name: sum(row.better == name for row in comparison.tested) for name in ("a", "b")}
    return (
        f"b is better on {better['b']} and a on {better['a']} of {tests} tests at p < {SIGNIFICANCE} after Holm's "
        f"correction over all of them; the intervals are each one's own, without it. Values in percent and points of "
        "percent. Where no difference is shown there may still be one, as large as the interval allows. The tests are "
        "about the sampling of test images, not about what another training run of the same recipe would give."
    )


def _picture(row: Tested, widest: float) -> Html:
    """The interval around zero, on one scale for all rows in points; empty for ranks."""
    if row.unit == "rank" or widest == 0:
        return join()

    def at(value: float) -> float:
        return _WIDTH / 2 + value / widest * (_WIDTH / 2 - _MARGIN)

    middle, test = _HEIGHT / 2, row.test
    color = {"a": "c1", "b": "c0", "": "c4"}[row.better]
    return element(
        "svg",
        element("line", x1=_WIDTH / 2, x2=_WIDTH / 2, y1=0.0, y2=_HEIGHT, class_="frame"),
        element("line", x1=at(test.low), x2=at(test.high), y1=middle, y2=middle, class_=f"whisker {color}"),
        element("circle", cx=at(test.difference), cy=middle, r=4.0, class_=f"mark {color}"),
        viewBox=f"0 0 {_WIDTH:g} {_HEIGHT:g}",
        width=_WIDTH,
        height=_HEIGHT,
        aria_hidden="true",
    )
