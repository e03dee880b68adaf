"""The folder of a webdataset split: how many tars there are, and that all of them are there.

    <folder>/<split>/0.tar 1.tar ...   the samples
    <folder>/<split>/nshards.txt       how many tars there are; or our own manifest.json
    <folder>/dataset_type.txt          "retrieval" for captions, "multilabel" for targets, else classification

The count of shards is required: a folder that lost a tar looks complete otherwise and scores wrong in silence.
"""

from pathlib import Path

from crawl2clip.errors import DataError
from crawl2clip.shards import MANIFEST_NAME, ShardEntry, read_manifest

COUNT_FILE = "nshards.txt"
TYPE_FILE = "dataset_type.txt"
TYPES = ("classification", "retrieval", "multilabel")


def is_tar_folder(folder: Path, split: str) -> bool:
    """Whether a folder has this split in the layout read here."""
    return any((folder / split / name).is_file() for name in (COUNT_FILE, MANIFEST_NAME))


def lacks_shards(folder: Path, split: str) -> bool:
    """Whether this split is not there, or a tar of it is not: a download that was interrupted."""
    if (folder / split / MANIFEST_NAME).is_file():
        return False  # written last, by hand or by us
    path = folder / split / COUNT_FILE
    return not path.is_file() or not all(
        (folder / split / f"{number}.tar").is_file() for number in range(shard_count(path))
    )


def dataset_type(folder: Path) -> str:
    """What dataset_type.txt says, "classification" without one.

    Raises:
        DataError: a type that is not known.
    """
    path = folder / TYPE_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else TYPES[0]
    found = text.strip().lower()
    if found not in TYPES:
        raise DataError(f"{path} says {found[:40]!r}; the types evaluated here are {', '.join(TYPES)}")
    return found


def shards_of(folder: Path) -> tuple[list[Path], list[ShardEntry]]:
    """The shard files of a split in order, and their manifest entries where there is a manifest.

    Raises:
        DataError: no count of shards, or other shards than counted.
    """
    if (folder / MANIFEST_NAME).is_file():
        entries = read_manifest(folder)
        paths = [folder / entry.name for entry in entries]
        source = MANIFEST_NAME
    elif (folder / COUNT_FILE).is_file():
        entries = []
        paths = [folder / f"{number}.tar" for number in range(shard_count(folder / COUNT_FILE))]
        source = COUNT_FILE
    else:
        raise DataError(
            f"{folder} has neither {COUNT_FILE} nor {MANIFEST_NAME}, so a missing shard could not be noticed; write "
            f"the number of tars into {folder / COUNT_FILE} (tars are 0.tar, 1.tar, ...)"
        )
    found = sorted(path.name for path in folder.glob("*.tar"))
    missing = [path.name for path in paths if not path.is_file()]
    extra = sorted(set(found) - {path.name for path in paths})
    if missing or extra or not paths:
        what = (
            f"missing: {', '.join(missing[:5])}"
            if missing
            else f"not counted: {', '.join(extra[:5]) or 'none'}"
        )
        raise DataError(
            f"{folder / source} says {len(paths)} shards, {len(found)} found ({what}); fetch the data set again, or "
            f"correct {source} if it is wrong"
        )
    return paths, entries


def shard_count(path: Path) -> int:
    """The number in an nshards.txt.

    Raises:
        DataError: it holds something else.
    """
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdigit():
        raise DataError(f"{path} says {text[:40]!r}; it must hold the number of tars and nothing else")
    return int(text)
