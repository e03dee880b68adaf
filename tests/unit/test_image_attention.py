"""The lean image tower against open_clip's own: features and every gradient, in float64."""

import copy
from typing import Any

import open_clip
import pytest
import torch

from crawl2clip.image_attention import install, reads_class_token

TOWERS = {
    "plain": {},
    "layer_scale": {"ls_init_value": 0.1},
    "patch_dropout": {"patch_dropout": 0.5},
    "mean_of_patches": {"pool_type": "avg"},
    "norm_after_pooling": {"final_ln_after_pool": True},
    "no_norm_before": {"no_ln_pre": True},
    "attention_pooling": {"attentional_pool": True, "attn_pooler_heads": 2, "attn_pooler_queries": 4},
    "one_layer": {"layers": 1},
}


def tiny(**vision: Any) -> Any:
    torch.manual_seed(0)
    towers: dict[str, Any] = {
        "vision_cfg": {
            "layers": 3,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "image_size": 24,
            **vision,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 60, "width": 16, "heads": 2, "layers": 1},
    }
    return open_clip.CLIP(embed_dim=24, **towers, output_dict=True).double()


def features_and_gradients(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    images = torch.randn(5, 3, 24, 24, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    torch.manual_seed(2)  # of patch dropout
    features = model.encode_image(images, normalize=True)
    (features * torch.arange(features.numel(), dtype=torch.float64).view_as(features).cos()).sum().backward()
    gradients = {name: p.grad for name, p in model.visual.named_parameters() if p.grad is not None}
    assert images.grad is not None
    return features.detach(), {**gradients, "images": images.grad}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
def test_features_and_gradients_are_those_of_open_clip(tower, training):
    model = tiny(**TOWERS[tower]).train(training)
    lean = copy.deepcopy(model)
    install(lean)
    (features, gradients), (expected, expected_gradients) = map(features_and_gradients, (lean, model))
    # Sums in another order: float64 rounding of some hundred terms.
    torch.testing.assert_close(features, expected, rtol=1e-12, atol=1e-13)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12, msg=name)


def rows_through_the_last_mlp(model: Any) -> int:
    seen = []
    mlp = model.visual.transformer.resblocks[-1].mlp
    hook = mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    features_and_gradients(model)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize(("vision", "rows"), [({}, 1), ({"pool_type": "avg"}, 10)])
def test_the_last_block_computes_the_class_token_alone_where_nothing_else_is_read(vision, rows):
    model = tiny(**vision)
    assert reads_class_token(model) is (rows == 1)
    install(model)
    assert rows_through_the_last_mlp(model) == rows


def test_a_tower_that_gives_out_every_token_computes_every_token():
    model = tiny()
    model.visual.output_tokens = True
    assert not reads_class_token(model)


def test_a_copy_works_on_its_own_weights():
    model = tiny()
    install(model)
    before, _ = features_and_gradients(model)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.visual.parameters():
            parameter.mul_(1.5)
    assert torch.equal(features_and_gradients(model)[0], before)
    assert not torch.allclose(features_and_gradients(changed)[0], before)


def test_names_of_parameters_and_other_towers_stay():
    model = tiny()
    names = list(model.state_dict())
    install(model)
    assert list(model.state_dict()) == names
    resnet = tiny(layers=[1, 1, 1, 1], width=8, image_size=32)
    install(resnet)
    assert not reads_class_token(resnet)
    resnet.encode_image(torch.zeros(2, 3, 32, 32, dtype=torch.float64))


def test_attention_that_asks_for_more_is_open_clips():
    model = tiny()
    attention = model.visual.transformer.resblocks[0].attn
    rows = torch.randn(2, 4, 32, dtype=torch.float64)
    expected = attention(rows, rows, rows, need_weights=True)
    install(model)
    for got, wanted in zip(attention(rows, rows, rows, need_weights=True), expected, strict=True):
        torch.testing.assert_close(got, wanted)
