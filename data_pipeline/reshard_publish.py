"""The last step of the reshard stage: written shards become a data set, whole or not at all."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path
from crawl2clip.logs import provenance
from crawl2clip.shards import MANIFEST_NAME, ShardEntry, read_manifest, write_manifest
from data_pipeline.stage import Counts, Shard, Stage, finished_shards, is_finished, read_stats

PUBLISHED_NAME = "publish"


@dataclass
class PublishStage(Stage):
    """Makes the written shards a data set: a folder that holds the tars and their manifest, whole or not at all.

    In a store the tars are copied there, and the manifest, which makes them a data set, comes last.

    The one stage that writes outside its own folder: a reader of the data set must never meet half of it. The tars are
    hard links to those of `reshard/write`, or copies where the file system has no links.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    written: Path
    target: Path
    max_workers: int | None = 1

    def inputs_to_fetch(self, shard: Shard) -> list[str]:
        """None: what is known of the tars is in their stats."""
        return []

    def shards(self) -> list[Shard]:
        """One.

        Raises:
            DataError: the data set was published and is gone.
        """
        if is_finished(self.folder, PUBLISHED_NAME) and not storage.exists(self.target / MANIFEST_NAME):
            raise DataError(
                f"{self.target} was written by an earlier run and is gone or has lost its {MANIFEST_NAME}; delete "
                f"{self.folder} and run stage=reshard again to make it from {self.written}"
            )
        tars = [str(self.written / f"{name}.tar") for name in finished_shards(self.written)]
        return [Shard(PUBLISHED_NAME, tuple(tars))] if tars else []

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Publishes all shards at once."""
        entries = [self._entry(Path(tar)) for tar in shard.inputs]
        rows = sum(entry.samples for entry in entries)
        counts = Counts(rows_in=rows, rows_out=rows)
        if storage.address_of(self.target):
            self._publish_in_store(shard.inputs, entries)
            return counts
        if self.target.exists():
            if (self.target / MANIFEST_NAME).is_file() and read_manifest(self.target) == entries:
                return counts  # an earlier try was killed after the rename
            raise DataError(
                f"{self.target} exists and holds something else; move it away and run stage=reshard again"
            )
        with atomic_path(self.target) as folder:
            folder.mkdir()
            for tar in shard.inputs:
                _link_or_copy(Path(tar), folder / Path(tar).name)
            write_manifest(folder, entries, {**provenance(), **self.settings})
        return counts

    def _publish_in_store(self, tars: Sequence[str], entries: list[ShardEntry]) -> None:
        manifest = self.target / MANIFEST_NAME
        storage.fetch_newest(manifest)
        if manifest.exists() and read_manifest(self.target) != entries:
            raise DataError(
                f"{storage.address_of(self.target)} holds another data set; move it away and run stage=reshard again"
            )
        for tar in tars:
            storage.copy(Path(tar), self.target / Path(tar).name)
        self.target.mkdir(parents=True, exist_ok=True)
        write_manifest(self.target, entries, {**provenance(), **self.settings})
        storage.publish(manifest)

    def _entry(self, tar: Path) -> ShardEntry:
        stats = read_stats(self.written, tar.stem)
        file = stats["files"][tar.name]
        return ShardEntry(tar.name, stats["counts"]["rows_out"], file["bytes"], file["sha256"])


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
