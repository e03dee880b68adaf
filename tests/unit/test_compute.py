"""Blocks found in any model; checkpointed and compiled blocks give the outputs and gradients of plain ones."""

import copy
import logging
from contextlib import contextmanager

import pytest
import torch
from omegaconf import OmegaConf
from timm.layers.drop import DropPath
from torch import nn

from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError
from train.model.compute import (
    ActivationCheckpointing,
    Compile,
    ComputeConfig,
    apply_compute,
    blocks_of,
    check_repeatable,
    statistics_kept,
)


def config(compile="none", activation_checkpointing="none"):
    return ComputeConfig(
        compile=Compile[compile], activation_checkpointing=ActivationCheckpointing[activation_checkpointing]
    )


class Block(nn.Module):
    """A transformer block with dropout and attention, as HF's and timm's have."""

    def __init__(self, width=32, dropout=0.2):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, dropout=dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, mask=None):
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, normed, attn_mask=mask, need_weights=False)[0])
        return x + self.dropout(self.mlp(self.norm(x)))


class Convolutions(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.path = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    def forward(self, x):
        return x + self.path(x)


class TextTower(nn.Module):
    def __init__(self, depth=3, dropout=0.2):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dropout=dropout) for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x, mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1))
        return x


@contextmanager
def bytes_kept():
    """Bytes that the code inside leaves allocated, as a list of one number that is filled at the end."""
    kept = []
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        yield kept
    kept.append(sum(event.self_cpu_memory_usage for event in profiler.key_averages()))


def run(model, x, steps=1):
    """Outputs, parameter gradients by name and bytes kept for backward of a seeded forward and backward."""
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        torch.manual_seed(3)
        with bytes_kept() as kept:
            output = model(x)
        output.square().sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}, kept[0]


def make(build, compute=None):
    torch.manual_seed(0)
    model = build()
    names = list(model.state_dict())
    if compute is not None:
        apply_compute(model, compute)
    assert list(model.state_dict()) == names  # nothing is renamed
    return model


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_gradients_equal_plain_ones_bit_for_bit_with_dropout_and_keep_less(mode):
    x = torch.randn(4, 16, 32)
    output, gradients, kept = run(make(TextTower), x)
    checked_output, checked, checked_kept = run(make(TextTower, config(activation_checkpointing=mode)), x)
    assert torch.equal(output, checked_output)
    assert all(torch.equal(gradients[name], checked[name]) for name in gradients)
    assert checked_kept < (0.75 if mode == "selective" else 0.25) * kept


def test_selective_keeps_more_than_full():
    x = torch.randn(4, 16, 32)
    kept = {
        mode: run(make(TextTower, config(activation_checkpointing=mode)), x)[2]
        for mode in ("selective", "full")
    }
    assert kept["selective"] > kept["full"]


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_batch_statistics_take_in_each_batch_once(mode):
    def build():
        return nn.ModuleDict({"visual": nn.Sequential(Convolutions(), Convolutions())})

    x = torch.randn(4, 8, 5, 5)
    plain, checked = make(build), make(build, config(activation_checkpointing=mode))
    for model in (plain, checked):
        model["visual"](x).square().sum().backward()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, checked.state_dict()[name]), name
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, checked.get_parameter(name).grad), name


