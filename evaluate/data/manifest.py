"""What a data set should hold: samples, classes, sizes and a checksum for each split, kept beside it.

The published layouts have no counts and no checksums, so a set that lost samples scores wrong in silence.
`write_dataset_manifest` (manifest_writer) notes them down once; from then on opening compares the counts and
sizes, and hashing the data for a result compares the checksum. A folder without the file is read as it is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json

DATASET_MANIFEST = "dataset_manifest.json"
FORMAT = 1
AGAIN = "fetch the data set again, or write a new manifest if the change is meant"


@dataclass(frozen=True)
class SplitEntry:
    """One split."""

    samples: int
    sha256: str  # over file names and contents
    files: dict[str, int] = field(default_factory=dict)  # shard -> bytes; empty where there are no shards


@dataclass(frozen=True)
class DatasetManifest:
    """The file's content."""

    classes: int | None  # None for sets without labels
    splits: dict[str, SplitEntry]
    source: dict[str, str] = field(
        default_factory=dict
    )  # where it was fetched from: hub and revision, or url


def read_dataset_manifest(folder: Path) -> DatasetManifest | None:
    """The manifest of a data set's folder, None without one.

    Raises:
        DataError: the file is not such a manifest.
    """
    path = folder / DATASET_MANIFEST
    if not path.is_file():
        return None
    value = read_json(path)
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r}, known is {FORMAT}")
        splits = {name: SplitEntry(**entry) for name, entry in value["splits"].items()}
        classes = value["classes"]
        if not all(_is_count(n) for entry in splits.values() for n in (entry.samples, *entry.files.values())):
            raise ValueError("a count is not a number")
        if classes is not None and not _is_count(classes):
            raise ValueError(f"classes is {classes!r}")
        return DatasetManifest(classes, splits, dict(value.get("source", {})))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is not a manifest of an evaluation data set ({error}); write it again"
        ) from error


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def save_dataset_manifest(folder: Path, manifest: DatasetManifest) -> Path:
    """Writes the file, whole or not at all."""
    path = folder / DATASET_MANIFEST
    write_json(path, {"format": FORMAT, **asdict(manifest)})
    return path


def check_files(folder: Path, files: Mapping[str, int]) -> None:
    """Compares a split's shards with its manifest, before any of them is read.

    Args:
        folder: the split's folder.
        files: shard -> bytes, as found.

    Raises:
        DataError: a shard is missing, too many, or of another size.
    """
    entry = _entry(folder)
    if entry is None or files == entry.files:
        return
    missing = sorted(entry.files.keys() - files.keys())
    extra = sorted(files.keys() - entry.files.keys())
    other = sorted(name for name in files.keys() & entry.files.keys() if files[name] != entry.files[name])
    what = [
        f"missing: {', '.join(missing[:5])}" if missing else "",
        f"not listed: {', '.join(extra[:5])}" if extra else "",
        f"{other[0]} has {files[other[0]]} bytes and not {entry.files[other[0]]}" if other else "",
    ]
    raise DataError(
        f"{folder} is not what {DATASET_MANIFEST} says ({'; '.join(filter(None, what))}); {AGAIN}"
    )


def check_samples(folder: Path, samples: int) -> None:
    """Compares a split's number of samples with its manifest.

    Raises:
        DataError: they differ.
    """
    entry = _entry(folder)
    if entry is not None and samples != entry.samples:
        raise DataError(f"{folder} holds {samples} samples, {DATASET_MANIFEST} says {entry.samples}; {AGAIN}")


def check_classes(folder: Path, classes: int) -> None:
    """Compares the number of class names in use with the manifest of the data set's folder.

    Raises:
        DataError: they differ.
    """
    manifest = read_dataset_manifest(folder)
    if manifest is not None and manifest.classes not in (None, classes):
        raise DataError(
            f"{folder}: {classes} class names are in use, {DATASET_MANIFEST} says {manifest.classes} classes; give one "
            "name for each class, in label order"
        )


def check_content(folder: Path, sha256: str) -> None:
    """Compares a split's checksum with its manifest.

    Raises:
        DataError: they differ.
    """
    entry = _entry(folder)
    if entry is not None and sha256 != entry.sha256:
        raise DataError(
            f"{folder} has SHA-256 {sha256[:16]}..., {DATASET_MANIFEST} says {entry.sha256[:16]}...: its content was "
            f"changed or damaged; {AGAIN}"
        )


def has_entry(folder: Path) -> bool:
    """Whether a manifest says something of the split in a folder."""
    return _entry(folder) is not None


def _entry(folder: Path) -> SplitEntry | None:
    """What the manifest says of the split in a folder; None where it says nothing."""
    manifest = read_dataset_manifest(folder.parent)
    return manifest.splits.get(folder.name) if manifest else None
