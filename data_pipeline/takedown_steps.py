"""The later steps of a takedown: write what holds the rows anew, put it in place. See `data_pipeline.takedown`."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from crawl2clip.files import atomic_path, flush_to_disk, read_json, sha256_of, write_json
from crawl2clip.schema import uids_to_array
from crawl2clip.shards import MANIFEST_NAME, ShardEntry, read_manifest
from data_pipeline.hidden_pairs import hide_pairs
from data_pipeline.stage import MANIFEST, STATS_SUFFIX, Counts, Shard, Stage, finished_shards
from data_pipeline.takedown_documents import is_documents, rewrite_documents
from data_pipeline.takedown_files import (
    describe_tar,
    kept_rows,
    rewrite_arrow,
    rewrite_npy,
    rewrite_parquet,
    rewrite_tar,
)
from data_pipeline.takedown_find import FILE_MARK, read_found

DIFF_TABLE, DIFF_UIDS, SUMMARY = "removed.parquet", "removed.uids.npy", "takedown.json"
MADE_OF_IT = ("reshard", "report", "index")
"""Folders of a run that a takedown removes: offsets into the old tars, a page with the old pictures, the addresses and
captions that the explorer shows."""


class Unit(NamedTuple):
    """Files that belong together: those of one shard of a stage, or one tar of training shards."""

    name: str  # of the takedown's own shard
    folder: str
    stem: str
    files: tuple[str, ...]


def units_of_stage(root: Path, folder: Path) -> Iterator[Unit]:
    """The complete shards of a stage's folder."""
    prefix = "-".join(folder.relative_to(root).parts)
    for name in finished_shards(folder):
        listed = read_json(folder / f"{name}{STATS_SUFFIX}").get("files", {})
        files = sorted(listed) or sorted(
            path.name for path in folder.glob(f"{name}.*") if not path.name.endswith(STATS_SUFFIX)
        )
        yield Unit(f"{prefix}-{name}", str(folder), name, tuple(files))


def units_of_shards(folder: Path) -> Iterator[Unit]:
    """The tars of a folder of training shards."""
    for entry in read_manifest(folder):
        stem = Path(entry.name).stem
        yield Unit(f"shards-{stem}", str(folder), stem, (entry.name,))


@dataclass
class RewriteStage(Stage):
    """Writes the files of one unit anew, if a row of theirs goes; an unaffected unit has no file here."""

    name: str
    folder: Path
    settings: dict[str, Any]
    units: list[Unit]
    found: Path  # where FindStage wrote

    def shards(self) -> Iterator[Shard]:
        """One for each unit."""
        for unit in self.units:
            yield Shard(unit.name, tuple(f"{FILE_MARK}{unit.folder}/{name}" for name in unit.files))

    def setup(self) -> set[str]:
        """The uids and keys that go."""
        table = read_found(self.found)
        return {value for column in ("uid", "key") for value in table[column].drop_nulls()}

    def run(self, context: set[str], shard: Shard, temporary: Path) -> Counts:
        """Writes those files that change."""
        removed, counts = context, Counts()
        paths = [Path(path.removeprefix(FILE_MARK)) for path in shard.inputs]
        stays = next((kept_rows(path, removed) for path in paths if path.suffix == ".parquet"), None)
        for path in paths:
            target = temporary / f"{shard.name}.{path.name}"
            if path.suffix == ".parquet" and is_documents(pq.read_schema(path).names):
                left = rewrite_documents(path, target, removed)
            elif path.suffix == ".parquet":
                own = kept_rows(path, removed)
                left = 0 if own is None else rewrite_parquet(path, target, own)
            elif path.suffix == ".tar":
                left = rewrite_tar(path, target, removed)
            elif path.suffix == ".arrow":
                left = rewrite_arrow(path, target, removed)
            elif path.suffix == ".npy":
                left = rewrite_npy(path, target, stays, removed)
            else:
                continue
            counts.extra[f"rows_of{path.suffix}"] += left
            counts.extra["files"] += bool(left)
        return counts


