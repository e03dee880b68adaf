"""Samples by number: one read, one decode, one row of a batch.

A sample that cannot be used gives its row to the next good one in shard order. That depends on the data set
alone, so every rank and worker agrees on it, and a run that is repeated draws the same rows. The crop and the
choice of a caption are functions of the seed and of the row's position in the run's stream of samples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from crawl2clip.errors import DataError
from train.data.captions import CaptionConfig, Captions, captions_of
from train.data.decode import (
    NUM_UNIFORMS,
    BadSample,
    ChooseBox,
    RandomCropConfig,
    centre_square,
    decode_image,
    random_box,
)
from train.data.index_file import Span
from train.data.sample_order import uniforms
from train.data.shard_files import ShardFiles
from train.data.shard_index import SampleTable
from train.data.text_mask import ShortenTexts
from train.data.worker_watch import WorkerState, WorkerWatch

Tokenizer = Callable[[list[str]], torch.Tensor]
"""Captions to text tokens, int64 [N, context_length]."""

TextLengths = Callable[[torch.Tensor], torch.Tensor]
"""Text tokens [N, context_length] to the number of tokens up to and with the end of text, int64 [N]."""

CROP, CAPTION, AUGMENTATION = 1, 2, 3
"""Streams of random numbers, apart for the same seed and position."""

_MAX_REPLACEMENTS = 1000  # bad samples in a row before the data set as a whole is called unusable


@dataclass(frozen=True)
class BadDraw:
    """A sample that was drawn and had to be replaced."""

    shard: str
    key: str
    reason: str  # one of decode.BAD_SAMPLE_REASONS
    detail: str


@dataclass
class Batch:
    """This rank's rows of one global batch."""

    images: torch.Tensor  # uint8 [B, 3, S, S]
    text_tokens: torch.Tensor  # int64 [B, L], L is the longest caption's length here; zeros after the end
    text_lengths: torch.Tensor  # int64 [B], tokens up to and with end of text; stays on the CPU
    sample_ids: torch.Tensor  # int64 [B], numbers in the sample table, after replacement
    positions: torch.Tensor  # int64 [B], places in the run's stream of samples: the key of a row's randomness
    bad_draws: list[BadDraw] = field(default_factory=list)

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; torch's loader calls this when it feeds a GPU."""
        return Batch(
            self.images.pin_memory(),
            self.text_tokens.pin_memory(),
            self.text_lengths,
            self.sample_ids,
            self.positions.pin_memory(),
            self.bad_draws,
        )


def lengths_by_largest_id(text_tokens: torch.Tensor) -> torch.Tensor:
    """Lengths where the end token is the largest id, as CLIP's is: up to its first place. int64 [N, L] to [N]."""
    return text_tokens.argmax(dim=1) + 1


def full_lengths(text_tokens: torch.Tensor) -> torch.Tensor:
    """All of the context, for tokenizers whose end cannot be told from the ids. int64 [N, L] to [N]."""
    return torch.full((len(text_tokens),), text_tokens.shape[1], dtype=torch.int64)


def text_lengths_for(tokenizer: Tokenizer) -> TextLengths:
    """`lengths_by_largest_id` for CLIP's tokenizer and others whose last id ends a text, else `full_lengths`."""
    end, vocabulary = getattr(tokenizer, "eot_token_id", None), getattr(tokenizer, "vocab_size", None)
    return lengths_by_largest_id if end is not None and end + 1 == vocabulary else full_lengths


def cut_to_longest(text_tokens: torch.Tensor, text_lengths: torch.Tensor) -> torch.Tensor:
    """Tokens without the columns that no caption reaches: int64 [B, context_length] to [B, L]."""
    return text_tokens[:, : int(text_lengths.max())].contiguous()


@dataclass(frozen=True)
class Decoded:
    """One usable sample."""

    image: torch.Tensor  # uint8 [3, size, size]
    captions: Captions
    number: int  # after replacement


