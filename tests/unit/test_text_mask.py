"""Captions shortened at random: what stays, by seed and position alone."""

import numpy as np
import pytest
import torch

from train.data.text_mask import TextMask, shorten_texts

START, END = 900, 999
NUM, LONG, SHORT = 2000, 20, 8


def captions(lengths):
    """Rows of a start, 1, 2, 3 ..., an end and zeros, so that a token says where it stood."""
    tokens = torch.zeros(len(lengths), LONG, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, 0], tokens[row, length - 1] = START, END
        tokens[row, 1 : length - 1] = torch.arange(1, length - 1)
    return tokens, torch.tensor(lengths)


def shortened(mask, lengths, positions=None, seed=3):
    positions = np.arange(len(lengths)) if positions is None else positions
    return shorten_texts(*captions(lengths), positions, mask=mask, context_length=SHORT, seed=seed)


@pytest.mark.parametrize("mask", [TextMask.random, TextMask.block])
def test_words_stay_in_order_between_the_marks_and_each_is_as_likely(mask):
    tokens, lengths = shortened(mask, [LONG] * NUM)
    assert tokens.shape == (NUM, SHORT)
    assert (lengths == SHORT).all()
    assert (tokens[:, 0] == START).all()
    assert (tokens[:, -1] == END).all()
    words = tokens[:, 1:-1]
    steps = words.diff(dim=1)
    assert (steps >= 1).all()
    if mask is TextMask.block:
        assert (steps == 1).all()
        # 18 words and 6 kept: 13 places to begin, each 154 times of 2,000 with a deviation of 12.
        counts = torch.bincount(words[:, 0], minlength=14)[1:14]
        assert (counts - NUM / 13).abs().max() < 60
    else:
        # Each of 18 words is kept with chance 1/3: 667 times of 2,000 with a deviation of 21.
        counts = torch.bincount(words.flatten(), minlength=19)[1:]
        assert (counts - NUM / 3).abs().max() < 105


@pytest.mark.parametrize("mask", [TextMask.random, TextMask.block])
def test_captions_that_fit_are_as_they_were(mask):
    given, _ = captions([2, 5, SHORT, 3])
    tokens, lengths = shortened(mask, [2, 5, SHORT, 3])
    assert torch.equal(tokens, given[:, :SHORT])
    assert lengths.tolist() == [2, 5, SHORT, 3]
    # One token too many: words 1 to 7 of which six stay.
    tokens, lengths = shortened(mask, [SHORT + 1])
    assert lengths.tolist() == [SHORT]
    assert len(set(tokens[0, 1:-1].tolist()) & set(range(1, 8))) == 6


@pytest.mark.parametrize("mask", [TextMask.random, TextMask.block])
def test_what_stays_follows_from_seed_and_position_alone(mask):
    lengths = [LONG, 12, LONG, 15, 9, LONG]
    tokens, _ = shortened(mask, lengths)
    torch.manual_seed(123)  # open_clip's masks would draw from this
    order = np.array([4, 1, 5, 0])
    again, _ = shortened(mask, [lengths[row] for row in order], positions=order)
    assert torch.equal(again, tokens[order])
    other_seed, _ = shortened(mask, [LONG] * 50, seed=4)
    other_place, _ = shortened(mask, [LONG] * 50, positions=np.arange(50) + 50)
    same, _ = shortened(mask, [LONG] * 50)
    assert not torch.equal(other_seed, same)
    assert not torch.equal(other_place, same)
