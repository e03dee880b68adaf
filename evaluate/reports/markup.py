"""HTML and SVG built so that nothing can get in unescaped.

Model, data set and group names are chosen by whoever made the checkpoint or the data, and end up in a page
that others open. Only `element` makes `Html`; every plain text that it is given, child or attribute, is
escaped, so forgetting to escape is not possible.
"""

import html
import math
from collections.abc import Sequence

_VOID = frozenset({"br", "meta", "circle", "line", "path", "polygon", "polyline", "rect"})
# C0 and C1 controls, line separators, and the marks that turn the direction of text round.
_CONTROLS = dict.fromkeys(
    (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), " "
)


class Html(str):
    """Markup that is safe to put into a page; made by `element` and `join`, never from foreign text."""

    __slots__ = ()


def clean(text: object) -> str:
    """A text on one line that UTF-8 can hold: control characters become spaces, lone surrogates question marks."""
    kept = str(text).translate(_CONTROLS)
    return kept if kept.isascii() else kept.encode("utf-8", "replace").decode("utf-8")


def escaped(child: object) -> Html:
    """Markup as it is, anything else as text."""
    return child if isinstance(child, Html) else Html(html.escape(clean(child), quote=True))


def join(*children: object) -> Html:
    """Children one after the other."""
    return Html("".join(escaped(child) for child in children))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """One element.

    Args:
        tag: its name, ours and never a user's.
        children: `Html` or texts, which are escaped.
        attributes: names with "_" for "-" ("class_" is "class"); None leaves one out, floats are cut to what a
            drawing can show.
    """
    shown = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID and not children:
        return Html(f"<{tag}{shown}/>")
    return Html(f"<{tag}{shown}>{join(*children)}</{tag}>")


def _attribute(value: object) -> object:
    if isinstance(value, float):
        assert math.isfinite(value), "a drawing was given a number that is not finite"
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value


def table(
    header: Sequence[object],
    rows: Sequence[Sequence[object]],
    *,
    caption: str,
    numeric: Sequence[int] = (),
    class_: str | None = None,
) -> Html:
    """A data table whose first column names the rows; it scrolls sideways in its own frame.

    Args:
        header: column headings.
        rows: cells, as many as there are headings.
        caption: what the table shows, read out first by a screen reader.
        numeric: columns that are aligned right.
        class_: extra style.
    """
    columns = [
        element("th", name, scope="col", class_="n" if column in numeric else None)
        for column, name in enumerate(header)
    ]
    body = []
    for row in rows:
        cells = [element("th", row[0], scope="row")]
        cells += [
            element("td", cell, class_="n" if column in numeric else None)
            for column, cell in enumerate(row[1:], start=1)
        ]
        body.append(element("tr", *cells))
    grid = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *columns)),
        element("tbody", *body),
        class_=class_,
    )
    return scrolling(grid, caption)


def scrolling(grid: Html, label: str) -> Html:
    """A wide table in a frame that the keyboard can scroll."""
    return element("div", grid, class_="scroll", role="region", aria_label=label, tabindex="0")
