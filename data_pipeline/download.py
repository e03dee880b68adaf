"""Stage `download`: candidates become raw shards, with a row for every URL tried.

One shard of deduplicated candidates becomes `NAME.tar` (image, caption and JSON of each pair whose image could be
had) and `NAME.parquet` (every candidate and what came of it). A URL that several captions share is fetched once.
`fetch.py` brings bodies, `decoders.py` has them turned into stored images in processes of their own, and this file
joins the two. When all URLs of a shard have been tried, those that failed in a way that may pass are tried again.

What may surprise: images are written to an unnamed spool file as they arrive and copied to the tar in the order of
the rows at the end. So the same answers give the same bytes, whatever order they came in, and memory stays flat.
"""

import asyncio
import logging
import tempfile
import time
import weakref
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from crawl2clip.download_status import DownloadStatus
from crawl2clip.errors import ConfigError
from crawl2clip.missing import MISSING
from crawl2clip.schema import CANDIDATE_SCHEMA, DOWNLOAD_SCHEMA
from data_pipeline.decoders import DecoderLimits, Decoders
from data_pipeline.fetch import Fetched, Fetcher
from data_pipeline.fetch_config import FetchConfig, check_number
from data_pipeline.image_config import ImageConfig
from data_pipeline.published import PublishedConfig, boxes_of, read_listed
from data_pipeline.raw_shard import StoredImage, write_raw_shard
from data_pipeline.stage import Counts, Shard, Stage, stream_finished
from data_pipeline.tables import read_rows
from data_pipeline.update import EarlierRun

if TYPE_CHECKING:
    from data_pipeline.config import PipelineConfig

logger = logging.getLogger(__name__)

_PROGRESS_S = 30.0  # between two lines about a shard under way

# Settings that say how fast and how patiently, not what: a rerun may change them and go on in the same folder.
_PACE = (
    "concurrency",
    "per_host_connections",
    "per_host_requests_per_s",
    "max_host_failures",
    "nameservers",
    "connect_timeout_s",
    "first_byte_timeout_s",
    "read_timeout_s",
    "min_bytes_per_s",
    "total_timeout_s",
    "task_timeout_s",
    "retries",
    "backoff_s",
    "max_retry_after_s",
    "passes",
    "shard_deadline_s",
    "decoders",
    "decode_timeout_s",
    "decode_memory_mb",
)


@dataclass(kw_only=True, slots=True)
class DownloadConfig(FetchConfig):
    """How images are fetched (the fields of FetchConfig), accepted and stored."""

    passes: int = (
        MISSING  # over a shard; those after the first try what failed in a way that may pass. 1 or more
    )
    shard_deadline_s: float = MISSING  # after this, URLs of a shard still under way become `timeout`
    decoders: int = MISSING  # processes of each worker that decode and encode
    decode_timeout_s: float = MISSING  # of one image; its decoder is then ended
    decode_memory_mb: int = MISSING  # MB, for one image, on top of the decoding libraries
    # The output_dir of an earlier run: its images are taken over, and what it lost is tried again. null: a first run
    update: str | None = None
    published: PublishedConfig = field(default_factory=PublishedConfig)
    images: ImageConfig = field(default_factory=ImageConfig)

    def __post_init__(self) -> None:
        FetchConfig.__post_init__(self)  # super() does not find its way in a dataclass with slots
        check_number("download.passes", self.passes, 1)
        check_number("download.shard_deadline_s", self.shard_deadline_s, 1e-3)
        check_number("download.decoders", self.decoders, 1)
        check_number("download.decode_timeout_s", self.decode_timeout_s, 1e-3)
        check_number("download.decode_memory_mb", self.decode_memory_mb, 16)


