"""CLIP_benchmark's builders, kept from fetching what nobody allowed them to fetch.

They answer a missing file by shelling out to wget or gdown, or by fetching it themselves, whatever `download`
says; those calls are closed here unless downloads are allowed, and become an error that names them.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.package_prompts import BABEL

SPLIT_IGNORED = ("sun397", "caltech101", "eurosat")
"""Sets that torchvision does not split: every split is the whole set, so nothing can be trained on them."""

RETRIEVAL_SETS = (
    "mscoco_captions",
    "flickr30k",
    "flickr8k",
    "multilingual_mscoco_captions",
    "crossmodal3600",
    "xtd10",
    "xtd200",
    "flickr30k-200",
)


def build_benchmark(builder: str, root: Path, split: str, *, download: bool, language: str = "en") -> Any:
    """The data set that CLIP_benchmark builds, its images untransformed; arguments and errors as in BenchmarkSplit."""
    try:
        from clip_benchmark.datasets import builder as benchmark
    except ImportError as error:
        raise ConfigError(
            f"clip_benchmark cannot be imported ({error}); pip install clip-benchmark"
        ) from error
    task = "zeroshot_retrieval" if builder in RETRIEVAL_SETS else "zeroshot_classification"
    if builder.startswith("sugar_crepe/"):
        task = "image_caption_selection"  # for the others it looks for class names
    if builder != BABEL and builder not in RETRIEVAL_SETS:
        language = "en"  # class names and prompts in another language are looked up by us
    try:
        with _no_fetching(builder, root, download):
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
def _no_fetching(builder: str, root: Path, download: bool) -> Iterator[None]:
    """Turns the builder's shell commands and its own downloads into an error, unless downloads are allowed."""

    def refuse(asked: Any, *_: Any, **__: Any) -> Any:
        raise DataError(
            f"data set {builder!r} at {root} is not complete: CLIP_benchmark wants to run {asked!r}; do that by "
            "hand, or allow downloads with download=true"
        )

    import requests

    # Some modules are loaded by the builder as it goes; load them first, so that their `call` can be closed.
    for name in ("builder", "crossmodal3600", "flickr30k_200", "multilingual_mscoco", "xtd10", "xtd200"):
        with suppress(ImportError):  # older versions of the package have fewer
            import_module(f"clip_benchmark.datasets.{name}")
    places = [(requests, "get")] + [
        (module, "call")
        for name, module in sys.modules.items()
        if name.startswith("clip_benchmark.datasets.") and hasattr(module, "call")
    ]
    originals = [getattr(module, name) for module, name in places]
    try:
        if not download:
            for module, name in places:
                setattr(module, name, refuse)
        yield
    finally:
        for (module, name), original in zip(places, originals, strict=True):
            setattr(module, name, original)


def _same(image: Any) -> Any:
    return image
