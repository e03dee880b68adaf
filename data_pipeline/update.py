"""What an earlier download has, for one that tries its failures again (`download.update`).

The earlier run's folder is only read. Every image that it stored goes over into the new shard as it is; every
row that it lost, for whatever reason, is fetched anew. Its settings of images have to be those of the new run, so
that one data set is not made in two ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

from crawl2clip import storage
from crawl2clip.download_status import DownloadStatus
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import raise_fault, read_samples
from data_pipeline.completion import progress_of, read_settings
from data_pipeline.fetch import Fetched
from data_pipeline.processed import Processed
from data_pipeline.raw_shard import StoredImage
from data_pipeline.stage import MANIFEST, stream_finished

_NAMES = [
    field.name for field in fields(Processed) if field.name not in ("status", "data", "extension", "error")
]


@dataclass(frozen=True)
class EarlierRun:
    """A finished download.

    Attributes:
        folder: its raw shards.
    """

    folder: Path

    def shards(self) -> Iterator[str]:
        """The names of its complete shards."""
        return stream_finished(self.folder)

    def inputs(self, name: str) -> tuple[str, str]:
        """Table and tar of one of its shards."""
        return str(self.folder / f"{name}.parquet"), str(self.folder / f"{name}.tar")

    def check(self, settings: Mapping[str, Any]) -> None:
        """Makes sure that its images were made as those of the new run are.

        Args:
            settings: the download stage's, as its manifest has them.

        Raises:
            ConfigError: it is not finished, or was made in another way.
        """
        if not storage.exists(self.folder / MANIFEST):
            raise ConfigError(
                f"download.update is {self.folder.parent}, and {self.folder} holds no download; give the output_dir of "
                "a run whose stage=download has finished"
            )
        finished, total = progress_of(self.folder)
        if finished < total:
            raise ConfigError(
                f"download.update is {self.folder.parent}, where {total - finished} of {total} shards are "
                "not finished; finish its stage=download first, by the same command that began it"
            )
        theirs = read_settings(self.folder)
        for name in ("images", "min_bytes", "published"):
            if theirs.get(name) != settings.get(name):
                raise ConfigError(
                    f"download.update is {self.folder.parent}, which was made with {name} {theirs.get(name)}, and "
                    f"this run has {settings.get(name)}; give the same settings, or leave download.update out"
                )

    def take(
        self, name: str, rows: Sequence[Mapping[str, Any]], spool: IO[bytes]
    ) -> dict[str, Fetched[StoredImage]]:
        """What is there of the URLs that brought an image; the images are appended to the spool.

        Args:
            name: of the shard.
            rows: of its table.
            spool: see `raw_shard.write_raw_shard`.

        Raises:
            DataError: an image that the table has is not in the tar.
        """
        stored = {row["uid"]: row for row in rows if row["status"] == DownloadStatus.success.value}
        taken: dict[str, Fetched[StoredImage]] = {}
        path = self.folder / f"{name}.tar"
        found = set()
        for sample in read_samples(path, raise_fault) if stored else ():
            row = stored.get(sample.key)
            if row is None:
                continue
            found.add(sample.key)
            if row["url"] in taken:
                continue
            extension = next(field for field in sample.fields if field not in ("txt", "json"))
            data = sample.fields[extension]
            processed = Processed(
                DownloadStatus.success, extension=extension, **{name: row[name] for name in _NAMES}
            )
            offset = spool.tell()
            spool.write(data)
            taken[row["url"]] = Fetched(
                DownloadStatus.success,
                StoredImage(processed, row["bytes"], offset, len(data)),
                http_status=row["http_status"],
                consent=row["consent"],
            )
        if len(found) < len(stored):
            raise DataError(
                f"{path} lacks {len(stored) - len(found)} of the {len(stored)} images that {name}.parquet lists; "
                f"delete {name}.stats.json beside it and run that stage=download again"
            )
        return taken
