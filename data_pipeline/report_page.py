"""One HTML page from sections of tables, figures and image grids; the page needs no other file and no network.

`render_report(title, sections)` gives the page. Sections are made of blocks from `paragraph`, `tiles`, `table`,
`bars`, `figure`, `side_by_side` and `grid`, so that any script can add its own. Every text is escaped on its way in:
captions come from the web, and some of them are written to break pages. Figures are inline SVG whose text takes the
page's colour, so they are readable on light and on dark.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL_PIXELS = 144
MAX_CAPTION_CHARACTERS = 300
KEPT_COLOR = "#2a9d8f"  # both are readable on white and on black
DROPPED_COLOR = "#e76f51"
_INK = "#010203"  # drawn with this, then replaced by currentColor


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Markup] = field(default_factory=list)


@dataclass(frozen=True)
class Example:
    """One picture of a grid."""

    image: "Image | None"  # None is shown as an empty frame
    caption: str
    note: str = ""  # a score, a reason ...


def render_report(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page, as a text to be written in UTF-8."""
    return (
        _environment()
        .get_template("report.html.j2")
        .render(title=title, subtitle=subtitle, sections=sections)
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = shown
    return environment


def _block(kind: str, **values: Any) -> Markup:
    return Markup(_environment().get_template("blocks.html.j2").render(kind=kind, **values))


def shown(value: Any) -> str:
    """A value as a table shows it: thousands separated, four digits of a fraction, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def paragraph(text: str) -> Markup:
    """Running text."""
    return _block("paragraph", text=text)


def tiles(values: dict[str, Any]) -> Markup:
    """The few numbers to see first: what each is -> its value."""
    return _block("tiles", values=values)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "") -> Markup:
    """A table; numbers stand on the right, anything else on the left.

    Args:
        columns: the headings.
        rows: a value for each column: a number, a text, a list of texts (one a line) or None.
        caption: what it shows.
    """
    cells = [
        [
            {
                "values": [shown(part) for part in value]
                if isinstance(value, (list, tuple))
                else [shown(value)],
                "number": isinstance(value, (int, float)) and not isinstance(value, bool),
            }
            for value in row
        ]
        for row in rows
    ]
    return _block("table", columns=list(columns), rows=cells, caption=caption)


def bars(values: Sequence[tuple[str, float]], *, caption: str = "") -> Markup:
    """Horizontal bars, the longest first value's width: (label, value) in order."""
    longest = max((value for _, value in values), default=0) or 1
    rows = [
        {"label": label, "value": value, "percent": round(100 * value / longest, 2)}
        for label, value in values
    ]
    return _block("bars", rows=rows, caption=caption)


def stacked_bars(values: Sequence[tuple[str, int, int]], *, caption: str = "") -> Markup:
    """Horizontal bars of two parts, kept and dropped: (label, kept, dropped) in order."""
    longest = max((kept + dropped for _, kept, dropped in values), default=0) or 1
    rows = [
        {
            "label": _short(label),
            "kept": round(100 * kept / longest, 2),
            "dropped": round(100 * dropped / longest, 2),
            "value": kept + dropped,
            "share": round(100 * kept / max(kept + dropped, 1)),
        }
        for label, kept, dropped in values
    ]
    return _block("stacked", rows=rows, caption=caption, kept_color=KEPT_COLOR, dropped_color=DROPPED_COLOR)


def figure(drawn: "Figure", *, caption: str, description: str) -> Markup:
    """A matplotlib figure made by `new_figure`, as inline SVG.

    Args:
        drawn: the figure.
        caption: stands below it.
        description: what a reader who cannot see it should know.
    """
    import matplotlib
    from matplotlib.colors import same_color
    from matplotlib.text import Text

    for text in drawn.findobj(Text):  # legends and labels that were added after the style was set
        if isinstance(text, Text) and same_color(text.get_color(), "black"):
            text.set_color(_INK)
    buffer = io.StringIO()
    # Text stays text (small, selectable); a fixed salt and no date give the same bytes for the same figure.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "report"}):
        drawn.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return _block("figure", svg=Markup(svg), caption=caption, description=description)


def new_figure(width: float = 6.4, height: float = 3.2, columns: int = 1) -> "tuple[Figure, Any]":
    """An empty figure in the page's style and its axes [columns].

    Args:
        width: inches, of the whole figure; the page shrinks it to fit.
        height: inches.
        columns: how many axes side by side.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK
        ),
    }
    with matplotlib.rc_context(style):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(1, columns, squeeze=False)[0]
    return drawn, axes


def side_by_side(blocks: Sequence[Markup]) -> Markup:
    """Blocks in columns, below each other on a narrow screen."""
    return _block("columns", blocks=list(blocks))


def grid(examples: Sequence[Example], *, caption: str = "") -> Markup:
    """Pictures with their captions; they are shrunk to THUMBNAIL_PIXELS and stored in the page."""
    items = [
        {"source": thumbnail(example.image), "caption": _short(example.caption), "note": example.note}
        for example in examples
    ]
    return _block("grid", items=items, caption=caption, pixels=THUMBNAIL_PIXELS)


def thumbnail(image: "Image | None") -> str | None:
    """A small JPEG as a data: URL."""
    if image is None:
        return None
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _short(text: str) -> str:
    # Control characters would be invisible, or not allowed in HTML at all; lone surrogates cannot be written.
    clean = "".join(mark if mark.isprintable() else " " for mark in text)
    clean = clean.encode("utf-8", "replace").decode("utf-8")
    return clean if len(clean) <= MAX_CAPTION_CHARACTERS else clean[: MAX_CAPTION_CHARACTERS - 1] + "…"
