"""What a task hands back, and the record of it on disk: one JSON file a model, data set and task."""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
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
    task: str  # zero_shot, retrieval, linear_probe, few_shot or average
    metric: str  # the headline, one of metrics
    metrics: dict[str, Estimate]
    groups: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    num_samples: int  # images scored, bad ones not counted
    num_bad_images: int = 0  # images that could not be decoded and are left out
    num_classes: int | None = None  # None for retrieval
    prompts_sha256: str | None = None  # over all prompts in order; None where no text is used
    data_sha256: str | None = None  # fingerprint of the scored split; None when it was not computed
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


def write_result(result: Result, output_dir: Path) -> Path:
    """Writes `<output_dir>/results/<model>/<dataset>.<task>.json` and returns its path."""
    path = output_dir / RESULTS_FOLDER / model_slug(result) / f"{slug(result.dataset)}.{result.task}.json"
    write_json(path, dataclasses.asdict(result))
    return path


def read_results(output_dir: Path) -> list[Result]:
    """Every result below a folder, in the order of model, data set and task.

    Raises:
        DataError: a file is torn or is no result.
    """
    results = [_read_result(path) for path in (output_dir / RESULTS_FOLDER).glob("*/*.json")]
    return sorted(results, key=lambda r: (r.model, r.pretrained or "", r.precision, r.dataset, r.task))


def _read_result(path: Path) -> Result:
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


def hash_of(value: Any) -> str:
    """SHA-256 of a JSON-able value, 64 hex digits; the same for the same value in any key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
