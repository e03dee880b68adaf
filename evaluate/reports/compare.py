"""Two runs on the same data, tested in pairs: is b better than a, or lucky?

Both were scored on the same samples, so what counts are the samples on which they differ; two intervals that
overlap say little about that. Every pair of results is either tested or listed with the reason why not, and the
p-values of all tests are corrected together (Holm 1979).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from evaluate.paired import PairedTest, mcnemar_exact, paired_bootstrap
from evaluate.reports.names import model_key, natural
from evaluate.reports.per_sample import Samples, samples_of, why_never
from evaluate.results import RESULTS_FOLDER, Result, load_predictions, read_result

SIGNIFICANCE = 0.05  # of all tests of a comparison together
_SAME = (
    1e-6  # a metric and its predictions agree to this; rounding of sums over a million samples is far below
)
_FEW_SAMPLES = 20  # discordant or not, fewer samples than these can hardly show a difference


@dataclass(frozen=True)
class Tested:
    """One metric of two models on the same samples."""

    dataset: str
    task: str
    metric: str
    unit: str  # "fraction" or "rank", where lower is better
    value_a: float
    value_b: float
    test: PairedTest
    adjusted_p: float  # Holm's, over all tests of the comparison
    notes: tuple[str, ...] = ()

    @property
    def better(self) -> str:
        """Which model is better by the corrected test: "a", "b" or "" when it shows no difference."""
        if self.adjusted_p >= SIGNIFICANCE or self.test.difference == 0:
            return ""
        return "b" if (self.test.difference > 0) != (self.unit == "rank") else "a"


@dataclass(frozen=True)
class Comparison:
    """Everything that two runs have in common, and what they have not."""

    name_a: str
    name_b: str
    tested: list[Tested] = field(default_factory=list)
    untested: list[tuple[str, str]] = field(default_factory=list)  # what, and why there is no test


_REASONS_SHOWN = 4  # of why nothing can be compared; a suite has dozens of cells, mostly for one reason


@dataclass(frozen=True)
class _Run:
    """One model's results and where their predictions are."""

    name: str
    files: dict[tuple[str, str], tuple[Result, Path]]  # (data set, task) -> result, its .npz


def compare(folder_a: Path | str, folder_b: Path | str) -> Comparison:
    """Tests every headline, and both directions of retrieval, that two runs share.

    Args:
        folder_a: an output folder of `python -m evaluate` with one model in it, or one model's folder below results/.
        folder_b: the same for the other model; differences are b minus a.

    Raises:
        ConfigError: a folder holds several models, or both are the same folder.
        DataError: a folder holds no result, a file is damaged or does not belong to its result, or there is nothing
            that both runs can be compared on.
    """
    if Path(folder_a).resolve() == Path(folder_b).resolve():
        raise ConfigError(f"compare got {folder_a} twice; give the folders of two runs")
    a, b = _open_run(Path(folder_a)), _open_run(Path(folder_b))
    tested: list[Tested] = []
    untested: list[tuple[str, str]] = []
    for cell in sorted(a.files.keys() | b.files.keys(), key=lambda cell: (natural(cell[0]), cell[1])):
        what = f"{cell[0]} {cell[1]}"
        if cell not in a.files or cell not in b.files:
            untested.append((what, f"only {'a' if cell in a.files else 'b'} has it"))
            continue
        if cell[1] == "average":
            untested.append((what, "a mean over data sets; see the tests of its members"))
            continue
        reason = _differing_data(a.files[cell][0], b.files[cell][0])
        if reason:
            untested.append((what, reason))
            continue
        found, reasons = _test_pair(a.files[cell], b.files[cell])
        tested += found
        untested += [(f"{what} {metric}", why) for metric, why in reasons]
    if not tested:
        reasons = "; ".join(f"{what}: {why}" for what, why in untested[:_REASONS_SHOWN])
        if len(untested) > _REASONS_SHOWN:
            reasons += f"; and {len(untested) - _REASONS_SHOWN} more"
        raise DataError(
            f"{folder_a} and {folder_b} have nothing to compare ({reasons}). Score both models on the same data with "
            "save_predictions=true"
        )
    adjusted = holm([row.test.p_value for row in tested])
    rows = [replace(row, adjusted_p=p) for row, p in zip(tested, adjusted, strict=True)]
    return Comparison(a.name, b.name, rows, untested)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm 1979): below 0.05 all together err at most one time in twenty.

    Args:
        p_values: of all tests that are looked at, in any order.

    Returns:
        the corrected ones in the same order, at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _open_run(folder: Path) -> _Run:
    if folder.parent.name == RESULTS_FOLDER:
        files = sorted(folder.glob("*.json"))
    else:
        files = sorted((folder / RESULTS_FOLDER).glob("*/*.json"))
    if not files:
        raise DataError(
            f"{folder} holds no results; give an output_dir of python -m evaluate (with {RESULTS_FOLDER}/ in it), or "
            f"one model's folder below {RESULTS_FOLDER}/"
        )
    read = [(read_result(file), file.with_suffix(".npz")) for file in files]
    if len({model_key(result) for result, _ in read}) > 1:
        folders = ", ".join(dict.fromkeys(str(file.parent) for file in files))
        raise ConfigError(f"{folder} holds several models; give the folder of one of them: {folders}")
    first = read[0][0]
    name = f"{first.model} {first.pretrained or ''} {first.precision}".replace("  ", " ")
    return _Run(name, {(result.dataset, result.task): (result, path) for result, path in read})


