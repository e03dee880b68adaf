"""Axes of a drawing: from a value to a place, and the round numbers that stand beside it."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

_LABEL_GAP = 30.0  # pixels between labels of three digits
PADDING = 0.06  # of an axis, left free beyond the outermost value on each side
_DIGITS, _EXPONENTS = (5, 2, 1), (0, -1, -2)  # of the step between evenly spaced values
_EVEN_SETS = len(_DIGITS) * len(_EXPONENTS)
_LOGIT_STEPS = (
    (0.5, 0.1, 0.9, 0.01, 0.99, 0.001, 0.999),
    (0.2, 0.8, 0.3, 0.7, 0.4, 0.6, 0.05, 0.95, 0.02, 0.98, 0.005, 0.995),
    tuple(n / 20 for n in range(1, 20)),
)


class Spacing(str, Enum):
    """How values are spread over an axis."""

    linear = "linear"
    log = "log"
    logit = "logit"  # log(p / (1 - p)) for fractions, as in Taori et al. 2020


def _logit(value: float) -> float:
    return math.log(value / (1 - value))


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))


_SPREAD: dict[Spacing, tuple[Callable[[float], float], Callable[[float], float]]] = {
    Spacing.linear: (float, float),
    Spacing.log: (math.log10, lambda x: 10**x),
    Spacing.logit: (_logit, _expit),
}


@dataclass(frozen=True)
class Axis:
    """One axis of a drawing."""

    label: str
    spacing: Spacing
    low: float  # value at `start`
    high: float  # value at `end`
    start: float  # pixel
    end: float  # pixel; below `start` for an axis that runs upwards
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float) -> float:
        """Pixel of a value; values beyond the ends land on them."""
        forward = _SPREAD[self.spacing][0]
        low, high = forward(self.low), forward(self.high)
        fraction = (forward(min(max(value, self.low), self.high)) - low) / (high - low)
        return self.start + fraction * (self.end - self.start)

    def steps(self, count: int) -> list[float]:
        """Values at even distances in pixels, both ends included."""
        forward, back = _SPREAD[self.spacing]
        low, high = forward(self.low), forward(self.high)
        return [back(low + (high - low) * i / (count - 1)) for i in range(count)]


def make_axis(
    label: str,
    values: Sequence[float],
    start: float,
    end: float,
    *,
    spacing: Spacing = Spacing.linear,
    percent: bool = False,
    bounds: tuple[float, float] | None = None,
    ticks: Sequence[float] = (),
) -> Axis:
    """An axis that holds all values with some room around them.

    Args:
        label: what it shows, with its unit.
        values: finite; inside 0 to 1 (both excluded) for a logit axis, above 0 for a log axis.
        start: pixel of its low end.
        end: pixel of its high end.
        spacing: how values are spread.
        percent: whether tick labels show fractions as percent.
        bounds: values that the axis may not go beyond, such as 0 and 1.
        ticks: values to mark, the last ones first where there is no room for the labels of all; empty chooses round
            ones.
    """
    forward, back = _SPREAD[spacing]
    low, high = forward(min(values)), forward(max(values))
    room = PADDING * (high - low) if high > low else max(abs(high) * PADDING, 0.05)
    first, last = back(low - room), back(high + room)
    if bounds is not None:
        first, last = max(first, bounds[0]), min(last, bounds[1])
    bare = Axis(label, spacing, first, last, start, end, ())
    chosen = _labelled(bare, ticks) if ticks else [(value, True) for value in _round_values(bare)]
    shown = [(value, _tick_label(value, percent) if named else "") for value, named in chosen]
    return Axis(label, spacing, first, last, start, end, shown)


def _labelled(axis: Axis, values: Sequence[float]) -> list[tuple[float, bool]]:
    """Given values and whether there is room for each one's label."""
    named: list[float] = []
    for value in sorted(values, reverse=True):
        if not named or abs(axis.at(value) - axis.at(named[-1])) >= _LABEL_GAP:
            named.append(value)
    return [(value, value in named) for value in values]


def _round_values(axis: Axis) -> list[float]:
    """Round values that do not crowd each other."""
    candidates = [
        [v for v in values if axis.low <= v <= axis.high and not (v <= 0 and axis.spacing is Spacing.log)]
        for values in _candidates(axis)
    ]
    # On a bent axis the roundest come first, and finer ones where it is stretched. A short piece of it is as good as
    # straight and may hold none of its own round values.
    bent = _uncrowded(axis, dict.fromkeys(value for values in candidates[:-_EVEN_SETS] for value in values))
    if len(bent) > 2:
        return bent
    even = [values for values in candidates[-_EVEN_SETS:] if len(_uncrowded(axis, values)) == len(values)]
    return max(even, key=len, default=[])


def _uncrowded(axis: Axis, values: Iterable[float]) -> list[float]:
    gap = 30.0 if axis.start > axis.end else 46.0  # pixels: labels are wider than they are high
    chosen: list[float] = []
    for value in values:
        if all(abs(axis.at(value) - axis.at(other)) >= gap for other in chosen):
            chosen.append(value)
    return sorted(chosen)


def _candidates(axis: Axis) -> Iterator[Sequence[float]]:
    """Sets of values, the roundest first."""
    if axis.spacing is Spacing.logit:
        yield from _LOGIT_STEPS
    if axis.spacing is Spacing.log:
        decades = range(math.floor(math.log10(axis.low)), math.ceil(math.log10(axis.high)) + 1)
        for digits in ((1,), (1, 3), (2, 5), (1.5, 4, 7), range(1, 10)):
            yield [digit * 10.0**decade for decade in decades for digit in digits]
    width = axis.high - axis.low
    for exponent in _EXPONENTS:
        for digit in _DIGITS:
            step = digit * 10.0 ** (math.floor(math.log10(width)) + exponent)
            first = math.ceil(axis.low / step)
            yield [n * step for n in range(first, math.floor(axis.high / step) + 1)]


def _tick_label(value: float, percent: bool) -> str:
    shown = 100 * value if percent else value
    if shown != 0 and (abs(shown) >= 1e5 or abs(shown) < 1e-3):
        digits, exponent = f"{shown:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(exponent)}"
    return f"{shown:.6g}"
