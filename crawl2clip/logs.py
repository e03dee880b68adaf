"""Logging, progress bars and the provenance record, set up once by each command.

Rank 0 logs at INFO, other ranks at WARNING with their rank in the record. Log lines go through tqdm,
so a message never tears a progress bar.
"""

import logging
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_PACKAGES = (
    "torch", "open_clip_torch", "timm", "webdataset", "numpy", "pyarrow", "polars", "deepspeed", "clip_benchmark",
)  # fmt: skip


class _TqdmHandler(logging.StreamHandler):
    """Writes records above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if "tqdm" not in sys.modules:  # there is no bar yet; a worker has none and does without the import
            return super().emit(record)
        from tqdm import tqdm

        with tqdm.external_write_mode(file=sys.stderr):
            return super().emit(record)


def setup_logging(rank: int = 0, world_size: int = 1, folder: Path | None = None) -> None:
    """Routes all log records to stderr and, when a folder is given, to `<folder>/log.txt` on rank 0."""
    where = f" rank {rank}" if world_size > 1 else ""
    formatter = logging.Formatter(f"%(asctime)s{where} %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")
    handlers: list[logging.Handler] = [_TqdmHandler(sys.stderr)]
    if folder is not None and rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(folder / "log.txt", encoding="utf-8"))
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in handlers:
        handler.setFormatter(formatter)
        handler.addFilter(_not_model_zoo_chatter)
        root.addHandler(handler)
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    for noisy in ("httpx", "urllib3", "matplotlib", "PIL", "fontTools", "botocore", "aiobotocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _not_model_zoo_chatter(record: logging.LogRecord) -> bool:
    # open_clip narrates every model construction on the root logger, and warns that a model which is
    # about to be trained or given its weights has none yet.
    return not (record.name == "root" and "open_clip" in record.pathname and record.levelno < logging.ERROR)


def progress(
    iterable: Iterable[Any] | None = None,
    *,
    total: int | None = None,
    desc: str,
    unit: str,
    disable: bool = False,
) -> "tqdm":
    """A progress bar on stderr; where stderr is a file, a line every ten seconds is enough."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        iterable,
        total=total,
        desc=desc,
        unit=unit,
        disable=disable,
        dynamic_ncols=True,
        mininterval=interval,
        maxinterval=2 * interval,
        unit_scale=False,
    )


def provenance() -> dict[str, Any]:
    """What made a result: command, git commit, package versions, Python, host architecture, UTC time."""
    return {
        "command": " ".join(sys.argv),
        "commit": _git_commit(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The checkout's commit, with `+changes` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root, capture_output=True, text=True, timeout=30, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changed else commit