def _differing_data(a: Result, b: Result) -> str:
    """Why two results are not of the same samples; empty when they are."""
    if a.data_sha256 is None or b.data_sha256 is None:
        which = "a" if a.data_sha256 is None else "b"
        return f"{which} has no fingerprint of its data (a model in training); evaluate its export"
    for name, of_a, of_b in (
        ("split", a.split, b.split),
        ("data", a.data_sha256[:12], b.data_sha256[:12]),
        ("number of images", a.num_samples, b.num_samples),
        ("number of bad images", a.num_bad_images, b.num_bad_images),
    ):
        if of_a != of_b:
            return f"the {name} differs: {of_a} in a, {of_b} in b; score both on the same"
    return ""


def _metrics_to_test(result: Result) -> list[str]:
    """The headline; of retrieval the two directions as well; acc1 where the headline has no test."""
    metrics = [result.metric]
    if result.task == "retrieval":
        metrics += ["image_retrieval_recall@1", "text_retrieval_recall@1"]
    return [metric for metric in dict.fromkeys(metrics) if metric in result.metrics]


def _test_pair(a: tuple[Result, Path], b: tuple[Result, Path]) -> tuple[list[Tested], list[tuple[str, str]]]:
    """Tests of one data set and task, and the metrics that have none with the reason."""
    metrics = _metrics_to_test(a[0])
    never = [(metric, why) for metric in metrics if (why := why_never(metric))]
    if len(never) == len(metrics) and "acc1" not in a[0].metrics:
        return [], never
    paths = {"a": a[1], "b": b[1]}
    absent = [f"{which} ({path.name})" for which, path in paths.items() if not path.is_file()]
    if absent:
        why = f"no predictions were saved in {' and '.join(absent)}; run again with save_predictions=true"
        return [], [(a[0].metric, why)]
    of_a, of_b = load_predictions(a[1]), load_predictions(b[1])
    if "keys" in of_a and "keys" in of_b and of_a["keys"].tolist() != of_b["keys"].tolist():
        return [], [(a[0].metric, "the samples are called differently in a and b, so they cannot be paired")]
    notes = _notes(a[0], b[0])
    tested: list[Tested] = []
    reasons: list[tuple[str, str]] = []
    for metric in metrics:
        if metric not in b[0].metrics:
            reasons.append((metric, "b was not scored by it"))
            continue
        samples = samples_of(metric, of_a), samples_of(metric, of_b)
        why = next((found for found in samples if isinstance(found, str)), None)
        if why is not None:
            reasons.append((metric, why))
            if metric == a[0].metric and "acc1" in a[0].metrics and "acc1" not in metrics:
                metrics.append("acc1")
            continue
        left, right = (found for found in samples if isinstance(found, Samples))
        _check_belongs(left, a[0], metric, a[1])
        _check_belongs(right, b[0], metric, b[1])
        tested.append(_tested(a[0], b[0], metric, _run_test(left, right), notes))
    return tested, reasons


def _run_test(a: Samples, b: Samples) -> PairedTest:
    if a.is_hit_or_miss and b.is_hit_or_miss:
        return mcnemar_exact(a.values == 1.0, b.values == 1.0)
    return paired_bootstrap(a.values, b.values, a.clusters)


def _tested(a: Result, b: Result, metric: str, test: PairedTest, notes: tuple[str, ...]) -> Tested:
    if test.num < _FEW_SAMPLES:
        notes = (*notes, f"only {test.num} samples")
    of_a, of_b = a.metrics[metric], b.metrics[metric]
    return Tested(a.dataset, a.task, metric, of_a.unit, of_a.value, of_b.value, test, 1.0, notes)


def _check_belongs(samples: Samples, result: Result, metric: str, path: Path) -> None:
    """Predictions left from another run would give a test of something that was never reported.

    Raises:
        DataError: their mean is not the metric of the result beside them.
    """
    mean = float(samples.values.mean()) if len(samples.values) else math.nan
    if not math.isclose(mean, result.metrics[metric].value, rel_tol=_SAME, abs_tol=_SAME):
        raise DataError(
            f"{path} does not belong to the result beside it: its {metric} is {mean:.6g}, the result says "
            f"{result.metrics[metric].value:.6g}; delete both and evaluate again with save_predictions=true"
        )


def _notes(a: Result, b: Result) -> tuple[str, ...]:
    """Differences that do not forbid a test and are part of what is tested."""
    notes = []
    if a.prompts_sha256 != b.prompts_sha256:
        notes.append("the prompts differ")
    if a.precision != b.precision:
        notes.append(f"precision is {a.precision} in a and {b.precision} in b")
    if a.num_bad_images:
        notes.append(f"{a.num_bad_images} images could not be decoded and are left out of both")
    return tuple(notes)
