"""Captions shortened to a stage's length by leaving tokens out at random, not at their end.

CLIPA compares four ways to shorten text (Li et al. 2023, An inverse scaling law for CLIP training):
cutting, random masking, block masking and syntax masking. Cutting needs nothing, and syntax masking needs a tagger of
parts of speech; the other two are here. open_clip's draw from global random state, so a run that was interrupted goes
on with other tokens; here they follow from (seed, position), as all that is random about a sample does.
"""

from collections.abc import Callable
from enum import Enum

import numpy as np
import torch

from train.data.sample_order import uniforms

_STREAM = 4  # of random numbers, beside those of sample_reader

ShortenTexts = Callable[[torch.Tensor, torch.Tensor, np.ndarray], tuple[torch.Tensor, torch.Tensor]]
"""Text tokens [B, L], their lengths [B] and the positions [B] of their rows to shorter ones: tokens and lengths."""


class TextMask(str, Enum):
    """What is left of a caption that is longer than a stage's context."""

    cut = "cut"  # its first tokens
    random = "random"  # tokens anywhere in it, in their order
    block = "block"  # tokens side by side, from anywhere in it


def shorten_texts(
    text_tokens: torch.Tensor,
    text_lengths: torch.Tensor,
    positions: np.ndarray,
    *,
    mask: TextMask,
    context_length: int,
    seed: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Captions in at most `context_length` tokens; the marks of start and end always stay.

    Args:
        text_tokens: int64 [B, L], each begins with the start and ends, at its length, with the end of text.
        text_lengths: int64 [B], up to and with the end of text.
        positions: int64 [B], places in the run's stream of samples.
        mask: random or block.
        context_length: 3 or more.
        seed: of the run.

    Returns:
        int64 [B, min(L, context_length)] and [B]; shorter captions are as they were.
    """
    width = min(text_tokens.shape[1], context_length)
    shortened, lengths = text_tokens[:, :width].clone(), text_lengths.clamp(max=width)
    rows = (text_lengths > width).nonzero().squeeze(1)
    if not len(rows):
        return shortened, lengths
    kept, words = width - 2, text_lengths[rows] - 2
    if mask is TextMask.block:
        u = torch.from_numpy(uniforms(seed, positions[rows.numpy()], _STREAM, 1))
        first = (u[:, 0] * (words - kept + 1)).long()
        chosen = first[:, None] + torch.arange(kept)
    else:
        u = torch.from_numpy(uniforms(seed, positions[rows.numpy()], _STREAM, text_tokens.shape[1] - 2))
        u[torch.arange(u.shape[1]) >= words[:, None]] = (
            2.0  # beyond the caption's end: never among the smallest
        )
        chosen = u.argsort(dim=1)[:, :kept].sort(dim=1).values
    shortened[rows, 1 : width - 1] = text_tokens[rows].gather(1, chosen + 1)  # after the start
    shortened[rows, width - 1] = text_tokens[rows, text_lengths[rows] - 1]
    return shortened, lengths
