"""Splits built by CLIP_benchmark: torchvision's, VTAB's and others on a local root folder.

Its builder answers a missing file by shelling out to wget or gdown, whatever `download` says; that call is
closed here unless downloads are allowed, and becomes an error that names the command.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.samples import ImageFault, Record

SPLIT_IGNORED = ("sun397", "caltech101", "eurosat")
"""Sets that torchvision does not split: every split is the whole set, so nothing can be trained on them."""

RETRIEVAL_SETS = ("mscoco_captions", "flickr30k", "flickr8k")


class BenchmarkSplit:
    """One split of a data set that `clip_benchmark.datasets.builder.build_dataset` knows."""

    def __init__(self, builder: str, root: Path, split: str, *, download: bool, language: str = "en") -> None:
        """Builds the data set without a transform.

        Args:
            builder: CLIP_benchmark's name, for example "cifar10" or "vtab/dtd".
            root: its local folder.
            split: as CLIP_benchmark names it.
            download: whether the builder may fetch what is missing.
            language: of captions.

        Raises:
            DataError: the files are not there and may not be fetched, or the builder could not read them.
        """
        self.name = f"{builder}/{split}"
        self._builder, self._root = builder, root
        if not root.exists() and not download:
            raise DataError(
                f"data set {builder!r} is not at {root}; put it there (in CLIP_benchmark's webdataset layout or as its "
                "builder expects it), set data_root or the data set's path, or allow downloads with download=true"
            )
        self._dataset = _build(builder, root, split, download, language)
        self.class_names: list[str] | None = _texts(getattr(self._dataset, "classes", None))
        self.random_access = not isinstance(self._dataset, torch.utils.data.IterableDataset)
        self.num_samples = len(self._dataset)
        self._fingerprint: str | None = None

    def record(self, index: int) -> Record:
        """The sample at a position."""
        try:
            image, target = self._dataset[index]
        except (FileNotFoundError, PermissionError):
            raise
        except (OSError, SyntaxError, EOFError) as error:  # what Pillow raises for bytes it cannot decode
            return Record(
                index,
                ImageFault(f"{self.name}, index {index}", f"{type(error).__name__}: {error}"),
                None,
                None,
            )
        return self._record(index, image, target)

    def records(self) -> Iterator[Record]:
        """All samples in order.

        Raises:
            DataError: the source gave more or fewer samples than it announced.
        """
        if self.random_access:
            yield from map(self.record, range(self.num_samples))
            return
        count = 0
        for count, (image, target) in enumerate(self._dataset, 1):
            yield self._record(count - 1, image, target)
        if count != self.num_samples:
            raise DataError(
                f"{self.name} gave {count} samples, it announced {self.num_samples}; fetch it again"
            )

    def _record(self, index: int, image: Any, target: Any) -> Record:
        image = image.convert("RGB")
        if isinstance(target, (list, tuple)) and all(isinstance(entry, str) for entry in target):
            return Record(index, image, None, list(target))
        try:
            label: Any = target
            return Record(index, image, int(label), None)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self.name}, index {index}: the target {target!r} is neither a class index nor a list of captions; "
                "this data set's task is not evaluated here"
            ) from error

    def fingerprint(self) -> str:
        """SHA-256 over builder, split and every file's name, size and time below the root."""
        if self._fingerprint is None:
            files = sorted(path for path in self._root.rglob("*") if path.is_file())
            listed = [(str(p.relative_to(self._root)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
            text = json.dumps([self.name, self.num_samples, listed])
            self._fingerprint = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        return self._fingerprint


def _build(builder: str, root: Path, split: str, download: bool, language: str) -> Any:
    try:
        from clip_benchmark.datasets import builder as benchmark
    except ImportError as error:
        raise ConfigError(
            f"clip_benchmark cannot be imported ({error}); pip install clip-benchmark"
        ) from error
    task = "zeroshot_retrieval" if builder in RETRIEVAL_SETS else "zeroshot_classification"
    try:
        with _no_shell(builder, root, download):
            # An explicit identity: some builders call the transform without asking whether there is one.
            return benchmark.build_dataset(
                builder,
                root=str(root),
                transform=_same,
                split=split,
                download=download,
                language=language,
                task=task,
            )
    except (ConfigError, DataError):
        raise
    except ImportError as error:
        raise ConfigError(
            f"CLIP_benchmark's builder of {builder!r} needs a package that is not installed ({error}); install it, or "
            f"put the data set at {root} in CLIP_benchmark's webdataset layout"
        ) from error
    except (Exception, SystemExit) as error:  # foreign code: asserts, bare RuntimeErrors, sys.exit(1)
        raise DataError(
            f"CLIP_benchmark cannot build {builder!r}, split {split!r}, from {root}: {type(error).__name__}: {error}; "
            "check the name, the split and the files, or allow downloads with download=true"
        ) from error


@contextmanager
def _no_shell(builder: str, root: Path, download: bool) -> Iterator[None]:
    """Turns the builder's shell commands into an error, unless downloads are allowed."""
    from clip_benchmark.datasets import builder as benchmark

    def refuse(command: Any, *_: Any, **__: Any) -> int:
        raise DataError(
            f"data set {builder!r} at {root} is not complete: CLIP_benchmark wants to run {command!r}; do that by "
            "hand, or allow downloads with download=true"
        )

    original = benchmark.call
    if not download:
        benchmark.call = refuse
    try:
        yield
    finally:
        benchmark.call = original


def _same(image: Any) -> Any:
    return image


def _texts(value: Any) -> list[str] | None:
    return [str(entry) for entry in value] if value else None