@dataclass
class PutInPlaceStage(Stage):
    """Replaces the files, mends the records of what they are, and writes the diff.

    Each replacement is a rename, and doing all of them again changes nothing: a takedown that was killed here goes on.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    root: Path
    units: list[Unit]
    found: Path
    rewritten: Path
    takedown: str  # its name
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One."""
        return [Shard("diff", tuple(f"{self.rewritten}/{unit.name}{STATS_SUFFIX}" for unit in self.units))]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Puts everything in place."""
        before, changed = self._before(), []
        for unit in self.units:
            for name in unit.files:
                new, old = self.rewritten / f"{unit.name}.{name}", Path(unit.folder) / name
                if new.exists():
                    _replace(new, old)
                    size, digest = old.stat().st_size, sha256_of(old)
                    self._record(unit, name, size, digest)
                    path = str(old.relative_to(self.root))
                    changed.append(
                        {"file": path, "sha256_before": before[path], "sha256": digest, "bytes": size}
                    )
        self._mend_manifests(changed)
        table = read_found(self.found).sort("uid", "key")
        if (self.root / "index").exists():  # an explorer that is open has its files
            hide_pairs(self.root, table["uid"].drop_nulls().to_list())
        for made_of_it in MADE_OF_IT:
            shutil.rmtree(self.root / made_of_it, ignore_errors=True)
        table.write_parquet(temporary / f"{shard.name}.{DIFF_TABLE}")
        np.save(temporary / f"{shard.name}.{DIFF_UIDS}", uids_to_array(table["uid"].drop_nulls()))
        kinds = dict(table["kind"].value_counts().sort("kind").iter_rows())
        summary = {"takedown": self.takedown, "removed": len(table), "by_kind": kinds, "files": changed}
        write_json(temporary / f"{shard.name}.{SUMMARY}", summary)
        return Counts(rows_in=len(table), rows_out=len(table), extra=Counter(files=len(changed)))

    def _before(self) -> dict[str, str | None]:
        """The recorded checksum of every file that changes, from before the first was replaced."""
        path = self.folder / "before.json"
        if not path.exists():
            value = {
                str((Path(unit.folder) / name).relative_to(self.root)): self._recorded(unit, name)
                for unit in self.units
                for name in unit.files
                if (self.rewritten / f"{unit.name}.{name}").exists()
            }
            write_json(path, value)
        return read_json(path)

    def _recorded(self, unit: Unit, name: str) -> str | None:
        if unit.name.startswith("shards-"):
            return next((e.sha256 for e in read_manifest(unit.folder) if e.name == name), None)
        stats = read_json(Path(unit.folder) / f"{unit.stem}{STATS_SUFFIX}")
        return stats.get("files", {}).get(name, {}).get("sha256")

    def _record(self, unit: Unit, name: str, size: int, digest: str) -> None:
        """In a stage's own record of the shard; the manifest of training shards is mended once, at the end."""
        if unit.name.startswith("shards-"):
            return
        path = Path(unit.folder) / f"{unit.stem}{STATS_SUFFIX}"
        stats = read_json(path)
        stats.setdefault("files", {})[name] = {"bytes": size, "sha256": digest}
        stats["takedowns"] = sorted({*stats.get("takedowns", []), self.takedown})
        write_json(path, stats)

    def _mend_manifests(self, changed: list[dict[str, Any]]) -> None:
        for folder in {unit.folder for unit in self.units if unit.name.startswith("shards-")}:
            value = read_json(Path(folder) / MANIFEST_NAME)
            new = {
                Path(each["file"]).name: each
                for each in changed
                if (self.root / each["file"]).parent == Path(folder)
            }
            entries = [
                ShardEntry(
                    e.name, _samples_in(Path(folder) / e.name), new[e.name]["bytes"], new[e.name]["sha256"]
                )
                if e.name in new
                else e
                for e in read_manifest(folder)
            ]
            value["shards"] = [
                {"name": e.name, "samples": e.samples, "bytes": e.bytes, "sha256": e.sha256} for e in entries
            ]
            value["samples"] = sum(entry.samples for entry in entries)
            provenance = value.setdefault("provenance", {})
            provenance["takedowns"] = sorted({*provenance.get("takedowns", []), self.takedown})
            write_json(Path(folder) / MANIFEST_NAME, value)


def _samples_in(tar: Path) -> int:
    return len(describe_tar(tar, []))


def _replace(new: Path, old: Path) -> None:
    with atomic_path(old) as temporary:
        try:
            os.link(new, temporary)
        except OSError:
            shutil.copyfile(new, temporary)
    flush_to_disk(old.parent)


def stage_folders(root: Path) -> list[Path]:
    """The folders of stages below a run's, those that are made again after a takedown left out."""
    found = []
    for path in sorted(root.rglob(MANIFEST)):
        parts = path.parent.relative_to(root).parts
        made_again = not parts or parts[0] in ("shards", *MADE_OF_IT) or parts[0].startswith("takedown-")
        if not made_again and ".tmp" not in parts:
            found.append(path.parent)
    return found
