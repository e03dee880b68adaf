"""The fused half of an MLP against open_clip's own layers, and the models that it leaves alone."""

import copy
from typing import Any

import open_clip
import pytest
import torch

from crawl2clip import fused_mlp, image_attention


def tiny(quick_gelu: bool = False, **text: Any) -> Any:
    torch.manual_seed(0)
    vision: Any = {"layers": 3, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 24}
    towers: Any = {"context_length": 12, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2, **text}
    return open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=towers, quick_gelu=quick_gelu).eval()


def changed(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def features(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(1)
    images = torch.randn(5, 3, 24, 24, generator=made)
    texts = torch.randint(1, 59, (7, 12), generator=made)
    with torch.inference_mode():
        return model.encode_image(images), model.encode_text(texts)


@pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch was built without oneDNN"
)
@pytest.mark.parametrize("lean_attention", [False, True])
def test_both_towers_give_the_same_features(lean_attention):
    model = tiny()
    fused = copy.deepcopy(model)
    if lean_attention:
        image_attention.install(fused)
    fused_mlp.install(fused)
    mlps = [name for name in changed(fused) if name.endswith(".mlp")]
    assert len(mlps) == 5
    assert changed(model) == []
    for found, expected in zip(features(fused), features(model), strict=True):
        # Float32 sums of at most 256 terms in another order.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_a_product_and_gelu_are_those_of_float64():
    model = tiny()
    fused_mlp.install(model)
    mlp = model.visual.transformer.resblocks[0].mlp
    x = torch.randn(3, 10, 64, generator=torch.Generator().manual_seed(2)) * 4
    with torch.inference_mode():
        exact = torch.nn.Sequential.forward(copy.deepcopy(mlp).double(), x.double())
        torch.testing.assert_close(mlp(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_other_activations_are_left_alone():
    model = tiny(quick_gelu=True)  # OpenAI's weights: x * sigmoid(1.702 x), which oneDNN does not have
    fused_mlp.install(model)
    assert changed(model) == []
    model = tiny(act_kwargs={"approximate": "tanh"})  # of the text tower
    fused_mlp.install(model)
    assert all(name.startswith("visual.") for name in changed(model))


def test_a_torch_without_the_operator_changes_nothing(monkeypatch):
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    model = tiny()
    fused_mlp.install(model)
    assert changed(model) == []
