"""A training step on a GPU, without one: nothing mixes devices, and nothing makes the host wait for the device."""

import functools

import pytest
import torch
from fake_cuda import DEVICE, Traffic, fake_cuda, move_to_fake_cuda, real_tensors
from train_settings import TWO_EPOCHS, train_settings

from crawl2clip.distributed import World
from train import session as session_module
from train import step as step_module
from train.config import make_plan
from train.data.decode import BAD_SAMPLE_REASONS
from train.data.sample_reader import Batch
from train.model import packed_attention
from train.session import Session, open_session
from train.stages import stage_of

ROWS = 8
VOCABULARY = 49408


def captions(longest: int) -> torch.Tensor:
    """int64 [ROWS, longest], of 3 to `longest` tokens."""
    tokens = torch.zeros(ROWS, longest, dtype=torch.int64)
    for row in range(ROWS):
        length = 3 + row * (longest - 3) // (ROWS - 1)
        tokens[row, 1 : length - 1] = 5
        tokens[row, 0], tokens[row, length - 1] = VOCABULARY - 2, VOCABULARY - 1
    return tokens


class SentNumbers:
    """In place of step.Reading, which starts a copy to the host and an event: only that all is on the device."""

    def __init__(self, step: int, lr: float, numbers: torch.Tensor, norm_names: list[str]) -> None:
        assert numbers.device == DEVICE
        assert numbers.dtype == torch.float64
        assert len(numbers) == 7 + len(BAD_SAMPLE_REASONS) + len(norm_names)


def open_on_cuda(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Session:
    """A session whose weights are on the fake device; call it within fake_cuda."""
    config = train_settings(*TWO_EPOCHS, "device=cuda", "safety.norms_every_steps=2", *overrides)
    stage = stage_of(make_plan(config, 8 * ROWS, 1).stages, 1)
    towers = session_module.Towers
    real_build, real_init = session_module.build_model, towers.__init__

    def build(*args):
        with real_tensors():
            return real_build(*args)

    def init(*args):
        with real_tensors():
            real_init(*args)

    monkeypatch.setattr(session_module, "build_model", build)
    monkeypatch.setattr(towers, "__init__", init)
    monkeypatch.setattr(towers, "to", move_to_fake_cuda)
    monkeypatch.setattr(step_module, "Reading", SentNumbers)
    session = open_session(config, stage, None, None, World(0, 1, 0, DEVICE), lambda *_: None)
    step = session.train_step
    monkeypatch.setattr(step, "texts_of", functools.partial(lay_out, step.texts_of))
    return session


def lay_out(texts_of, fake_tokens):
    """What `texts_of` would do with the numbers of these tokens: captions as long as there is room for."""
    rows, longest = fake_tokens.shape
    with real_tensors():
        return texts_of(captions(longest)[:rows])


def batch_of(session: Session, longest: int = 9) -> Batch:
    size = session.stage.image_size
    with real_tensors():
        numbers = torch.arange(ROWS)
        images = torch.zeros(ROWS, 3, size, size, dtype=torch.uint8)
        return Batch(images, captions(longest), numbers, numbers, numbers).pin_memory()


def take_steps(session: Session, count: int) -> Traffic:
    """What went to the device in all steps but the first, which may bring constants there."""
    for number in range(count):
        if number < 2:
            traffic = Traffic()
        with traffic:
            session.train_step(batch_of(session), number + 1, stop=False, save=False)
    if session.ema is not None:
        session.ema.update(session.strategy.plain(session.model), count)
    return traffic


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16"],
        ["precision=tf32"],
        ["precision=fp16"],
        ["precision=bf16", "augment=photos", "data.decode_size=40", "ema=standard"],
        ["precision=bf16", "loss=sigmoid", "+model.architecture.init_logit_bias=-10"],
        ["precision=fp16", "train.accumulation_steps=2", "compute.activation_checkpointing=full"],
        ["precision=bf16", "compute.activation_checkpointing=selective"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_step_stays_on_the_device_and_never_waits(overrides, monkeypatch):
    with fake_cuda(monkeypatch):
        traffic = take_steps(open_on_cuda(monkeypatch, *overrides), 3)
    assert traffic.num_copies >= 2 * 3  # of two steps: images, positions, captions
    assert traffic.waits == []


@pytest.mark.parametrize("optimizer", ["lion", "lamb", "stable_adamw", "muon"])
def test_other_optimizers_wait_once_for_whether_to_step(optimizer, monkeypatch):
    with fake_cuda(monkeypatch):
        traffic = take_steps(open_on_cuda(monkeypatch, "precision=bf16", f"optimizer={optimizer}"), 3)
    assert traffic.waits == ["a number of shape [] is read"] * 2


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "padded"])
def test_compiled_blocks_are_traced_once_for_all_lengths(kernel, monkeypatch):
    monkeypatch.setattr(packed_attention, "has_kernel", lambda *_: kernel)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with fake_cuda(monkeypatch):
        session = open_on_cuda(
            monkeypatch, "precision=bf16", "compute=compiled", "model.architecture.vision_cfg.layers=3",
            "model.architecture.text_cfg.layers=3", "model.architecture.text_cfg.context_length=77",
        )  # fmt: skip
        graphs = []
        for number, longest in enumerate((20, 9, 77, 40, 12), 1):
            session.train_step(batch_of(session, longest), number, stop=False, save=False)
            graphs.append(counters["stats"]["unique_graphs"])
    # A block whose rows come in bfloat16 and one with float32, and the last block of either tower.
    assert graphs == [4] * 5
    assert not counters["graph_break"]


def test_packed_captions_take_flash_attention_though_torch_prefers_cudnn_on_hopper(monkeypatch):
    from torch.nn.attention import varlen

    select, chosen = varlen._select_backend, []

    def note(*arguments, **named):
        chosen.append(select(*arguments, **named))
        return chosen[-1]

    monkeypatch.setattr(varlen, "_select_backend", note)
    with fake_cuda(monkeypatch):
        take_steps(open_on_cuda(monkeypatch, "precision=bf16"), 1)
    assert set(chosen) == {varlen._FLASH_ATTENTION_BACKEND}
