"""Training batches from webdataset shards: the same samples in the same order on any number of ranks and workers.

A run draws from one endless stream of samples, a function of (data set, seed): a batch is the next so many
positions of it. A run goes on where it stopped by asking for the next position, on any number of ranks. Workers
read one sample at its place in the tar and decode its crop to a uint8 square; all that is random about a sample
follows from (seed, position). A bad sample is replaced by the next good one in shard order, so batches stay full
and every rank agrees, and is reported with shard, key and reason.
"""

import logging
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from crawl2clip.distributed import World
from train.data.data_config import DataConfig
from train.data.decode import BAD_SAMPLE_REASONS
from train.data.loading import LoaderSettings, load
from train.data.memory_source import MemorySource, decode_all
from train.data.mixture import SampleStream
from train.data.remote import RemoteShards
from train.data.sample_order import FullShuffle, Order, WindowShuffle, derive_seed
from train.data.sample_reader import BadDraw, Batch, SampleReader, TextLengths, Tokenizer
from train.data.shard_cache import ShardCache
from train.data.shard_files import ShardFiles
from train.data.shard_index import SampleTable, build_table, join_tables
from train.data.text_mask import ShortenTexts
from train.data.worker_watch import WorkerWatch

__all__ = ["DataConfig", "Samples", "TrainingData", "build_data", "find_samples"]

logger = logging.getLogger(__name__)

_NAMED = 20  # bad samples of each reason that a rank names


class BatchSource(Protocol):
    """Where batches come from: read from the shards as they are needed, or held in memory."""

    def batch(self, numbers: np.ndarray, positions: np.ndarray, size: int) -> Batch:
        """The samples `numbers` at `positions`, both int64 [B], as squares of side `size`."""
        ...

    def prefetch(self, numbers: np.ndarray) -> None:
        """These samples are wanted soon."""
        ...


class ShardSource:
    """Reads and decodes at every draw."""

    def __init__(self, reader: SampleReader) -> None:
        self._reader = reader

    def batch(self, numbers: np.ndarray, positions: np.ndarray, size: int) -> Batch:
        """See BatchSource."""
        return self._reader.read(numbers, positions, size)

    def prefetch(self, numbers: np.ndarray) -> None:
        """See BatchSource."""
        self._reader.files.fetch_soon(self._reader.table.shards_of(numbers))


@dataclass(frozen=True)
class Samples:
    """The samples of a run, located but not read.

    Attributes:
        table: all of them, source after source.
        sources: the table of each source.
        cache: of remote shards.
    """

    table: SampleTable
    sources: list[SampleTable]
    cache: ShardCache

    def __len__(self) -> int:
        return len(self.table)


def find_samples(config: DataConfig, world: World) -> Samples:
    """Locates every sample of the data set; each rank reads its share of the headers.

    Raises:
        DataError: see build_table; every rank raises alike.
    """
    members = tuple(dict.fromkeys(place.member for place in config.caption_list))
    cache = ShardCache(RemoteShards(config.remote))
    tables = [
        build_table(source.shards, members, config.max_bad_fraction, world, cache)
        for source in config.source_list
    ]
    table = join_tables(tables)
    # Without weights the sources are one set: a sample of each is as likely, and all have the same epochs.
    weighted = config.source_list[0].weight is not None
    return Samples(table, tables if weighted else [table], cache)


