"""Choosing the strength of an L2 penalty by validation accuracy, on the CLIP paper's grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

PAPER_LEVELS = (1.0, 0.5, 0.25, 0.125)
"""Decades by which the CLIP paper's search narrows around the best value, after steps of two decades."""

_DECADES = 6.0  # the grid runs from 10^-6 to 10^6
_COARSE = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)
_FINEST = PAPER_LEVELS[-1]


@dataclass(frozen=True)
class L2Search:
    """What a search found: the chosen l2 and the validation accuracy at every value tried."""

    l2: float
    accuracies: Mapping[float, float]  # exponent of ten -> accuracy


def search_l2(accuracy_at: Callable[[float], float], levels: tuple[float, ...] = PAPER_LEVELS) -> L2Search:
    """The CLIP paper's search (Radford et al. 2021, A.3): 1e-6 to 1e6, two decades apart, then narrowing.

    Each further level tries the best exponent so far plus and minus its step, inside the range. Of several
    values with the best accuracy the middle one is taken, the farthest from where accuracy falls.

    Args:
        accuracy_at: validation accuracy at an l2; called from strong to weak penalties within a level.
        levels: steps in decades after the first sweep; fewer levels are a coarser answer.
    """
    accuracies = {exponent: accuracy_at(10.0**exponent) for exponent in _COARSE}
    for step in levels:
        centre = _best(accuracies)
        for exponent in (centre + step, centre - step):
            if -_DECADES <= exponent <= _DECADES and exponent not in accuracies:
                accuracies[exponent] = accuracy_at(10.0**exponent)
    return L2Search(10.0 ** _best(accuracies), accuracies)


def search_every_l2(accuracy_at: Callable[[float], float]) -> L2Search:
    """The best of the whole grid, eight values a decade and both ends, for solvers that get them nearly free.

    Accuracy need not have a single peak (openai/CLIP#39), which a narrowing search cannot see.
    """
    steps = int(2 * _DECADES / _FINEST)
    exponents = [_DECADES - step * _FINEST for step in range(steps + 1)]
    accuracies = {exponent: accuracy_at(10.0**exponent) for exponent in exponents}
    return L2Search(10.0 ** _best(accuracies), accuracies)


def _best(accuracies: Mapping[float, float]) -> float:
    highest = max(accuracies.values())
    tied = sorted(exponent for exponent, accuracy in accuracies.items() if accuracy == highest)
    return tied[len(tied) // 2]
