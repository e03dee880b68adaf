"""What is complete: the files of a stage's folder, from the frozen list of its shards to the marker of each.

`manifest.json` is written once, when a stage first starts. A shard is complete when its `NAME.stats.json` is
there; that file is moved into the folder after every file that it describes. Whichever executor makes a shard, and
wherever, it goes through `make_shard` and `publish_shard`, so one may go on where another stopped. A folder in an
object store is worked on in its local place (`crawl2clip.storage`): markers are brought here when they are looked
at, and a shard's files are put into the store in the same order.
"""

import json
import os
import shutil
import socket
import time
from bisect import insort
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import flush_to_disk, read_json, sha256_of, write_json
from data_pipeline.frozen_list import FrozenList, Shard, is_text, manifest_pieces, read_entries, write_pieces
from data_pipeline.name_set import NameSet

if TYPE_CHECKING:
    from data_pipeline.stage import Stage

MANIFEST = "manifest.json"
STATS_SUFFIX = ".stats.json"
FAILED_FOLDER = ".failed"
"""`NAME.json` for each shard whose last try failed, with its error, until it is made."""
TEMPORARY_FOLDER = ".tmp"
"""A folder for every worker machine or task, and in it one for every shard that is being made."""


def stream_finished(folder: Path | str) -> Iterator[str]:
    """Names of the complete shards of the stage that writes to `folder`, in the manifest's order.

    A later stage builds its own list of shards from this.

    Raises:
        DataError: the stage has not started yet.
    """
    finished = finished_names(folder)
    return (entry["name"] for entry in listed_shards(folder, {}) if entry["name"] in finished)


def finished_shards(folder: Path | str) -> list[str]:
    """The same as a list, for those who need them all at once."""
    return list(stream_finished(folder))


def finished_rows(folder: Path | str) -> Iterator[tuple[str, int]]:
    """(name, rows that it gave) of each complete shard, as `stream_finished`."""
    return ((name, read_stats(folder, name)["counts"]["rows_out"]) for name in stream_finished(folder))


def finished_names(folder: Path | str) -> NameSet:
    """Names of the complete shards in a folder, by one look at it; their markers are then on this machine."""
    names = storage.names_in(folder, STATS_SUFFIX)
    if storage.address_of(folder):
        names = set(names)
        here = {path.name for path in Path(folder).glob("*" + STATS_SUFFIX)}
        storage.refresh(folder, here | {name + STATS_SUFFIX for name in names})
    return NameSet(names)


