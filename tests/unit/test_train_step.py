"""The numbers of a step, and signals."""

import os
import signal

import torch

from train.data.decode import BAD_SAMPLE_REASONS
from train.model.packed_text import pack_texts
from train.step import Reading, StepNumbers, num_tokens
from train.stop_signal import STOPPED_EXIT_CODE, StopRequest


def test_a_reading_gives_back_what_the_step_measured():
    bad_draws = dict.fromkeys(BAD_SAMPLE_REASONS, 0) | {"undecodable": 2, "empty_caption": 1}
    measured = torch.tensor(
        [1.25, 1.0, 0.0, 34.0, *bad_draws.values(), 0.75, 14.0, 1.0, 7.0], dtype=torch.float64
    )
    assert Reading(3, 0.5, measured, ["grad_norm/rest"]).values() == StepNumbers(
        step=3, lr=0.5, loss=1.25, grad_norm=0.75, logit_scale=14.0, skipped=True, bad_draws=bad_draws,
        text_tokens=34, stop=True, save=False, norms={"grad_norm/rest": 7.0},
    )  # fmt: skip


def test_tokens_are_counted_as_they_are_computed():
    tokens = torch.tensor([[5, 6, 9, 0], [5, 9, 0, 0]])
    assert num_tokens(tokens) == 8
    assert num_tokens(pack_texts(tokens, torch.tensor([3, 2]))) == 5


def test_a_signal_is_noted_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as request:
        assert request.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) == before
    assert STOPPED_EXIT_CODE == 75