def test_statistics_kept_leaves_running_statistics_and_momentum():
    norm = nn.Sequential(nn.BatchNorm1d(3, momentum=None))
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with statistics_kept(norm):
        kept = norm(torch.randn(5, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in norm.state_dict().items())
    assert norm[0].momentum is None
    norm(torch.randn(5, 3))
    assert norm[0].num_batches_tracked == 1
    assert abs(kept.mean()) < 1e-6  # normalised by the batch's own statistics


def test_a_replaced_forward_is_what_gets_checkpointed():
    model = make(TextTower)
    model.blocks[1].forward = lambda x, mask=None: 2 * x
    apply_compute(model, config(activation_checkpointing="full"))
    x = torch.randn(2, 4, 32, requires_grad=True)
    torch.testing.assert_close(model.blocks[1](x), 2 * x)


def test_blocks_run_plain_without_gradients():
    model = make(TextTower, config(activation_checkpointing="full")).eval()
    with torch.no_grad(), torch.profiler.profile() as profiler:
        model(torch.randn(2, 4, 32))
    assert not any("checkpoint" in event.key.lower() for event in profiler.key_averages())


VIT = {"patch_size": 16, "layers": 3, "head_width": 16, "width": 32}
TIMM = {"timm_model_pretrained": False, "timm_pool": "", "timm_proj": "linear"}
TOWERS = {
    "ViT": (VIT, [f"transformer.resblocks.{i}" for i in range(3)]),
    "ResNet": (
        {"layers": [1, 2, 1, 1], "width": 64},
        ["layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer4.0"],
    ),
    "timm ConvNeXt": (
        {"timm_model_name": "convnext_atto", **TIMM},
        [
            f"trunk.stages.{stage}.blocks.{i}"
            for stage, depth in enumerate((2, 2, 6, 2))
            for i in range(depth)
        ],
    ),
    "timm ViT": (
        {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, **TIMM},
        [f"trunk.blocks.{i}" for i in range(12)],
    ),
}


@pytest.mark.parametrize("tower", TOWERS)
def test_blocks_of_open_clip_models(tower):
    import open_clip

    vision, expected = TOWERS[tower]
    text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=16, vision_cfg={"image_size": 32, **vision}, text_cfg=text)
    names = [f"visual.{name}" for name in expected] + [f"transformer.resblocks.{i}" for i in range(2)]
    assert list(blocks_of(model)) == names


def test_blocks_of_a_hugging_face_text_tower():
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.RobertaModel(
        transformers.RobertaConfig(vocab_size=32, **shape), add_pooling_layer=False
    )
    blocks = blocks_of(nn.ModuleDict({"text": nn.ModuleDict({"transformer": model})}))
    assert list(blocks) == [f"text.transformer.encoder.layer.{i}" for i in range(3)]
    tokens = torch.randint(0, 32, (2, 5))
    expected = model.eval()(tokens).last_hidden_state
    apply_compute(model, config(activation_checkpointing="full"))
    torch.testing.assert_close(model(tokens).last_hidden_state, expected, rtol=0, atol=0)


def test_a_model_without_blocks_is_left_and_said_so(caplog):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with caplog.at_level(logging.WARNING):
        apply_compute(model, config("block", "full"))
    assert "no repeated blocks found in Sequential" in caplog.text
    assert "forward" not in model[0].__dict__


@pytest.mark.parametrize(("compile", "mode"), [("block", "none"), ("none", "full")])
def test_dropout_in_micro_batches_needs_one_of_the_two_off(compile, mode):
    check_repeatable(TextTower(dropout=0.0), config("block", "full"))
    check_repeatable(TextTower(), config(compile, mode))
    with pytest.raises(ConfigError, match=r"accumulation_steps above 1 .* block blocks.0 drops out"):
        check_repeatable(TextTower(), config("block", "full"))


def test_depth_that_is_dropped_is_dropout_too():
    block = nn.Sequential(nn.Linear(32, 32), DropPath(0.1))
    model = nn.ModuleDict({"visual": nn.Sequential(block, copy.deepcopy(block))})
    with pytest.raises(ConfigError, match="drops out"):
        check_repeatable(model, config("block", "selective"))


def test_compiled_checkpointed_batch_norm_is_refused():
    model = nn.ModuleDict({"visual": nn.Sequential(Convolutions(), Convolutions())})
    with pytest.raises(ConfigError, match=r"block visual.0 has batch norm.*set one of the two"):
        apply_compute(model, config("block", "full"))


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "compute").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_is_a_compute_config(path):
    merged = OmegaConf.merge(OmegaConf.structured(ComputeConfig), OmegaConf.load(path))
    assert isinstance(OmegaConf.to_object(merged), ComputeConfig)