def listed_shards(folder: Path | str, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A stage's frozen list of shards, one at a time: name and inputs of each.

    Args:
        about: gets stage, settings, upstream, and the number of shards as `shards`; complete when there are no more.

    Raises:
        DataError: the stage has not started yet, or the file is damaged.
    """
    path = Path(folder) / MANIFEST
    storage.fetch_newest(path)
    return read_entries(path, about)


def read_settings(folder: Path | str) -> dict[str, Any]:
    """The settings that a stage's output was made with; none where its manifest has none.

    Raises:
        DataError: as `listed_shards`.
    """
    about: dict[str, Any] = {}
    for _ in listed_shards(folder, about):
        if "settings" in about:  # a stage writes them before the shards
            break
    return about.get("settings", {})


def progress_of(folder: Path | str) -> tuple[int, int]:
    """How many shards of the stage that writes to `folder` are complete, of how many; (0, 0) before it starts."""
    if not storage.exists(Path(folder) / MANIFEST):
        return 0, 0
    finished, about = finished_names(folder), {}
    return sum(entry["name"] in finished for entry in listed_shards(folder, about)), about["shards"]


def is_finished(folder: Path | str, name: str) -> bool:
    """Whether the output shard is complete."""
    return storage.exists(os.path.join(folder, name + STATS_SUFFIX))


def read_stats(folder: Path | str, name: str) -> dict[str, Any]:
    """A complete shard's record: stage, shard, inputs, counts, seconds, files (bytes and SHA-256 of each).

    Raises:
        DataError: it is missing, or not such a record.
    """
    path = os.path.join(folder, name + STATS_SUFFIX)
    if not os.path.exists(path):
        storage.fetch(path)
    stats = read_json(path)
    if not _is_record(stats):
        raise DataError(
            f"{path} is not the record of a shard: it lacks the seconds, or whole numbers for rows_in, rows_out, "
            "dropped and extra; delete it and run the stage again, which makes this shard anew"
        )
    return stats


def _is_record(stats: Any) -> bool:
    counts = stats.get("counts") if isinstance(stats, dict) else None
    if not isinstance(counts, dict) or not isinstance(stats.get("seconds"), (int, float)):
        return False
    numbers = [counts.get("rows_in"), counts.get("rows_out")]
    for group in (counts.get("dropped"), counts.get("extra")):
        if not isinstance(group, dict):
            return False
        numbers += group.values()
    return all(isinstance(number, int) for number in numbers)


def freeze_manifest(stage: "Stage") -> FrozenList:
    """Writes the stage's manifest the first time; afterwards checks that nothing has changed.

    The manifest holds the shards with their inputs, the settings, and the digest of the manifest of
    every folder that inputs come from, so a change in an earlier stage is noticed too.

    Returns:
        The stage's shards, as they are listed there.

    Raises:
        ConfigError: the folder was made with other settings or inputs; the message names them.
        DataError: the stage has no inputs, or the manifest is damaged.
    """
    path = stage.folder / MANIFEST
    storage.fetch_newest(path)
    about = {
        "stage": stage.name,
        "settings": json.loads(json.dumps(storage.public(stage.settings))),  # as they will be read again
    }
    listing = _Listing(stage)
    pieces = manifest_pieces(about, listing, listing.upstream)
    if not path.exists():
        write_pieces(path, pieces)
        storage.publish(path)
    elif not is_text(path, pieces):
        listing = _Listing(stage)  # the other was gone through up to the first difference
        differences = _differences(path, about["settings"], listing)
        if differences:
            raise ConfigError(
                f"{stage.folder} was made by another run of stage {stage.name!r}: {'; '.join(differences)}. "
                "One folder holds the output of one run: set it back as it was, choose another output_dir, "
                f"or delete {stage.folder} and the folders of the stages after it to make them again."
            )
    return FrozenList(path, listing.num_shards, listing.local_folders())


class _Listing:
    """A stage's shards, and what is learnt from them when they are gone through.

    Raises:
        DataError: there are none.
    """

    def __init__(self, stage: "Stage") -> None:
        self.stage = stage
        self.num_shards = 0
        self.folders: set[str] = set()  # of the inputs

    def __iter__(self) -> Iterator[Shard]:
        self.num_shards, names = 0, NameSet()
        for shard in self.stage.shards():
            self.num_shards += 1
            names.add(shard.name)
            self.folders.update(map(os.path.dirname, shard.inputs))
            yield shard
        assert not names.has_repeats(), f"stage {self.stage.name} has two shards of one name"
        if not self.num_shards:
            raise DataError(
                f"stage {self.stage.name!r} has nothing to do: no input shards were found. "
                "Look at the funnel of the stages before it: they may have dropped every row."
            )

    def upstream(self) -> dict[str, str]:
        """Folder -> the digest of its manifest, where it has one."""
        manifests = {folder: Path(folder) / MANIFEST for folder in sorted(self.folders)}
        for path in manifests.values():
            storage.fetch_newest(path)
        return {folder: sha256_of(path) for folder, path in manifests.items() if path.exists()}

    def local_folders(self) -> dict[str, str]:
        """See `FrozenList`."""
        local = {storage.public(folder): folder for folder in self.folders}
        assert len(local) == len(self.folders), f"stage {self.stage.name} has two names for one folder"
        return {address: folder for address, folder in local.items() if address != folder}


def _differences(path: Path, settings: dict[str, Any], listing: _Listing) -> list[str]:
    """Sentences that say how a manifest differs from what would be written; none when it does not."""
    found: dict[str, Any] = {}
    old_names = NameSet(entry["name"] for entry in read_entries(path, found))
    old_entries = NameSet(
        _identity(entry["name"], entry.get("inputs", [])) for entry in read_entries(path, {})
    )
    new_names = NameSet(shard.name for shard in listing)
    differences = []
    old = found.get("settings", {})
    for key in sorted(old.keys() | settings.keys()):
        if old.get(key) != settings.get(key):
            differences.append(
                f"setting {key} was {_short(old.get(key))} and is now {_short(settings.get(key))}"
            )
    for word, names in (
        (
            "no longer asked for",
            (entry["name"] for entry in read_entries(path, {}) if entry["name"] not in new_names),
        ),
        ("new", (shard.name for shard in listing if shard.name not in old_names)),
        (
            "made from other inputs",
            (
                shard.name
                for shard in listing
                if shard.name in old_names
                and _identity(shard.name, storage.public(shard.inputs)) not in old_entries
            ),
        ),
    ):
        number, first = _count_and_first(names)
        if number:
            listed = ", ".join(first) + (", ..." if number > len(first) else "")
            differences.append(f"{number} of its shards are {word} ({listed})")
    before, now = found.get("upstream", {}), storage.public(listing.upstream())
    if not differences and before != now:
        changed = sorted(
            folder for folder in before.keys() | now.keys() if before.get(folder) != now.get(folder)
        )
        differences.append(f"its input {', '.join(changed)} has been made again since")
    return differences


def _identity(name: str, inputs: Sequence[str]) -> str:
    return json.dumps([name, *inputs])


def _count_and_first(names: Iterable[str]) -> tuple[int, list[str]]:
    """How many there are, and the first three in the order of the alphabet."""
    number, first = 0, []
    for name in names:
        number += 1
        insort(first, name)
        del first[3:]
    return number, first


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


# What failed


def record_failure(folder: Path, shard: Shard, error: str) -> None:
    """Notes why a shard could not be made, for `python -m data_pipeline status` and for a run elsewhere."""
    path = folder / FAILED_FOLDER / f"{shard.name}.json"
    write_json(path, {"shard": shard.name, "error": error, "time": round(time.time())})
    storage.publish(path)


def forget_failure(folder: Path, shard: Shard) -> None:
    """Removes the note once the shard is made."""
    path = folder / FAILED_FOLDER / f"{shard.name}.json"
    if path.exists():
        storage.remove(path)


def read_failures(folder: Path) -> dict[str, str]:
    """shard -> why its last try failed, of those that are not made."""
    names = sorted(storage.names_in(folder / FAILED_FOLDER, ".json"))
    storage.refresh(folder / FAILED_FOLDER, [f"{name}.json" for name in names])
    found = {}
    for name in names:
        try:
            found[name] = str(read_json(folder / FAILED_FOLDER / f"{name}.json")["error"])
        except (DataError, KeyError, TypeError):  # made in this moment, or damaged: the next try tells
            continue
    return found


# Making one shard


def make_shard(stage: "Stage", context: Any, shard: Shard, temporary: Path) -> None:
    """Runs the stage on one shard, in a worker: all files are then in `temporary`, on disk, the stats too."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    started = time.monotonic()
    fetched = [path for path in stage.inputs_to_fetch(shard) if storage.fetch(path)]
    try:
        counts = stage.run(context, shard, temporary)
    finally:
        if not stage.shares_inputs:
            for path in fetched:
                storage.drop(path)
    seconds = time.monotonic() - started
    files = sorted(path for path in temporary.iterdir())
    for path in files:
        assert path.name.startswith(shard.name + "."), f"stage {stage.name} wrote {path.name}"
        flush_to_disk(path)
    stats = {
        "stage": stage.name,
        "shard": shard.name,
        "inputs": storage.public(list(shard.inputs)),
        "counts": counts.to_json(),
        "seconds": round(seconds, 3),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    write_json(temporary / (shard.name + STATS_SUFFIX), stats)


def publish_shard(stage: "Stage", shard: Shard, temporary: Path) -> None:
    """Moves a finished shard's files into the stage's folder, the stats last. Done by the executor.

    When another worker was first, as after a node that was thought to be lost, its output stays and this is removed.
    """
    marker = shard.name + STATS_SUFFIX
    if storage.address_of(stage.folder):
        _put_in_store(stage.folder, temporary, marker)
    elif not (stage.folder / marker).exists():
        for name in sorted(path.name for path in temporary.iterdir() if path.name != marker):
            os.replace(temporary / name, stage.folder / name)
        flush_to_disk(stage.folder)
        os.replace(temporary / marker, stage.folder / marker)
        flush_to_disk(stage.folder)
    shutil.rmtree(temporary)
    forget_failure(stage.folder, shard)


def _put_in_store(folder: Path, temporary: Path, marker: str) -> None:
    """The same where nothing can be renamed; here only the marker is kept, so that scratch space stays small."""
    if storage.exists(folder / marker):
        return
    for name in [*sorted(path.name for path in temporary.iterdir() if path.name != marker), marker]:
        os.replace(temporary / name, folder / name)
        try:
            storage.publish(folder / name)
        except BaseException:
            (folder / name).unlink()
            raise
        if name != marker:
            (folder / name).unlink()


def temporary_folder(stage: "Stage", shard: Shard) -> Path:
    """Where this machine builds the shard; left over only when the run is killed, and then removed by the next."""
    return stage.folder / TEMPORARY_FOLDER / _worker() / shard.name


def remove_temporary(stage: "Stage", *, everywhere: bool = False) -> None:
    """Removes what this machine, or a task of a cluster that had the same number, left over; or everybody's.

    Args:
        everywhere: nobody is at work any more, on no machine.
    """
    folder = stage.folder / TEMPORARY_FOLDER
    shutil.rmtree(folder if everywhere else folder / _worker(), ignore_errors=True)
    try:
        folder.rmdir()
    except OSError:
        pass


def _worker() -> str:
    """Whose temporary files they are: two tasks of a cluster on one machine do not touch each other's."""
    task = [os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")]
    return "-".join([socket.gethostname(), *filter(None, task)])
