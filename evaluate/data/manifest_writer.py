"""Notes down what a data set's folder holds, for `manifest` to compare with from then on."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.benchmark_split import BenchmarkSplit
from evaluate.data.image_folder import ImageFolderSplit, has_class_folders
from evaluate.data.manifest import (
    DATASET_MANIFEST,
    DatasetManifest,
    SplitEntry,
    read_dataset_manifest,
    save_dataset_manifest,
)
from evaluate.data.prompts import CLASS_NAMES_FILE, read_class_names
from evaluate.data.tar_folder import dataset_type, is_tar_folder
from evaluate.data.tar_split import TarSplit


def write_dataset_manifest(
    folder: Path,
    *,
    builder: str | None = None,
    splits: Sequence[str] = (),
    source: Mapping[str, str] | None = None,
) -> Path:
    """Writes dataset_manifest.json: samples, sizes and SHA-256 of each split, and the number of classes.

    Reads every file once. Splits are the sub-folders in webdataset layout or with class folders.

    Args:
        folder: the data set's folder.
        builder: CLIP_benchmark's name, for a folder in another form.
        splits: those of the builder to note down.
        source: where it was fetched from; None keeps what an older manifest says.

    Returns:
        The file.

    Raises:
        DataError: no split in the folder, or one that cannot be read whole.
    """
    before = read_dataset_manifest(folder)
    if before is not None:
        (folder / DATASET_MANIFEST).unlink()  # what is there now is compared with nothing
    try:
        found, classes = _built(builder, folder, splits) if builder else _splits(folder)
    except BaseException:
        if before is not None:
            save_dataset_manifest(folder, before)
        raise
    kept = before.source if before is not None else {}
    entries = {
        name: SplitEntry(split.num_samples, split.content_sha256(), split.files)
        for name, split in found.items()
    }
    return save_dataset_manifest(
        folder, DatasetManifest(classes, entries, dict(kept if source is None else source))
    )


def _built(builder: str, folder: Path, names: Sequence[str]) -> tuple[dict[str, BenchmarkSplit], int | None]:
    if not names:
        raise ConfigError(
            f"{folder}: which splits of {builder!r} are to be noted down? Give their names, such as test"
        )
    splits = {name: BenchmarkSplit(builder, folder, name, download=False) for name in names}
    return splits, max((len(split.class_names or ()) for split in splits.values()), default=0) or None


def _splits(folder: Path) -> tuple[dict[str, TarSplit | ImageFolderSplit], int | None]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    kind = dataset_type(folder)
    splits: dict[str, TarSplit | ImageFolderSplit] = {}
    for name in names:
        if is_tar_folder(folder, name):
            splits[name] = TarSplit(
                folder,
                name,
                with_labels=kind == "classification",
                with_captions=kind == "retrieval",
                with_targets=kind == "multilabel",
            )
        elif has_class_folders(folder / name):
            splits[name] = ImageFolderSplit(folder, name)
    if not splits:
        raise DataError(
            f"{folder} has no split (sub-folders: {', '.join(names) or 'none'}); a split has nshards.txt and tars, or "
            "a folder of images for each class"
        )
    if (folder / CLASS_NAMES_FILE).is_file():
        return splits, len(read_class_names(folder / CLASS_NAMES_FILE))
    return splits, _num_classes(list(splits.values()))


def _num_classes(splits: list[TarSplit | ImageFolderSplit]) -> int | None:
    """As the splits themselves tell; None for captions."""
    targets = [split.num_targets for split in splits if split.num_targets is not None]
    folders = [len(split.class_folders) for split in splits if isinstance(split, ImageFolderSplit)]
    labels = [1 + max(split.labels) for split in splits if split.labels]
    return max([*targets, *folders, *labels], default=None)
