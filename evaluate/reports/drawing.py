"""Line and scatter drawings as inline SVG: text stays text, colours are the page's, so they follow light and dark.

Written out by hand and not by a plotting library: a page of them needs no extra package, is a tenth of the
size, and every point can say what it is when pointed at.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evaluate.reports.axes import Axis
from evaluate.reports.markup import Html, element, join

NUM_COLORS = 8  # classes c0 to c7 of page.css; with the shapes, 40 series look different
WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 616.0, 16.0, 348.0  # of the plot's frame, pixels
_RADIUS = 4.5
_SHAPES = ("circle", "square", "triangle", "diamond", "fallen")
_LABEL_HEIGHT, _LABEL_STEP = 13.0, 6.8  # pixels: of a label, and of one character
_AROUND = ((9, 4), (-9, 4), (0, -8), (0, 16), (9, -6), (9, 14), (-9, -6), (-9, 14))  # label places by a mark


@dataclass(frozen=True)
class Key:
    """One line of a legend."""

    series: int
    name: str


@dataclass
class Drawing:
    """A plot in the making; `render` gives the SVG."""

    x: Axis
    y: Axis
    _back: list[Html] = field(default_factory=list)
    _front: list[Html] = field(default_factory=list)
    _taken: list[tuple[float, float, float, float]] = field(default_factory=list)  # x, y, width, height
    _waiting: list[tuple[float, float, str]] = field(default_factory=list)

    def line(
        self, points: Iterable[tuple[float, float]], *, series: int | None = None, note: str = ""
    ) -> None:
        """Straight pieces through points in data units; without a series a thin dashed line in the text's colour."""
        places = " ".join(f"{self.x.at(x):.2f},{self.y.at(y):.2f}" for x, y in points)
        style = "guide" if series is None else f"line {_color(series)}"
        self._back.append(element("polyline", _title(note), points=places, class_=style))

    def band(self, edges: Sequence[tuple[float, float, float]], *, series: int | None = None) -> None:
        """The area between low and high: (x, low, high) from left to right."""
        there = [f"{self.x.at(x):.2f},{self.y.at(low):.2f}" for x, low, _ in edges]
        back = [f"{self.x.at(x):.2f},{self.y.at(high):.2f}" for x, _, high in reversed(edges)]
        style = "band" if series is None else f"band {_color(series)}"
        self._back.insert(0, element("polygon", points=" ".join(there + back), class_=style))

    def whisker(self, x: float, low: float, high: float, *, series: int) -> None:
        """An upright interval."""
        self._back.append(
            element(
                "line", x1=self.x.at(x), x2=self.x.at(x), y1=self.y.at(low), y2=self.y.at(high),
                class_=f"whisker {_color(series)}",
            )
        )  # fmt: skip

    def bar(self, low: float, high: float, top: float, *, series: int, note: str) -> None:
        """An upright bar from the axis to `top`, as wide as low to high."""
        left, right, upper = self.x.at(low), self.x.at(high), self.y.at(top)
        self._back.append(
            element(
                "rect", _title(note), x=left + 1, y=upper, width=right - left - 2, height=self.y.start - upper,
                class_=f"bar {_color(series)}",
            )
        )  # fmt: skip

    def mark(self, x: float, y: float, *, series: int | None, note: str, label: str = "") -> None:
        """A point; `note` is shown when it is pointed at, `label` beside it where there is room."""
        place = self.x.at(x), self.y.at(y)
        self._front.append(shape(*place, series, note))
        self._taken.append((place[0] - _RADIUS, place[1] - _RADIUS, 2 * _RADIUS, 2 * _RADIUS))
        if label:
            self._waiting.append((*place, label))

    def ends(self, names: Sequence[tuple[float, str]]) -> None:
        """Labels right of the frame, one a line: (y in data units, text), pushed apart where they would touch."""
        placed: list[list[float]] = []
        ordered = sorted(names, key=lambda entry: self.y.at(entry[0]))
        for y, _ in ordered:
            place = self.y.at(y)
            placed.append([max(place, placed[-1][0] + _LABEL_HEIGHT) if placed else place])
        over = placed[-1][0] - (HEIGHT - 8) if placed else 0.0
        for (_, text), (place,) in zip(ordered, placed, strict=True):
            lifted = place - max(0.0, over)
            self._front.append(element("text", text, x=RIGHT + 4, y=lifted + 4, class_="small"))

    def render(self, title: str) -> Html:
        """The SVG element; `title` says what a reader who cannot see it should know."""
        return element(
            "svg",
            element("title", title),
            join(*self._frame()),
            join(*self._back),
            join(*self._front),
            join(*self._labels()),
            viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
            role="img",
        )

    def _frame(self) -> Iterable[Html]:
        for value, label in self.x.ticks:
            place = self.x.at(value)
            yield element("line", x1=place, x2=place, y1=TOP, y2=BOTTOM, class_="grid")
            yield element("text", label, x=place, y=BOTTOM + 18, text_anchor="middle")
        for value, label in self.y.ticks:
            place = self.y.at(value)
            yield element("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="grid")
            yield element("text", label, x=LEFT - 8, y=place + 4, text_anchor="end")
        yield element("path", d=f"M{LEFT:g} {TOP:g}V{BOTTOM:g}H{RIGHT:g}", class_="frame")
        middle = (TOP + BOTTOM) / 2
        yield element("text", self.x.label, x=(LEFT + RIGHT) / 2, y=HEIGHT - 10, text_anchor="middle")
        yield element(
            "text",
            self.y.label,
            x=18.0,
            y=middle,
            text_anchor="middle",
            transform=f"rotate(-90 18 {middle:g})",
        )

    def _labels(self) -> Iterable[Html]:
        """Labels of marks, each at the place around its mark that covers the least."""
        taken = list(self._taken)
        for x, y, text in self._waiting:
            width = _LABEL_STEP * len(text)
            places = []
            for dx, dy in _AROUND:
                left = x + dx - (width if dx < 0 else width / 2 if dx == 0 else 0)
                box = (left, y + dy - _LABEL_HEIGHT + 3, width, _LABEL_HEIGHT)
                outside = max(0.0, LEFT - left) + max(0.0, left + width - WIDTH)
                places.append((sum(_overlap(box, other) for other in taken) + 20 * outside, len(places), box))
            _, _, box = min(places)
            taken.append(box)
            yield element("text", text, x=box[0], y=box[1] + _LABEL_HEIGHT - 3, class_="small")


def shape(x: float, y: float, series: int | None, note: str = "") -> Html:
    """The mark of a series at a pixel; without a series a small grey ring."""
    if series is None:
        return element("circle", _title(note), cx=x, cy=y, r=3.0, class_="other")
    style, r = f"mark {_color(series)}", _RADIUS
    kind = _SHAPES[series % len(_SHAPES)]
    if kind == "circle":
        return element("circle", _title(note), cx=x, cy=y, r=r, class_=style)
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "triangle": ((0, -1.2), (1.15, 0.85), (-1.15, 0.85)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "fallen": ((0, 1.2), (1.15, -0.85), (-1.15, -0.85)),
    }[kind]
    points = " ".join(f"{x + r * dx:.2f},{y + r * dy:.2f}" for dx, dy in corners)
    return element("polygon", _title(note), points=points, class_=style)


def legend(keys: Sequence[Key]) -> Html:
    """What each mark stands for."""
    return element(
        "ul",
        *(
            element(
                "li",
                element("svg", shape(7.0, 7.0, key.series), viewBox="0 0 14 14", class_="key", aria_hidden="true"),
                key.name,
            )
            for key in keys
        ),
        class_="legend",
    )  # fmt: skip


def _color(series: int) -> str:
    return f"c{series % NUM_COLORS}"


def _title(note: str) -> Html:
    return element("title", note) if note else Html("")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
