"""What a run says about itself: metrics.jsonl, wandb, TensorBoard and the console, on rank 0 alone.

`metrics.jsonl` is one curve however often the run was killed or rolled back: lines of steps after the
checkpoint that a run goes on from are removed before new ones are written. TensorBoard is told to drop those
points (`purge_step`); wandb cannot, so it keeps the first value of a step that was done twice. A number that
is not finite is `null`, as JSON has no word for it; the log says which it was.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import atomic_path

METRICS_NAME = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"

__all__ = ["MetricsLog", "WandbConfig", "console_line", "read_metrics"]

T = TypeVar("T")


@dataclass(kw_only=True)
class WandbConfig:
    """Weights & Biases; offline unless WANDB_MODE says otherwise (`wandb sync` uploads later)."""

    enabled: bool = MISSING
    project: str = MISSING


@dataclass(kw_only=True)
class LoggingConfig:
    """Where records go besides metrics.jsonl and wandb."""

    tensorboard: bool = MISSING  # event files in <run>/tensorboard; needs the tensorboard package


class MetricsLog:
    """Appends records to `<folder>/metrics.jsonl`, and to wandb and TensorBoard when those are on.

    Args:
        folder: the run's folder.
        done: optimizer steps done; records of later steps are removed.
        run_name: the run's name in wandb.
        wandb: whether and where wandb gets the records too.
        settings: the run's settings, for wandb's page.
        tensorboard: whether TensorBoard gets them too.

    Raises:
        ConfigError: wandb or TensorBoard is asked for and not installed.
        DataError: metrics.jsonl cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        done: int,
        run_name: str,
        wandb: WandbConfig,
        settings: dict[str, Any],
        tensorboard: bool = False,
    ) -> None:
        self._path, self._folder = folder / METRICS_NAME, folder
        self._wandb = _start_wandb(folder, wandb, run_name, settings) if wandb.enabled else None
        self._wandb_step = done  # the highest step that wandb has
        self._tensorboard = _start_tensorboard(folder, done) if tensorboard else None
        with _telling_of_full_disks(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            _cut(self._path, done)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def write(self, record: dict[str, Any]) -> None:
        """Adds one record; `record["step"]` says which step it belongs to.

        Raises:
            DataError: the disk does not take it.
        """
        clean = {name: _finite(value) for name, value in record.items()}
        with _telling_of_full_disks(self._path):
            self._file.write(json.dumps(clean, allow_nan=False) + "\n")
            self._file.flush()
            if self._tensorboard is not None:
                _add_scalars(self._tensorboard, record)
        if self._wandb is not None and record["step"] >= self._wandb_step:
            self._wandb_step = record["step"]
            self._wandb.log(record, step=record["step"])

    def rewind(self, step: int) -> None:
        """Removes the records after `step`, for a run that rolled back to it and does the steps after it anew."""
        with _telling_of_full_disks(self._path):
            self._file.close()
            _cut(self._path, step)
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
            if self._tensorboard is not None:
                self._tensorboard.close()
                self._tensorboard = _start_tensorboard(self._folder, step)

    def close(self) -> None:
        """Ends the log; wandb and TensorBoard write out what they hold. Never hides an error that ends the run."""
        for file in (self._file, self._tensorboard):
            try:
                if file is not None:
                    file.close()
            except OSError:  # a full disk was told of by `write`
                continue
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, none where there is no file; a line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def console_line(record: Mapping[str, Any], total_steps: int) -> str:
    """A step's record as one line: fixed order, units beside the numbers, what is unknown left out."""
    parts = [f"step {record['step']}/{total_steps}"]
    for name, form in _CONSOLE:
        value = record.get(name)
        if value is not None:
            parts.append(form.format(value))
    return "  ".join(parts)


_CONSOLE = (
    ("samples_seen", "samples {:,}"),
    ("loss", "loss {:.4f}"),
    ("logit_scale", "logit scale {:.2f}"),
    ("lr", "lr {:.3g}"),
    ("grad_norm", "grad norm {:.3g}"),
    ("samples_per_s_per_gpu", "{:.1f} samples/s/GPU"),
    ("mfu", "MFU {:.1%}"),
    ("data_wait_fraction", "data wait {:.1%}"),
    ("peak_memory_gb", "memory {:.2f} GB"),
    ("gpu_hours", "{:.2f} GPU-hours"),
    ("hours_left", "{:.2f} h left"),
)
"""House order of a step line; each with its unit."""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _telling_of_full_disks:
    """Turns an OSError of a block into an error that says what to do; nothing is swallowed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            try:
                free = f"{shutil.disk_usage(self._path.parent).free / 1e9:.2f} GB are free there"
            except OSError:
                free = "the folder cannot be read either"
            raise DataError(
                f"the log {self._path} cannot be written: {error.strerror or error} ({free}); make room or mend the "
                "file system, and run the same command again: it goes on from the last checkpoint"
            ) from error


def _cut(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    kept = [record for record in read_metrics(path) if record["step"] <= last_step]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def _start_wandb(folder: Path, wandb_config: WandbConfig, run_name: str, settings: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            "wandb.enabled=true and wandb is not installed; pip install wandb, or set it to false"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    # One id for every restart of a run, on any machine, so that they become one curve.
    place = storage.address_of(folder) or str(folder.resolve())
    run_id = hashlib.sha256(place.encode()).hexdigest()[:16]
    return wandb.init(
        project=wandb_config.project,
        name=run_name,
        id=run_id,
        resume="allow",
        dir=folder,
        config=settings,
        mode="offline" if os.environ.get("WANDB_MODE", "offline") == "offline" else None,
        settings=wandb.Settings(silent=True),
    )


def _start_tensorboard(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "logging.tensorboard=true and tensorboard is not installed; pip install tensorboard, or set it to false"
        ) from error
    # Readers drop what older files of the folder say about this step and later ones.
    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=done + 1)


def _add_scalars(writer: Any, record: Mapping[str, Any]) -> None:
    for name, value in record.items():
        if name != "step" and isinstance(value, (int, float)):
            writer.add_scalar(name, value, record["step"])
    writer.flush()
