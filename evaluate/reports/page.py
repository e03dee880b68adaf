"""One HTML page that needs no other file, no network and no script.

Its content security policy allows nothing but the page's own style, so that even markup that should not have
got in could not load or run anything.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluate.reports.drawing import Drawing, Key, legend
from evaluate.reports.markup import Html, element, join, table

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: list[Html] = field(default_factory=list)


def render_page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as a text to be written in UTF-8; the same sections give the same bytes.

    Args:
        title: of the page.
        subtitle: one or two sentences under it.
        sections: shown in order, with links to them on top.
    """
    numbered = [(f"part-{number}", section) for number, section in enumerate(sections, start=1)]
    links = [element("li", element("a", s.title, href=f"#{name}")) for name, s in numbered]
    parts = [
        element(
            "section", element("h2", s.title, id=f"{name}-title"), *s.blocks, id=name,
            aria_labelledby=f"{name}-title",
        )
        for name, s in numbered
    ]  # fmt: skip
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8"))),
    )
    body = element(
        "body",
        element("header", element("h1", title), paragraph(subtitle, class_="lead")),
        element("nav", element("ul", *links), aria_label="Parts of this page"),
        element("main", *parts),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def paragraph(*children: object, class_: str | None = None) -> Html:
    """Running text."""
    return element("p", *children, class_=class_)


def listing(items: Sequence[object]) -> Html:
    """A list of remarks."""
    return element("ul", *(element("li", item) for item in items), class_="notes")


def folded(summary: str, *children: object) -> Html:
    """Something to open when wanted."""
    return element("details", element("summary", summary), *children)


def side_by_side(blocks: Sequence[Html]) -> Html:
    """Figures in columns, below each other on a narrow screen."""
    return element("div", *blocks, class_="figures")


def figure(
    drawn: Drawing,
    *,
    heading: str,
    caption: str,
    keys: Sequence[Key],
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
) -> Html:
    """A drawing with its legend and, folded away, the numbers in it as a table.

    Args:
        drawn: the drawing.
        heading: stands above it.
        caption: what it shows and how to read it.
        keys: the legend's lines.
        header: columns of the table.
        rows: its rows; every column but the first holds numbers.
    """
    numbers = table(header, rows, caption=f"The numbers of: {heading}", numeric=range(1, len(header)))
    return element(
        "figure",
        element("h3", heading),
        drawn.render(f"{heading}. {caption} The numbers are in the table that follows."),
        legend(keys) if keys else join(),
        element("figcaption", caption),
        folded("The numbers", numbers),
    )


def counted(number: int, what: str) -> str:
    """ "1 model", "2 models"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
