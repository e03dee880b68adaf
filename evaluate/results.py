"""What a task hands back, and the record of it on disk: one JSON file a model, data set and task.

Predictions by sample are kept beside it on request, as <data set>.<task>.npz: paired tests between models need them.
"""

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path, read_json, write_json
from evaluate.intervals import Estimate

RESULTS_FOLDER = "results"


@dataclass(frozen=True)
class Score:
    """What a task measured, before it is known on what."""

    metrics: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]] = field(default_factory=dict)  # group of classes -> metrics
    details: dict[str, Any] = field(default_factory=dict)  # choices made on the way, JSON-able
    notes: list[str] = field(default_factory=list)  # what a reader of the number must know
    predictions: dict[str, NDArray[Any]] = field(
        default_factory=dict
    )  # by sample or query, in order; see below

    # Names of predictions: "predicted" [N] int64, "correct" [N] bool (acc1), "rank" [N] int64 of the true class; for
    # retrieval "image_retrieval_rank" [texts] and "text_retrieval_rank" [images], best positive's rank from 0.


@dataclass(kw_only=True)
class Result:
    """One model on one data set by one task."""

    model: str
    pretrained: str | None  # as asked for: tag, file or folder; None for a live model
    weights_sha256: str | None  # None for a live model
    precision: str  # fp32, bf16 or fp16
    dataset: str
    split: str  # the split that was scored
    task: str  # one of Task, or average
    metric: str  # the headline, one of metrics
    metrics: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    num_samples: int  # images scored, bad ones not counted
    num_bad_images: int = 0  # images that could not be decoded and are left out
    num_classes: int | None = None  # None for retrieval
    prompts_sha256: str | None = None  # over all prompts in order; None where no text is used
    data_sha256: str | None = None  # fingerprint of the scored split; None when it was not computed
    identity_sha256: str | None = None  # over all that the numbers depend on; None when it was not computed
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)  # command, commit, packages, settings

    @property
    def headline(self) -> Estimate:
        """The estimate of the headline metric."""
        return self.metrics[self.metric]

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log: "<dataset>/<task>/<metric>", groups with "/<group>" behind."""
        prefix = f"{self.dataset}/{self.task}"
        flat = {f"{prefix}/{name}": estimate.value for name, estimate in self.metrics.items()}
        for group, metrics in self.groups.items():
            flat |= {f"{prefix}/{name}/{group}": estimate.value for name, estimate in metrics.items()}
        return flat


def slug(text: str) -> str:
    """A file name for any name: "vtab/cifar10" is "vtab-cifar10"."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-.") or "unnamed"


def model_slug(result: Result) -> str:
    """A folder name that keeps two models apart even when both are called "export"."""
    origin = Path(result.pretrained).name if result.pretrained else "live"
    sha = result.weights_sha256[:8] if result.weights_sha256 else "0" * 8
    return slug(f"{result.model}-{origin}-{result.precision}-{sha}")


def result_path(result: Result, output_dir: Path) -> Path:
    """`<output_dir>/results/<model>/<dataset>.<task>.json`."""
    return output_dir / RESULTS_FOLDER / model_slug(result) / f"{slug(result.dataset)}.{result.task}.json"


def write_result(result: Result, output_dir: Path) -> Path:
    """Writes a result to its `result_path`, which it returns."""
    path = result_path(result, output_dir)
    write_json(path, dataclasses.asdict(result))
    return path


def read_results(output_dir: Path) -> list[Result]:
    """Every result below a folder, in the order of model, data set and task.

    Raises:
        DataError: a file is torn or is no result.
    """
    results = [read_result(path) for path in (output_dir / RESULTS_FOLDER).glob("*/*.json")]
    return sorted(results, key=lambda r: (r.model, r.pretrained or "", r.precision, r.dataset, r.task))


def read_result(path: Path) -> Result:
    """The result in a JSON file.

    Raises:
        DataError: the file is missing, torn or no result.
    """
    value = read_json(path)
    try:
        value["metrics"] = {name: Estimate(**entry) for name, entry in value["metrics"].items()}
        value["groups"] = {
            group: {name: Estimate(**entry) for name, entry in metrics.items()}
            for group, metrics in value["groups"].items()
        }
        return Result(**value)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path} is not an evaluation result ({error}); delete it and evaluate again"
        ) from error


def save_predictions(result: Result, predictions: Mapping[str, NDArray[Any]], output_dir: Path) -> Path:
    """Writes predictions by sample beside the JSON of their result and returns the path.

    Args:
        result: what they belong to.
        predictions: a Score's, and "keys", what the data set calls the samples.
        output_dir: the folder that holds results/.
    """
    path = result_path(result, output_dir).with_suffix(".npz")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **predictions)  # pyright: ignore[reportArgumentType] # numpy's stub
    return path


def load_predictions(path: Path) -> dict[str, NDArray[Any]]:
    """The predictions that `save_predictions` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing: this result has no predictions by sample; evaluate again with save_predictions=true"
        ) from error
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} is no file of predictions ({error}); delete it and evaluate again with save_predictions=true"
        ) from error


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, 64 hex digits; the same for the same value in any key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