class TrainingData:
    """The data of a run: batches by position, and what was wrong with them.

    Attributes:
        samples_per_epoch: usable samples. With weights, so many positions are called an epoch, though a source with a
            large weight is then drawn from more than once.
    """

    def __init__(
        self,
        source: BatchSource,
        stream: SampleStream,
        reader: SampleReader,
        config: DataConfig,
        world: World,
    ) -> None:
        self.samples_per_epoch = len(reader.table)
        self._source, self._stream, self._reader = source, stream, reader
        self._config, self._world = config, world
        self._named: dict[str, set[tuple[str, str]]] = {reason: set() for reason in BAD_SAMPLE_REASONS}

    def batches(
        self, position: int, num_steps: int, global_batch_size: int, image_size: int
    ) -> Generator[Batch, None, None]:
        """This rank's rows of the next `num_steps` batches from `position` on; to be closed when left early.

        Args:
            position: samples that the run has drawn before, over all ranks.
            num_steps: batches; those of the next stage, of another size, are asked for by another call.
            global_batch_size: a multiple of the number of ranks.
            image_size: side in pixels that the model takes, used where `data.decode_size` is null.
        """
        size = self._config.decode_size or image_size
        look_ahead = self._look_ahead(global_batch_size)

        def read(step: int) -> Batch:
            if look_ahead:
                self._source.prefetch(self._rows(position, step + look_ahead, global_batch_size)[0])
            return self._source.batch(*self._rows(position, step, global_batch_size), size)

        in_memory = isinstance(self._source, MemorySource)
        settings = loader_settings(self._config, self._world, in_process=in_memory)
        items = load(read, num_steps, settings, self._reader.watch, self._reader.describe, self._world.rank)
        with closing(items):
            for batch in items:
                self._name(batch.bad_draws)
                yield batch

    def reading(self) -> tuple[str, str] | None:
        """Shard and key of the sample that the first busy worker is at: for a report of a hang."""
        busy = (state.number for state in self._reader.watch.states() if state.number is not None)
        number = next(busy, None)
        return None if number is None else self._reader.name_of(number)

    def _rows(self, position: int, step: int, global_batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample numbers and positions of this rank's rows, int64 [B] each.

        With windows of shards, the rows of a global batch are dealt out in shard order, not by position: each rank
        then reads its own part of a window's shards, and a machine fetches not much more than its share of them.
        """
        rank, world_size = self._world.rank, self._world.world_size
        assert global_batch_size % world_size == 0, "the plan checks this"
        rows = global_batch_size // world_size
        first = position + step * global_batch_size
        if self._config.shuffle_window_shards is None:
            positions = np.arange(first + rank * rows, first + (rank + 1) * rows)
            return self._stream(positions), positions
        positions = np.arange(first, first + global_batch_size)
        numbers = self._stream(positions)
        own = np.argsort(numbers, kind="stable")[rank * rows : (rank + 1) * rows]
        return numbers[own], positions[own]

    def _look_ahead(self, global_batch_size: int) -> int:
        """Steps to fetch remote shards ahead, half a window; 0 where shards are not fetched whole."""
        window = self._config.shuffle_window_shards
        if window is None:
            return 0
        in_window = window * self.samples_per_epoch / max(1, len(self._reader.table.shards))
        return max(1, round(in_window / 2 / global_batch_size))

    def _name(self, bad_draws: list[BadDraw]) -> None:
        """Warns of the first few bad samples of each reason: one in a hundred of LAION-2B are 20 million lines."""
        for draw in bad_draws:
            named = self._named[draw.reason]
            if len(named) == _NAMED or (draw.shard, draw.key) in named:
                continue
            named.add((draw.shard, draw.key))
            logger.warning(
                "replaced sample %s of %s: %s (%s)", draw.key, draw.shard, draw.reason, draw.detail
            )
            if len(named) == _NAMED:
                logger.warning(
                    "that were %d samples; others that are %s are counted (bad_draws/%s in metrics.jsonl), not named",
                    _NAMED,
                    draw.reason,
                    draw.reason,
                )


def loader_settings(config: DataConfig, world: World, *, in_process: bool = False) -> LoaderSettings:
    """How this rank's workers run; `in_process` starts none."""
    return LoaderSettings(
        num_workers=0 if in_process else config.num_workers,
        prefetch_batches=config.prefetch_batches,
        stall_timeout_s=config.stall_timeout_s,
        pin_memory=world.device.type == "cuda",
    )


def build_data(
    samples: Samples,
    tokenizer: Tokenizer,
    config: DataConfig,
    seed: int,
    world: World,
    text_lengths_of: TextLengths | None = None,
    shorten: ShortenTexts | None = None,
) -> TrainingData:
    """The data of a run; decodes everything first when `cache_decoded` asks for it.

    Args:
        samples: from `find_samples`.
        tokenizer: the model's.
        seed: of the run: order, crops and captions follow from it.
        text_lengths_of: tokens to lengths; None finds out from the tokenizer.
        shorten: leaves tokens out of each draw's caption; None keeps what the tokenizer gives.
    """
    reader = SampleReader(
        samples.table,
        ShardFiles(samples.table.shards, samples.cache, whole=config.shuffle_window_shards is not None),
        tokenizer,
        config.caption_list,
        text_lengths_of=text_lengths_of,
        shorten=shorten,
        random_crop=config.random_crop,
        max_image_pixels=config.max_image_pixels,
        seed=seed,
        watch=WorkerWatch(config.num_workers),
    )
    orders = [
        _order(table, config, derive_seed(seed, number)) for number, table in enumerate(samples.sources)
    ]
    stream = SampleStream(orders, [source.weight or 1.0 for source in config.source_list], seed)
    source: BatchSource = ShardSource(reader)
    if config.cache_decoded:
        assert config.decode_size is not None, "DataConfig checks this"
        source = decode_all(reader, config.decode_size, loader_settings(config, world), world)
    return TrainingData(source, stream, reader, config, world)


def _order(table: SampleTable, config: DataConfig, seed: int) -> Order:
    if config.shuffle_window_shards is None:
        return FullShuffle(len(table), seed)
    return WindowShuffle(table.shard_sizes, config.shuffle_window_shards, seed)
