"""Power laws, the published grid, what is known of a checkpoint's training, and the figures made of them."""

import math
import random

import numpy as np
import pytest
from report_results import result

from crawl2clip.errors import DataError
from evaluate.intervals import wilson
from evaluate.reports.names import Models
from evaluate.reports.scaling import fit_power_law, pareto_frontier, t_975
from evaluate.reports.scaling_plot import GRID_CELLS, scaling_blocks, scaling_cells
from evaluate.reports.training_compute import gmacs_by_model, published_grid, training_of


def checkpoints(errors, *, model="ViT-B-32", samples=(3, 13, 34), training=None, dataset="imagenet1k"):
    return [
        result(
            model=model, dataset=dataset, pretrained=f"x_s{s}b_b" if training is None else f"runs/{s}",
            weights_sha256=f"{s:02d}" * 32, metrics={"acc1": wilson(round(10_000 * (1 - error)), 10_000)},
            provenance={} if training is None else {"training": training(s)}, groups={},
        )
        for s, error in zip(samples, errors, strict=True)
    ]  # fmt: skip


def test_a_law_without_noise_is_found_exactly():
    compute = [1e9, 1e10, 3e11, 1e12]
    law = fit_power_law(compute, [5.0 * c**-0.11 for c in compute])
    assert law.a == pytest.approx(5.0, rel=1e-9)  # rounding of a few logarithms
    assert (law.b, law.b_low, law.b_high) == pytest.approx((-0.11, -0.11, -0.11), rel=1e-6)
    assert law.r2 == pytest.approx(1.0)
    assert law.band(1e11) == pytest.approx((law.at(1e11), law.at(1e11)), rel=1e-6)


def test_the_interval_is_that_of_ordinary_least_squares():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    compute = np.array([1.0, 3.0, 10.0, 40.0, 200.0, 900.0])
    error = 0.8 * compute**-0.2 * np.exp(rng.normal(0, 0.05, 6))
    law = fit_power_law(compute.tolist(), error.tolist())
    line = stats.linregress(np.log(compute), np.log(error))
    half = stats.t.ppf(0.975, 4) * line.stderr
    assert (law.b, law.r2) == pytest.approx((line.slope, line.rvalue**2), rel=1e-9)
    assert (law.b_low, law.b_high) == pytest.approx(
        (line.slope - half, line.slope + half), rel=2e-4
    )  # table's digits


def test_the_interval_covers_the_exponent_as_often_as_it_says():
    rng = random.Random(0)
    compute = [1.0, 2.0, 5.0, 10.0, 30.0]
    covered = 0
    for _ in range(400):
        law = fit_power_law(compute, [c**-0.3 * math.exp(rng.gauss(0, 0.1)) for c in compute])
        covered += law.b_low <= -0.3 <= law.b_high
    assert 0.92 <= covered / 400 <= 0.98  # 95% within three standard errors of 400 draws


@pytest.mark.parametrize("degrees", [1, 2, 5, 10, 11, 30, 1000])
def test_student_quantiles(degrees):
    stats = pytest.importorskip("scipy.stats")
    assert t_975(degrees) == pytest.approx(
        stats.t.ppf(0.975, degrees), abs=5e-4
    )  # three decimals in the table


@pytest.mark.parametrize(
    ("compute", "error", "said"),
    [
        ([1.0, 2.0, 3.0], [0.5, 0.0, 0.1], r"\(2.0, 0.0\) has no logarithm; both must be finite and above 0"),
        ([1.0, math.inf, 3.0], [0.5, 0.2, 0.1], "has no logarithm"),
        ([1.0, 2.0], [0.5, 0.2], "2 checkpoints at 2 amounts of compute; a line and its error need 3"),
        ([2.0, 2.0, 2.0], [0.5, 0.2, 0.1], "3 checkpoints at 1 amounts of compute"),
    ],
)
def test_what_cannot_be_fitted_is_said(compute, error, said):
    with pytest.raises(DataError, match=said):
        fit_power_law(compute, error)


def test_only_checkpoints_that_none_beats_are_on_the_frontier():
    points = [(1.0, 0.5), (2.0, 0.6), (2.0, 0.4), (3.0, 0.4), (4.0, 0.3)]
    assert pareto_frontier(points[::-1]) == [(1.0, 0.5), (2.0, 0.4), (4.0, 0.3)]


