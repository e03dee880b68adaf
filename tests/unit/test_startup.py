"""What a step and a run cost, counting what trains and who else computes."""

import pytest
import torch
from train_settings import TWO_EPOCHS, train_settings

from crawl2clip.models import ModelConfig
from train.config import make_plan
from train.model.flops import pair_flops
from train.startup import Flops, budget_of

B32, L14 = ModelConfig(name="ViT-B-32"), ModelConfig(name="ViT-L-14")
GFLOP = 1e9


def test_a_tower_that_is_frozen_goes_forward_only():
    flops = Flops()
    image, text = flops.forward(L14, 77).image / GFLOP, flops.forward(L14, 77).text / GFLOP
    assert image + text == pytest.approx(175.3, abs=0.1)  # open_clip's docs/model_profile.csv
    assert flops.training(L14, 77, (True, True)) / GFLOP == pytest.approx(3 * (image + text))
    assert flops.training(L14, 77, (False, True)) / GFLOP == pytest.approx(image + 3 * text)


def test_a_teacher_goes_forward_on_padded_captions():
    alone, taught = (flops.training(B32, 18, (True, True)) / GFLOP for flops in (Flops(), Flops(L14)))
    assert taught - alone == pytest.approx(175.3, abs=0.1)


def budget(*overrides):
    config = train_settings(*TWO_EPOCHS, *overrides)
    return budget_of(config, make_plan(config, 80, 1), torch.device("cpu"))


def eflop(text):
    return float(text.split(" EFLOP")[0])


def test_the_budget_of_a_run_by_hand():
    tiny = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    pair = pair_flops(tiny, text_tokens=16)  # 18 tokens are assumed, and 16 there is room for
    text = budget()
    assert "at 18 tokens a caption" in text
    assert eflop(text) == pytest.approx(2 * 80 * pair.training() / 1e18, rel=1e-3)
    locked = budget("optimizer.rules=[{match: 'visual.*', freeze: true}]")
    assert eflop(locked) == pytest.approx(2 * 80 * pair.training(image_trains=False) / 1e18, rel=1e-3)


def test_captions_that_are_padded_cost_their_padding():
    text = budget("model=siglip_b_16", "loss=sigmoid")
    assert "with padded captions" in text