@dataclass
class DownloadStage(Stage):
    """Fetches the images of deduplicated candidates."""

    name: str
    folder: Path
    settings: dict[str, Any]
    candidates: Path  # the deduplicate stage's folder
    config: DownloadConfig
    min_bytes: int  # of the original file; from the recipe
    earlier: EarlierRun | None = None  # whose failures are tried again, in place of candidates

    def shards(self) -> Iterator[Shard]:
        """One for each complete shard of candidates, or of the earlier run."""
        if self.earlier is not None:
            for name in self.earlier.shards():
                yield Shard(name, self.earlier.inputs(name))
        else:
            for name in stream_finished(self.candidates):
                yield Shard(name, (str(self.candidates / f"{name}.parquet"),))

    def setup(self) -> "Worker":
        """Makes the HTTP client and starts the decoding processes."""
        return Worker(self.config, self.min_bytes)

    def run(self, context: "Worker", shard: Shard, temporary: Path) -> Counts:
        """Downloads one shard."""
        started = time.monotonic()
        schema = CANDIDATE_SCHEMA if self.earlier is None else DOWNLOAD_SCHEMA
        rows = read_rows(shard.inputs[0], schema.names)
        before = context.fetcher.totals.copy()
        with tempfile.TemporaryFile(dir=temporary) as spool:
            taken = {} if self.earlier is None else self.earlier.take(shard.name, rows, spool)
            boxes = self._boxes(rows, taken)
            batch = _Batch(context, self.config, shard.name, spool)
            fetched = taken | context.loop.run_until_complete(batch.fetch(boxes))
            counts = write_raw_shard(rows, fetched, spool, temporary / shard.name, self.config.published)
        counts.extra.update(context.fetcher.totals - before)
        counts.extra["urls"] += len(boxes)
        counts.extra["taken_over"] += len(taken)
        _log(shard.name, counts, time.monotonic() - started)
        return counts

    def _boxes(
        self, rows: Iterable[Mapping[str, Any]], taken: Collection[str]
    ) -> dict[str, list[list[float]] | None]:
        """The distinct URLs that are to be fetched, each with the boxes that all its rows want blurred."""
        wanted: dict[str, list[list[float]] | None] = {}
        for row in rows:
            url = row["url"]
            if url in taken:
                continue
            boxes = wanted.setdefault(url, [])
            if self.config.published.boxes_column is None or boxes is None:
                continue
            more = boxes_of(read_listed(row["listed"]), self.config.published)
            wanted[url] = None if more is None else [*boxes, *(box for box in more if box not in boxes)]
        return wanted


class _Batch:
    """The URLs of one shard on their way.

    Args:
        worker: what fetches and decodes.
        config: passes and deadline.
        name: of the shard, for the log.
        spool: image files are appended to it.
    """

    def __init__(self, worker: "Worker", config: DownloadConfig, name: str, spool: IO[bytes]) -> None:
        self._worker = worker
        self._config = config
        self._name = name
        self._spool = spool
        self._ended: Counter[str] = Counter()  # by status
        self._began = time.monotonic()

    async def fetch(self, boxes: Mapping[str, list[list[float]] | None]) -> dict[str, Fetched[StoredImage]]:
        """What came of each URL.

        Args:
            boxes: URL -> what to blur; None when it cannot be read, and the image is then not wanted.
        """
        results: dict[str, Fetched[StoredImage]] = dict.fromkeys(boxes, _TOO_LATE)
        results |= {url: _NO_BOXES for url, found in boxes.items() if found is None}
        self._boxes = {url: found for url, found in boxes.items() if found is not None}
        left = list(self._boxes)
        deadline = self._began + self._config.shard_deadline_s
        progress = asyncio.create_task(self._tell(len(left)))
        try:
            for number in range(self._config.passes):
                results |= await self._pass(left, deadline)
                left = [url for url in left if results[url].retryable]
                if not left or time.monotonic() >= deadline:
                    break
                if number + 1 < self._config.passes:
                    self._worker.fetcher.totals["second_pass"] += len(left)
                    for url in left:
                        self._ended[results[url].status.value] -= 1
        finally:
            progress.cancel()
        return results

    async def _pass(self, urls: Sequence[str], deadline: float) -> dict[str, Fetched[StoredImage]]:
        """One try of each URL; those that the deadline leaves out are not in the answer."""
        self._worker.fetcher.begin_pass()
        tasks = {url: asyncio.create_task(self._one(url)) for url in interleave_by_host(urls)}
        if not tasks:
            return {}
        try:
            await asyncio.wait(
                tasks.values(),
                timeout=max(0.0, deadline - time.monotonic()),
                return_when=asyncio.FIRST_EXCEPTION,
            )
        finally:
            late = [task for task in tasks.values() if not task.done()]
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for task in tasks.values():
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        return {url: task.result() for url, task in tasks.items() if not task.cancelled()}

    async def _one(self, url: str) -> Fetched[StoredImage]:
        async def consume(body: bytes) -> StoredImage:
            return await self._consume(body, self._boxes[url])

        fetched = await self._worker.fetcher.fetch(url, consume)
        processed = fetched.result.processed if fetched.result else None
        self._ended[(processed or fetched).status.value] += 1
        return fetched

    async def _consume(self, body: bytes, boxes: Sequence[Sequence[float]]) -> StoredImage:
        processed = await self._worker.decoders.process(body, boxes)
        data = processed.data or b""
        offset = self._spool.tell()
        self._spool.write(data)
        return StoredImage(replace(processed, data=None), len(body), offset, len(data))

    async def _tell(self, total: int) -> None:
        """A line now and then, for shards that take long."""
        totals = self._worker.fetcher.totals
        bytes_before = totals["bytes"]
        while True:
            await asyncio.sleep(_PROGRESS_S)
            stored, ended = self._ended[DownloadStatus.success.value], self._ended.total()
            _say(
                f"{self._name}: {ended} of {total} URLs tried",
                stored, ended, totals["bytes"] - bytes_before, time.monotonic() - self._began, self._ended,
            )  # fmt: skip


