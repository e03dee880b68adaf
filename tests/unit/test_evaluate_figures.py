"""Axes and drawings: where values land, which ticks are chosen, and that nothing leaves the frame."""

import itertools
import math
import re

import pytest
from report_results import few_shot

from evaluate.intervals import seed_spread
from evaluate.reports.axes import Spacing, make_axis
from evaluate.reports.drawing import BOTTOM, LEFT, RIGHT, TOP, Drawing, Key, legend, shape
from evaluate.reports.few_shot_plot import few_shot_curve


def test_a_linear_axis_by_hand():
    axis = make_axis("x", [0.0, 1.0], 100, 200, bounds=(0.0, 1.0))
    assert [axis.at(v) for v in (0.0, 0.25, 1.0)] == [100, 125, 200]
    assert (axis.at(-5.0), axis.at(7.0)) == (100, 200)  # values beyond the ends land on them


def test_an_upward_axis_runs_from_bottom_to_top():
    axis = make_axis("y", [0.0, 1.0], BOTTOM, TOP)
    assert axis.at(0.0) > axis.at(1.0)


def test_a_log_axis_gives_equal_room_to_equal_factors():
    axis = make_axis("x", [1.0, 10_000.0], 0, 400, spacing=Spacing.log)
    steps = [axis.at(10.0**n) for n in range(5)]
    assert [b - a for a, b in itertools.pairwise(steps)] == pytest.approx([steps[1] - steps[0]] * 4)


def test_a_logit_axis_is_symmetric_around_a_half():
    axis = make_axis("x", [0.1, 0.9], 0, 100, spacing=Spacing.logit)
    assert axis.at(0.5) == pytest.approx(50)
    assert axis.at(0.8) - 50 == pytest.approx(50 - axis.at(0.2))
    # Between a half and 0.8 lies log(4), between 0.8 and 0.9 log(9/4).
    assert (axis.at(0.8) - 50) / (axis.at(0.9) - axis.at(0.8)) == pytest.approx(math.log(4) / math.log(9 / 4))


@pytest.mark.parametrize("spacing", list(Spacing))
@pytest.mark.parametrize(
    ("low", "high"), [(0.011, 0.93), (0.38, 0.44), (0.6332, 0.6334), (0.5, 0.5), (0.98, 0.999)]
)
@pytest.mark.parametrize("span", [(LEFT, RIGHT), (BOTTOM, TOP)])
def test_ticks_are_inside_and_do_not_crowd(spacing, low, high, span):
    axis = make_axis("x", [low, high], *span, spacing=spacing, percent=True)
    places = sorted(axis.at(value) for value, _ in axis.ticks)
    assert len(places) >= 2
    assert min(span) <= places[0] <= places[-1] <= max(span)
    assert min(b - a for a, b in itertools.pairwise(places)) >= 30
    assert all(len(label) <= 7 for _, label in axis.ticks)


def test_given_ticks_keep_their_lines_and_lose_labels_that_would_touch():
    axis = make_axis("k", [1, 128], LEFT, RIGHT, spacing=Spacing.log, ticks=(1, 2, 100, 128))
    assert [label for _, label in axis.ticks] == ["1", "2", "", "128"]


def test_numbers_far_from_one_are_shortened():
    axis = make_axis("GMACs", [1e10, 1e13], LEFT, RIGHT, spacing=Spacing.log)
    assert {"1e10", "1e11", "1e12", "1e13"} <= {label for _, label in axis.ticks}


def drawing() -> Drawing:
    return Drawing(make_axis("x", [0.0, 1.0], LEFT, RIGHT), make_axis("y", [0.0, 1.0], BOTTOM, TOP))


def test_everything_that_is_drawn_is_inside_the_picture():
    drawn = drawing()
    drawn.line([(-9.0, -9.0), (9.0, 9.0)], series=1)
    drawn.band([(0.0, -9.0, 9.0), (1.0, -9.0, 9.0)])
    for n in range(30):
        drawn.mark(1.0, 0.5, series=n, note=f"mark {n}", label=f"label {n}")
    drawn.ends([(0.5, str(n)) for n in range(20)])
    svg = drawn.render("a title")
    numbers = [
        float(value)
        for pair in re.findall(r'points="([^"]+)"', svg)
        for value in re.findall(r"[-\d.]+", pair)
    ]
    assert 0 <= min(numbers) <= max(numbers) <= 640
    assert all(0 <= float(y) <= 400 for y in re.findall(r'<text[^>]* y="([-\d.]+)"', svg))


def test_labels_of_neighbours_stand_apart():
    drawn = drawing()
    drawn.mark(0.5, 0.5, series=0, note="", label="12")
    drawn.mark(0.505, 0.5, series=1, note="", label="13")
    svg = drawn.render("two")
    (x1, y1), (x2, y2) = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" class="small"', svg)
    assert abs(float(x1) - float(x2)) > 13 or abs(float(y1) - float(y2)) >= 13


def test_forty_series_look_different():
    marks = {shape(0.0, 0.0, series) for series in range(40)}
    assert len(marks) == 40


def test_a_number_that_is_not_finite_is_never_drawn():
    with pytest.raises(AssertionError, match="a number that is not finite"):
        shape(math.nan, 0.0, 0)


def test_notes_and_names_are_escaped():
    drawn = drawing()
    drawn.mark(0.5, 0.5, series=0, note="<b>", label="<i>")
    assert "<b>" not in drawn.render("<u>") + legend([Key(0, "<s>")])
    assert "<i>" not in drawn.render("<u>")
    assert "<u>" not in drawn.render("<u>")
    assert "<s>" not in legend([Key(0, "<s>")])


def test_a_few_shot_curve_is_ordered_by_k_and_skips_what_is_not_finite():
    made = few_shot()
    assert [k for k, _ in few_shot_curve(made)] == [1, 2, 16]
    made.metrics["acc1@4_shot"] = seed_spread([math.nan, 0.5], 0.001)
    made.metrics["acc5"] = seed_spread([0.5], 0.001)
    assert [k for k, _ in few_shot_curve(made)] == [1, 2, 16]
