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
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crawl2clip import storage
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import flush_to_disk, read_json, sha256_of, write_json
from data_pipeline.frozen_list import is_text, manifest_pieces, write_pieces

if TYPE_CHECKING:
    from data_pipeline.stage import Shard, Stage

MANIFEST = "manifest.json"
STATS_SUFFIX = ".stats.json"
FAILED_FOLDER = ".failed"
"""`NAME.json` for each shard whose last try failed, with its error, until it is made."""
TEMPORARY_FOLDER = ".tmp"
"""A folder for every worker machine or task, and in it one for every shard that is being made."""


def finished_shards(folder: Path | str) -> list[str]:
    """Names of the complete shards of the stage that writes to `folder`, in the manifest's order.

    A later stage builds its own list of shards from this.

    Raises:
        DataError: the stage has not started yet.
    """
    finished = finished_names(folder)
    return [shard["name"] for shard in read_manifest(folder)["shards"] if shard["name"] in finished]


def finished_names(folder: Path | str) -> set[str]:
    """Names of the complete shards in a folder, by one look at it; their markers are then on this machine."""
    names = storage.names_in(folder, STATS_SUFFIX)
    if storage.address_of(folder):
        here = {path.name for path in Path(folder).glob("*" + STATS_SUFFIX)}
        storage.refresh(folder, here | {name + STATS_SUFFIX for name in names})
    return names


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """A stage's frozen list of shards: stage, settings, upstream, shards.

    Raises:
        DataError: the stage has not started yet, or the file is damaged.
    """
    path = Path(folder) / MANIFEST
    storage.fetch_newest(path)
    return read_json(path)


def progress_of(folder: Path | str) -> tuple[int, int]:
    """How many shards of the stage that writes to `folder` are complete, of how many; (0, 0) before it starts."""
    if not storage.exists(Path(folder) / MANIFEST):
        return 0, 0
    return len(finished_shards(folder)), len(read_manifest(folder)["shards"])


def is_finished(folder: Path | str, name: str) -> bool:
    """Whether the output shard is complete."""
    return storage.exists(os.path.join(folder, name + STATS_SUFFIX))


def read_stats(folder: Path | str, name: str) -> dict[str, Any]:
    """A complete shard's record: stage, shard, inputs, counts, seconds, files (bytes and SHA-256 of each).

    Raises:
        DataError: it is missing, or not such a record.
    """
    path = Path(folder) / (name + STATS_SUFFIX)
    if not path.exists():
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


def freeze_manifest(stage: "Stage") -> "list[Shard]":
    """Writes the stage's manifest the first time; afterwards checks that nothing has changed.

    The manifest holds the shards with their inputs, the settings, and the digest of the manifest of
    every folder that inputs come from, so a change in an earlier stage is noticed too.

    Returns:
        The stage's shards.

    Raises:
        ConfigError: the folder was made with other settings or inputs; the message names them.
        DataError: the stage has no inputs.
    """
    shards = stage.shards()
    if not shards:
        raise DataError(
            f"stage {stage.name!r} has nothing to do: no input shards were found. "
            "Look at the funnel of the stages before it: they may have dropped every row."
        )
    path = stage.folder / MANIFEST
    storage.fetch_newest(path)
    about = {
        "stage": stage.name,
        "settings": json.loads(json.dumps(storage.public(stage.settings))),  # as they will be read again
        "upstream": storage.public(_manifest_digests(shards)),
    }
    if path.exists():
        # Both lists are in memory only to say how they differ.
        if not is_text(path, manifest_pieces(about, map(_listed, shards))):
            differences = _differences(
                read_json(path), {**about, "shards": [_listed(shard) for shard in shards]}
            )
        else:
            differences = []
        if differences:
            raise ConfigError(
                f"{stage.folder} was made by another run of stage {stage.name!r}: {'; '.join(differences)}. "
                "One folder holds the output of one run: set it back as it was, choose another output_dir, "
                f"or delete {stage.folder} and the folders of the stages after it to make them again."
            )
    else:
        names = [shard.name for shard in shards]
        assert len(set(names)) == len(names), f"stage {stage.name} has two shards of one name"
        write_pieces(path, manifest_pieces(about, map(_listed, shards)))
        storage.publish(path)
    return shards


def _listed(shard: "Shard") -> dict[str, Any]:
    return {"name": shard.name, "inputs": storage.public(shard.inputs)}


def _manifest_digests(shards: "Sequence[Shard]") -> dict[str, str]:
    folders = {os.path.dirname(path) for shard in shards for path in shard.inputs}
    manifests = {folder: Path(folder) / MANIFEST for folder in sorted(folders)}
    for path in manifests.values():
        storage.fetch_newest(path)
    return {folder: sha256_of(path) for folder, path in manifests.items() if path.exists()}


def _differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Sentences that say how two manifests differ; none when they agree."""
    differences = []
    old, new = found["settings"], wanted["settings"]
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            differences.append(f"setting {key} was {_short(old.get(key))} and is now {_short(new.get(key))}")
    old_shards = {shard["name"]: shard["inputs"] for shard in found["shards"]}
    new_shards = {shard["name"]: shard["inputs"] for shard in wanted["shards"]}
    for word, names in (
        ("no longer asked for", old_shards.keys() - new_shards.keys()),
        ("new", new_shards.keys() - old_shards.keys()),
        (
            "made from other inputs",
            {n for n in old_shards.keys() & new_shards.keys() if old_shards[n] != new_shards[n]},
        ),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            differences.append(f"{len(names)} of its shards are {word} ({listed})")
    if not differences and found["upstream"] != wanted["upstream"]:
        changed = sorted(
            folder
            for folder in found["upstream"].keys() | wanted["upstream"].keys()
            if found["upstream"].get(folder) != wanted["upstream"].get(folder)
        )
        differences.append(f"its input {', '.join(changed)} has been made again since")
    return differences


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else text[:117] + "..."


# What failed


def record_failure(folder: Path, shard: "Shard", error: str) -> None:
    """Notes why a shard could not be made, for `python -m data_pipeline status` and for a run elsewhere."""
    path = folder / FAILED_FOLDER / f"{shard.name}.json"
    write_json(path, {"shard": shard.name, "error": error, "time": round(time.time())})
    storage.publish(path)


def forget_failure(folder: Path, shard: "Shard") -> None:
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


def make_shard(stage: "Stage", context: Any, shard: "Shard", temporary: Path) -> None:
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


def publish_shard(stage: "Stage", shard: "Shard", temporary: Path) -> None:
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


def temporary_folder(stage: "Stage", shard: "Shard") -> Path:
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
