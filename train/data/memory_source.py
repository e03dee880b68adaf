"""A data set decoded once and kept in memory: for some ten thousand small images and many epochs."""

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch

from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from crawl2clip.logs import progress
from train.data.captions import choose
from train.data.decode import centre_square
from train.data.loading import LoaderSettings, load
from train.data.sample_order import uniforms
from train.data.sample_reader import CAPTION, BadDraw, Batch, SampleReader, cut_to_longest
from train.data.text_mask import ShortenTexts

_CHUNK = 64  # samples a worker decodes at a time


@dataclass
class _Part:
    """Consecutive samples, decoded, with all their captions."""

    images: torch.Tensor  # uint8 [N, 3, S, S]
    text_tokens: torch.Tensor  # int64 [M, context_length], every caption of every sample
    text_lengths: torch.Tensor  # int64 [M]
    cumulative: list[np.ndarray]  # N times the chances of a sample's captions, see Captions
    sample_ids: torch.Tensor  # int64 [N]
    bad: dict[int, list[BadDraw]]  # sample number -> what was found wrong from there on


class MemorySource:
    """Batches from decoded samples.

    Args:
        parts: all samples, in order.
        seed: of the run; chooses captions as SampleReader does.
        shorten: leaves tokens out of each draw's caption; None keeps all.
    """

    def __init__(self, parts: Sequence[_Part], seed: int, shorten: ShortenTexts | None = None) -> None:
        self._shorten = shorten
        self._images = torch.cat([part.images for part in parts])
        self._text_tokens = torch.cat([part.text_tokens for part in parts])
        self._text_lengths = torch.cat([part.text_lengths for part in parts])
        self._sample_ids = torch.cat([part.sample_ids for part in parts])
        self._cumulative = [chances for part in parts for chances in part.cumulative]
        counts = np.array([len(chances) for chances in self._cumulative])
        self._first_caption = np.cumsum(counts) - counts
        self._one_caption = bool((counts == 1).all())
        self._bad = {number: draws for part in parts for number, draws in part.bad.items()}
        self._seed = seed

    def batch(self, numbers: np.ndarray, positions: np.ndarray, size: int) -> Batch:
        """See BatchSource; `size` is the one that was decoded."""
        rows = torch.from_numpy(numbers)
        captions = self._first_caption[numbers]
        if not self._one_caption:
            u = uniforms(self._seed, positions, CAPTION, 1)[:, 0]
            captions = captions + [choose(self._cumulative[n], v) for n, v in zip(numbers, u, strict=True)]
        chosen = torch.from_numpy(captions)
        tokens, lengths = self._text_tokens[chosen], self._text_lengths[chosen]
        if self._shorten is not None:
            tokens, lengths = self._shorten(tokens, lengths, positions)
        return Batch(
            self._images[rows],
            cut_to_longest(tokens, lengths),
            lengths,
            self._sample_ids[rows],
            torch.from_numpy(positions),
            [draw for number in numbers for draw in self._bad.get(int(number), ())],
        )

    def prefetch(self, numbers: np.ndarray) -> None:
        """See BatchSource."""


def decode_all(
    reader: SampleReader,
    size: int,
    settings: LoaderSettings,
    world: World,
) -> MemorySource:
    """Decodes the whole data set as centre squares of side `size`, each rank its share, and gives every rank all of it.

    Raises:
        ConfigError: the pixels would fill more than half of this machine's memory.
        DataError: see SampleReader.decode.
    """
    total = len(reader.table)
    needed = total * 3 * size**2
    allowed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    if needed > allowed:
        raise ConfigError(
            f"data.cache_decoded=true needs {needed / 1e9:.1f} GB on each rank for {total} images of side {size}, more "
            f"than half of this machine's memory ({allowed / 1e9:.1f} GB); set it to false"
        )
    first, last = total * world.rank // world.world_size, total * (world.rank + 1) // world.world_size
    chunks = [np.arange(start, min(start + _CHUNK, last)) for start in range(first, last, _CHUNK)]
    own: list[_Part] = []
    with progress(total=last - first, desc="decoding", unit="image", disable=not world.is_main) as bar:
        parts = load(
            lambda index: _decode_part(reader, chunks[index], size),
            len(chunks),
            replace(settings, pin_memory=False),
            reader.watch,
            reader.describe,
            world.rank,
        )
        with closing(parts):
            for part in parts:
                own.append(part)
                bar.update(len(part.images))
    shares = world.all_gather_object(own)
    return MemorySource([part for share in shares for part in share], reader.seed, reader.shorten)


def _decode_part(reader: SampleReader, numbers: np.ndarray, size: int) -> _Part:
    decoded, bad = [], {}
    for number in numbers:  # one by one, so that each knows its own bad draws
        samples, draws = reader.decode(np.array([number]), size, [centre_square])
        decoded += samples
        if draws:
            bad[int(number)] = draws
    reader.watch.idle()
    text_tokens = reader.tokenizer([text for sample in decoded for text in sample.captions.texts])
    return _Part(
        torch.stack([sample.image for sample in decoded]),
        text_tokens,
        reader.text_lengths_of(text_tokens),
        [sample.captions.cumulative for sample in decoded],
        torch.tensor([sample.number for sample in decoded]),
        bad,
    )