_TOO_LATE: Fetched[StoredImage] = Fetched(DownloadStatus.timeout, error="the shard's deadline passed")
_NO_BOXES: Fetched[StoredImage] = Fetched(
    DownloadStatus.boxes_unreadable, error="the list's boxes cannot be read, so faces could not be blurred"
)


class Worker:
    """What a worker process keeps from shard to shard: event loop, HTTP client, decoding processes."""

    def __init__(self, config: DownloadConfig, min_bytes: int) -> None:
        self.loop = _new_event_loop()
        self.fetcher, self.decoders = self.loop.run_until_complete(_open(config, min_bytes))
        self.close = weakref.finalize(self, _close, self.loop, self.fetcher, self.decoders)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where there is one: a third of a worker's own time goes into the loop otherwise."""
    if find_spec("uvloop") is None:  # Windows
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


async def _open(config: DownloadConfig, min_bytes: int) -> tuple[Fetcher, Decoders]:
    limits = DecoderLimits(memory_bytes=config.decode_memory_mb * 1_000_000, seconds=config.decode_timeout_s)
    decoders = Decoders(config.decoders, config.images, min_bytes, limits)
    await decoders.wait_until_ready()
    return Fetcher(config), decoders


def _close(loop: asyncio.AbstractEventLoop, fetcher: Fetcher, decoders: Decoders) -> None:
    decoders.close()
    loop.run_until_complete(fetcher.close())
    loop.close()


def interleave_by_host(urls: Iterable[str]) -> list[str]:
    """The URLs dealt out host by host, so that neighbours in the list are on different hosts.

    URLs of one host keep their order. Hosts are told by what stands between the slashes, since nothing depends on it
    but the order. Those that have none count as one host; they are answered at once.
    """
    by_host: dict[str, deque[str]] = {}
    for url in urls:
        parts = url.split("/", 3)
        by_host.setdefault(parts[2] if len(parts) > 2 else "", deque()).append(url)
    dealt: list[str] = []
    while by_host:
        for host in list(by_host):
            dealt.append(by_host[host].popleft())
            if not by_host[host]:
                del by_host[host]
    return dealt


def _log(shard: str, counts: Counts, seconds: float) -> None:
    """One line about a finished shard."""
    _say(shard, counts.rows_out, counts.rows_in, counts.extra["bytes"], seconds, counts.dropped)


def _say(
    what: str, stored: int, tried: int, num_bytes: int, seconds: float, statuses: Mapping[str, int]
) -> None:
    """Speed, success, and what went wrong most."""
    lost = Counter({status: n for status, n in statuses.items() if n > 0 and status != "success"})
    classes = ", ".join(f"{status} {number}" for status, number in lost.most_common(4))
    logger.info(
        "download %s: %d of %d stored (%.1f%%), %.1f images/s, %.2f MB/s; lost: %s",
        what, stored, tried, 100 * stored / max(1, tried), stored / max(seconds, 1e-9),
        num_bytes / max(seconds, 1e-9) / 1e6, classes or "none",
    )  # fmt: skip


# From the command's settings


def make_stage(config: "PipelineConfig") -> DownloadStage:
    """The stage that the settings describe.

    Raises:
        ConfigError: nobody says who fetches, the earlier run does not fit, or the executor would end a shard before
            its own deadline does.
    """
    download = config.download
    _ = download.identified_as
    if download.shard_deadline_s >= config.executor.shard_timeout_s:
        raise ConfigError(
            f"download.shard_deadline_s is {download.shard_deadline_s:g} and executor.shard_timeout_s is "
            f"{config.executor.shard_timeout_s:g}: the executor would throw a slow shard away before the download "
            "can end it with what it has; give a deadline below the time-out, with a minute to spare"
        )
    output_dir = Path(config.output_dir)
    settings = _settings(download, config.recipe.min_bytes)
    earlier = None
    if download.update is not None:
        earlier = EarlierRun(Path(download.update) / "raw")
        earlier.check(settings)
    return DownloadStage(
        name="download",
        folder=output_dir / "raw",
        settings=settings,
        candidates=output_dir / "deduplicated",
        config=download,
        min_bytes=config.recipe.min_bytes,
        earlier=earlier,
    )


def _settings(config: DownloadConfig, min_bytes: int) -> dict[str, Any]:
    """The settings that change what is stored, as plain JSON values."""
    values = asdict(config)
    for name in _PACE:
        del values[name]
    values["images"] = {
        name: value.value if isinstance(value, Enum) else value for name, value in values["images"].items()
    }
    return values | {"min_bytes": min_bytes}
