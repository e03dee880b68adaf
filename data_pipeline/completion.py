"""What is complete: the files of a stage's folder, from the frozen list of its shards to the marker of each.

`manifest.json` is written once, when a stage first starts. A shard is complete when its `NAME.stats.json` is
there; that file is moved into the folder after every file that it describes.
"""

import json
import os
import shutil
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import flush_to_disk, read_json, sha256_of, write_json

if TYPE_CHECKING:
    from data_pipeline.stage import Shard, Stage

MANIFEST = "manifest.json"
STATS_SUFFIX = ".stats.json"
_TEMPORARY_FOLDER = ".tmp"


def finished_shards(folder: Path | str) -> list[str]:
    """Names of the complete shards of the stage that writes to `folder`, in the manifest's order.

    A later stage builds its own list of shards from this.

    Raises:
        DataError: the stage has not started yet.
    """
    folder = Path(folder)
    return [
        shard["name"]
        for shard in read_json(folder / MANIFEST)["shards"]
        if is_finished(folder, shard["name"])
    ]


def progress_of(folder: Path | str) -> tuple[int, int]:
    """How many shards of the stage that writes to `folder` are complete, of how many; (0, 0) before it starts."""
    if not (Path(folder) / MANIFEST).exists():
        return 0, 0
    return len(finished_shards(folder)), len(read_json(Path(folder) / MANIFEST)["shards"])


def is_finished(folder: Path | str, name: str) -> bool:
    """Whether the output shard is complete."""
    return os.path.exists(os.path.join(folder, name + STATS_SUFFIX))


def read_stats(folder: Path | str, name: str) -> dict[str, Any]:
    """A complete shard's record: stage, shard, inputs, counts, seconds, files (bytes and SHA-256 of each).

    Raises:
        DataError: it is missing, or not such a record.
    """
    path = Path(folder) / (name + STATS_SUFFIX)
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
    wanted = json.loads(
        json.dumps(
            {
                "stage": stage.name,
                "settings": stage.settings,
                "upstream": _manifest_digests(shards),
                "shards": [{"name": shard.name, "inputs": shard.inputs} for shard in shards],
            }
        )
    )
    if path.exists():
        differences = _differences(read_json(path), wanted)
        if differences:
            raise ConfigError(
                f"{stage.folder} was made by another run of stage {stage.name!r}: {'; '.join(differences)}. "
                "One folder holds the output of one run: set it back as it was, choose another output_dir, "
                f"or delete {stage.folder} and the folders of the stages after it to make them again."
            )
    else:
        names = [shard.name for shard in shards]
        assert len(set(names)) == len(names), f"stage {stage.name} has two shards of one name"
        write_json(path, wanted)
    return shards


def _manifest_digests(shards: "Sequence[Shard]") -> dict[str, str]:
    folders = {os.path.dirname(path) for shard in shards for path in shard.inputs}
    manifests = {folder: Path(folder) / MANIFEST for folder in sorted(folders)}
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


# Making one shard


def make_shard(stage: "Stage", context: Any, shard: "Shard", temporary: Path) -> None:
    """Runs the stage on one shard, in a worker: all files are then in `temporary`, on disk, the stats too."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    started = time.monotonic()
    counts = stage.run(context, shard, temporary)
    seconds = time.monotonic() - started
    files = sorted(path for path in temporary.iterdir())
    for path in files:
        assert path.name.startswith(shard.name + "."), f"stage {stage.name} wrote {path.name}"
        flush_to_disk(path)
    stats = {
        "stage": stage.name,
        "shard": shard.name,
        "inputs": list(shard.inputs),
        "counts": counts.to_json(),
        "seconds": round(seconds, 3),
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files},
    }
    write_json(temporary / (shard.name + STATS_SUFFIX), stats)


def publish_shard(stage: "Stage", shard: "Shard", temporary: Path) -> None:
    """Moves a finished shard's files into the stage's folder, the stats last. Done by the executor."""
    marker = shard.name + STATS_SUFFIX
    for name in sorted(path.name for path in temporary.iterdir() if path.name != marker):
        os.replace(temporary / name, stage.folder / name)
    flush_to_disk(stage.folder)
    os.replace(temporary / marker, stage.folder / marker)
    flush_to_disk(stage.folder)
    temporary.rmdir()


def temporary_folder(stage: "Stage", shard: "Shard") -> Path:
    """Where this machine builds the shard; left over only when the run is killed, and then removed by the next."""
    return stage.folder / _TEMPORARY_FOLDER / socket.gethostname() / shard.name


def remove_temporary(stage: "Stage") -> None:
    """Removes what this machine left over, and the folder for it when no other machine has anything there."""
    folder = stage.folder / _TEMPORARY_FOLDER
    shutil.rmtree(folder / socket.gethostname(), ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()
