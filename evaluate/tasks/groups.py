"""Groups of samples (region, income, hospital): the worst one is the score that fairness and shift sets declare.

The worst group is the one with the lowest accuracy among all that have a sample, as WILDS and DataComp take it
(FMoW, Dollar Street, GeoDE). Its interval is that group's own Wilson interval; that it was picked for being the
lowest is not corrected for. A group of a few samples is often the worst by luck alone: FMoW has one of 4 images,
which moves DataComp's average of 38 by up to 0.66 points, so sizes stand beside the scores and tiny groups are
named in a note, together with the worst of the others.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from evaluate.intervals import Estimate, wilson
from evaluate.results import Score
from evaluate.tasks.inputs import check_count

TINY_GROUP = 30  # samples; in a smaller group one answer moves the score by more than 3 points
WORST_OF = {"acc1": 1, "acc5": 5}  # metric -> ranks that count as right


def score_sample_groups(
    score: Score, ranks: NDArray[np.integer], sample_groups: Sequence[str], num_classes: int
) -> None:
    """Adds to a score each group's accuracy, worst_group_acc1 and worst_group_acc5, group sizes and notes.

    Args:
        score: of all samples; added to in place.
        ranks: [N] classes that rank before the true one.
        sample_groups: [N] the group of each sample; "" for a sample without one.
        num_classes: C; acc5 needs five.

    Raises:
        DataError: not one group a sample, no sample with a group, or a name that a group of classes has.
    """
    check_count("sample groups", len(sample_groups), len(ranks), "samples")
    names = np.asarray(sample_groups, dtype=str)
    found: dict[str, dict[str, Estimate]] = {}
    for name in sorted(set(sample_groups) - {""}):
        own = ranks[names == name]
        found[name] = {
            metric: wilson(int((own < k).sum()), len(own), k / num_classes)
            for metric, k in WORST_OF.items()
            if k <= num_classes
        }
    if not found:
        raise DataError(
            f"none of the {len(ranks)} samples has a group; name a metadata field that the data set has, or leave "
            "group_by unset"
        )
    clash = sorted(found.keys() & score.groups.keys())
    if clash:
        raise DataError(
            f"group {clash[0]!r} is both a group of classes and a group of samples; rename it in groups.json"
        )
    score.groups.update(found)
    score.details["group_sizes"] = {name: metrics["acc1"].num for name, metrics in found.items()}
    worst = {metric: _worst(found, metric) for metric in next(iter(found.values()))}
    score.details["worst_group"] = worst
    score.metrics.update({f"worst_group_{m}": found[name][m] for m, name in worst.items()})
    score.notes.extend(_tiny_notes(found, worst))
    left_out = int((names == "").sum())
    if left_out:
        score.notes.append(f"{left_out} of {len(names)} samples belong to no group")


def _worst(groups: Mapping[str, Mapping[str, Estimate]], metric: str) -> str:
    """The lowest group; of equal ones the largest, about which most is known."""
    return min(groups, key=lambda name: (groups[name][metric].value, -groups[name][metric].num, name))


def _tiny_notes(groups: Mapping[str, Mapping[str, Estimate]], worst: Mapping[str, str]) -> list[str]:
    tiny = {name: metrics for name, metrics in groups.items() if metrics["acc1"].num < TINY_GROUP}
    if not tiny:
        return []
    sizes = ", ".join(f"{name!r} ({metrics['acc1'].num})" for name, metrics in tiny.items())
    notes = [f"groups with fewer than {TINY_GROUP} samples: {sizes}"]
    large = {name: metrics for name, metrics in groups.items() if name not in tiny}
    for metric, name in worst.items():
        if name not in tiny:
            continue
        num = tiny[name][metric].num
        note = (
            f"worst_group_{metric} is that of {name!r}, where one answer moves it by {100 / num:.1f} points"
        )
        if large:
            other = _worst(large, metric)
            found = large[other][metric]
            note += (
                f"; the worst larger group is {other!r} with {100 * found.value:.2f}% of {found.num} samples"
            )
        notes.append(note)
    return notes
