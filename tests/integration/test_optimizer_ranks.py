"""Optimizers and the running average on FSDP2 shards: as on one process, on ranks that share rows unevenly."""

import numpy as np
import optimizer_ranks as ranks
import pytest
from gloo_ranks import results_on_ranks

OPTIONS = {
    "adamw": {"eps": 1e-6},
    "stable_adamw": {"eps": 1e-6},
    "lion": {"eps": None},
    "lamb": {"eps": 1e-6},
    "muon": {"eps": 1e-6, "momentum": 0.95},
}


@pytest.fixture(scope="module")
def outcomes():
    """Four ranks over five rows: two, two, one and none. By optimizer and mesh, what each rank found."""
    cases = [
        *((name, options, (4,)) for name, options in OPTIONS.items()),
        ("stable_adamw", OPTIONS["stable_adamw"], (2, 2)),
    ]
    found = results_on_ranks(ranks.run_cases, 4, cases)
    return {(name, mesh): [rank[index] for rank in found] for index, (name, _, mesh) in enumerate(cases)}


@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_steps_are_those_of_one_process(outcomes, name):
    check_equal(outcomes[name, (4,)])


def test_shards_that_are_replicated_too(outcomes):
    check_equal(outcomes["stable_adamw", (2, 2)])


def check_equal(found):
    """Weights and averages as one process has them, and the model itself again after the average was swapped in."""
    tolerance = 2e-6  # sums in another order, float32 numbers near 1
    for off, _, _, restored in found:
        assert {key: value for key, value in off.items() if not value < tolerance} == {}
        assert restored


@pytest.mark.parametrize("mesh", [(4,), (2, 2)])
def test_every_row_of_the_average_is_given_by_one_rank(outcomes, mesh):
    found = outcomes["stable_adamw", mesh]
    whole = found[0][2]
    given = {
        f"ema/{key}": np.zeros(value.shape or (1,))
        for key, value in whole.items()
        if "num_batches" not in key
    }
    for _, pieces, _, _ in found:
        for key, shape, start, rows in pieces:
            assert shape == (() if key == "ema/logit_scale" else given[key].shape)
            rows = np.atleast_1d(rows)
            assert np.array_equal(
                rows, np.atleast_1d(whole[key.removeprefix("ema/")])[start : start + len(rows)]
            )
            given[key][start : start + len(rows)] += 1
    assert all((count == 1).all() for count in given.values())