class SampleReader:
    """Decodes samples by number; opens shards in the process that uses it.

    Args:
        table: the data set.
        files: its shards, opened.
        tokenizer: the model's.
        captions: where a sample's captions may be.
        text_lengths_of: tokens to lengths; None finds out from the tokenizer.
        shorten: leaves tokens out of each draw's caption; None keeps what the tokenizer gives.
        random_crop: None takes the centre square.
        max_image_pixels: larger images are refused by their header.
        seed: of the run.
        watch: is told which sample is being read.
    """

    def __init__(
        self,
        table: SampleTable,
        files: ShardFiles,
        tokenizer: Tokenizer,
        captions: Sequence[CaptionConfig],
        *,
        text_lengths_of: TextLengths | None = None,
        shorten: ShortenTexts | None = None,
        random_crop: RandomCropConfig | None,
        max_image_pixels: int,
        seed: int,
        watch: WorkerWatch,
    ) -> None:
        self.table, self.files, self.tokenizer, self.seed, self.watch = table, files, tokenizer, seed, watch
        self.text_lengths_of = text_lengths_of or text_lengths_for(tokenizer)
        self.shorten = shorten
        self._places = list(captions)
        self._random_crop = random_crop
        self._max_image_pixels = max_image_pixels

    def read(self, numbers: np.ndarray, positions: np.ndarray, size: int) -> Batch:
        """The samples `numbers` at `positions`, both int64 [B], as squares of side `size`.

        Raises:
            DataError: a thousand samples in a row are bad, or a remote shard cannot be reached.
        """
        boxes: list[ChooseBox] = [centre_square] * len(numbers)
        if self._random_crop is not None:
            u = uniforms(self.seed, positions, CROP, NUM_UNIFORMS)
            boxes = [partial(random_box, crop=self._random_crop, u=row) for row in u]
        decoded, bad_draws = self.decode(numbers, size, boxes)
        u = uniforms(self.seed, positions, CAPTION, 1)[:, 0]
        captions = [sample.captions.choose(number) for sample, number in zip(decoded, u, strict=True)]
        text_tokens = self.tokenizer(captions)
        text_lengths = self.text_lengths_of(text_tokens)
        if self.shorten is not None:
            text_tokens, text_lengths = self.shorten(text_tokens, text_lengths, positions)
        self.watch.idle()
        return Batch(
            torch.stack([sample.image for sample in decoded]),
            cut_to_longest(text_tokens, text_lengths),
            text_lengths,
            torch.tensor([sample.number for sample in decoded]),
            torch.from_numpy(positions),
            bad_draws,
        )

    def decode(
        self, numbers: np.ndarray, size: int, boxes: Sequence[ChooseBox]
    ) -> tuple[list[Decoded], list[BadDraw]]:
        """The samples `numbers`, each bad one replaced by the next good one in shard order. Raises as `read`."""
        bad_draws: list[BadDraw] = []
        members = self.files.ahead([self._locate(int(number)) for number in numbers])
        decoded = [
            self._first_good(int(number), size, box, fetch, bad_draws)
            for number, box, fetch in zip(numbers, boxes, members, strict=True)
        ]
        return decoded, bad_draws

    def describe(self, state: WorkerState) -> str:
        """A worker and what it reads, in words."""
        who = f"worker {state.worker} (pid {state.pid})"
        if state.number is None:
            return f"{who} between two batches"
        shard, key = self.name_of(state.number)
        return f"{who} reading sample {key} of {shard}"

    def name_of(self, number: int) -> tuple[str, str]:
        """Shard and key of a sample."""
        shard, row = self.table.locate(number)
        return self.table.shards[shard], row.key.rstrip(b"\0").decode("utf-8", errors="replace")

    def _first_good(
        self,
        number: int,
        size: int,
        box: ChooseBox,
        fetch: Callable[[], dict[str, bytes]],
        bad_draws: list[BadDraw],
    ) -> Decoded:
        total = len(self.table)
        for candidate in range(number, number + min(total, _MAX_REPLACEMENTS)):
            used = candidate % total
            self.watch.reading(used)
            try:
                members = fetch() if candidate == number else self.files.members(*self._locate(used))
                # Captions first: they are cheap, and a sample without one needs no pixels.
                captions = captions_of(members, self._places)
                return Decoded(
                    decode_image(members["image"], size, self._max_image_pixels, box), captions, used
                )
            except BadSample as error:
                bad_draws.append(BadDraw(*self.name_of(used), error.reason, error.detail))
        last = bad_draws[-1]
        raise DataError(
            f"{min(total, _MAX_REPLACEMENTS)} samples in a row cannot be used, up to {last.key} in {last.shard} "
            f"({last.reason}: {last.detail}); check that data.shards and data.caption fit together"
        )

    def _locate(self, number: int) -> tuple[int, dict[str, Span]]:
        """Shard, and where in it the image and the members that may hold a caption lie."""
        shard, row = self.table.locate(number)
        names = ("image", *self.table.caption_members)
        return shard, {name: span for name, span in row.spans.items() if name in names}