@pytest.mark.parametrize(
    ("column", "exponent"), [("imagenet1k_acc1", -0.11), ("mscoco_image_retrieval_recall@5", -0.08)]
)
def test_the_paper_s_exponents_come_out_of_its_checkpoints(column, exponent):
    # Cherti et al. 2023, figure 1: OpenCLIP's exponents, given with two decimals and fitted to the best checkpoint of
    # each bin of compute; the frontier is the same idea without bins.
    front = pareto_frontier([(p.compute, 1 - p.percents[column] / 100) for p in published_grid()])
    law = fit_power_law([c for c, _ in front], [e for _, e in front])
    assert law.b == pytest.approx(exponent, abs=0.005)


def test_the_grid_has_the_columns_that_are_drawn():
    assert len(published_grid()) == 29
    assert all(set(GRID_CELLS) <= set(point.percents) for point in published_grid())
    assert gmacs_by_model()["ViT-B-32"] == 7.4


@pytest.mark.parametrize(
    ("changes", "samples", "gmacs"),
    [
        ({"pretrained": "laion2b_s34b_b79k"}, 34e9, 7.4),
        ({"pretrained": "datacomp_m_s128m_b4k", "model": "ViT-B-32-quickgelu"}, 128e6, 7.4),
        ({"pretrained": "laion2b_s34b_b79k", "model": "my-model"}, 34e9, None),
        ({"provenance": {"training": {"samples_seen": 5, "gmacs_per_sample": 2.5}}}, 5.0, 2.5),
    ],
)
def test_what_is_known_of_training(changes, samples, gmacs):
    training = training_of(result(**changes))
    assert training is not None
    assert (training.samples_seen, training.gmacs) == (samples, gmacs)
    assert training.compute == (None if gmacs is None else samples * gmacs)


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained": "openai"},
        {"pretrained": None},
        {"pretrained": "runs/x_s34b_y/export"},  # a path is no tag
        {"pretrained": "x", "provenance": {"training": {"samples_seen": math.nan}}},
        {"pretrained": "x", "provenance": {"training": {"samples_seen": -1}}},
        {"pretrained": "x", "provenance": {"training": "long"}},
    ],
)
def test_what_is_not_known_of_training_is_none(changes):
    assert training_of(result(**changes)) is None


def test_public_checkpoints_get_a_line_beside_the_published_grid():
    cells = scaling_cells(checkpoints([0.48, 0.43, 0.40]))
    assert [(c.dataset, c.axis, c.grid, len(c.points)) for c in cells] == [
        ("imagenet1k", "GMACs", "imagenet1k_acc1", 3)
    ]
    law = cells[0].law()
    assert law is not None
    assert law.b == pytest.approx(math.log(0.40 / 0.48) / math.log(34 / 3), rel=0.1)


def test_checkpoints_of_one_unknown_architecture_are_compared_by_samples_seen():
    cells = scaling_cells(checkpoints([0.5, 0.4, 0.3], model="mine", training=lambda s: {"samples_seen": s}))
    assert [(c.axis, c.grid, [p.compute for p in c.points]) for c in cells] == [
        ("samples seen", None, [3, 13, 34])
    ]


def test_checkpoints_of_several_unknown_architectures_are_left_out():
    results = checkpoints([0.5, 0.4], samples=(3, 13), model="mine", training=lambda s: {"samples_seen": s})
    results += checkpoints([0.48, 0.43, 0.40])
    [cell] = scaling_cells(results)
    assert (cell.axis, len(cell.points)) == ("GMACs", 3)


def test_the_page_says_what_the_fit_does_not_know():
    results = checkpoints([0.48, 0.43, 0.40])
    page = "".join(scaling_blocks(results, Models.of(results)))
    assert "checkpoints of one run are not independent" in page
    assert "3 of 3 checkpoints; the area is the 95% prediction" in page
    assert "29 checkpoints trained on LAION data" in page


def test_two_checkpoints_get_points_and_no_line():
    results = checkpoints([0.48, 0.43], samples=(3, 13))
    page = "".join(scaling_blocks(results, Models.of(results)))
    assert "a line and its error need 3, so none is drawn" in page
    assert "no fit below 3" in page
    assert 'class="band"' not in page


def test_one_checkpoint_makes_no_section():
    results = checkpoints([0.48], samples=(3,))
    assert scaling_blocks(results, Models.of(results)) == []


def test_a_perfect_score_has_no_logarithm_and_is_left_out():
    assert scaling_cells(checkpoints([0.0, 0.4], samples=(3, 13))) == []
