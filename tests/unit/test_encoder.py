"""Encoder: captions cut to the longest of a batch, features before the projection, the temperature."""

import copy

import open_clip
import pytest
import torch

from crawl2clip.encoder import Encoder, encoder_of, like_lengths
from crawl2clip.errors import ConfigError
from crawl2clip.image_tower import encode_with_penultimate, no_penultimate
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.text_tower import cuts, encode_cut, reads_padding, text_tower

VISION = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
TIMM = {"timm_model_name": "resnet10t", "timm_model_pretrained": False, "timm_pool": "avg", "image_size": 64}
CAPTIONS = [
    "a",
    "a photo of a cat on the mat",
    "two dogs",
    "a",
    "",
    "one two three four five six seven eight nine ten",
]


def made(*, text=None, vision=None, custom=False, **more) -> Encoder:
    torch.manual_seed(0)
    architecture = {
        "embed_dim": 24,
        "vision_cfg": vision or VISION,
        "text_cfg": {**TEXT, **(text or {})},
        **more,
    }
    if custom:
        architecture["custom_text"] = True
    config = ModelConfig(name="tiny", architecture=architecture)
    return encoder_of(build_model(config).eval(), config)


CUT = {
    "clip": {},
    "no_projection": {"text": {"proj_type": "none", "width": 24}},
    "linear_projection": {"text": {"proj_bias": True}, "custom": True},
    "custom": {"custom": True},
    "eos": {"text": {"pool_type": "eos", "eos_id": 49407}, "custom": True},
    "quick_gelu": {"quick_gelu": True},
}


@pytest.mark.parametrize("name", CUT)
def test_captions_cut_to_the_longest_of_a_batch_have_the_features_of_whole_ones(name):
    encoder = made(**CUT[name])
    encoder.model.double()
    tokens = encoder.tokenizer(CAPTIONS)
    whole = encoder.model.encode_text(tokens)
    lengths = encoder.text_lengths(CAPTIONS)
    assert max(lengths) < 24
    # In float64 a feature that depended on the padding would differ by far more than rounding, 1e-15 a sum.
    torch.testing.assert_close(
        encode_cut(encoder.model, tokens[:, : max(lengths)]), whole, atol=1e-12, rtol=0
    )
    encoder.model.float()
    seen = []
    with torch.no_grad():
        expected = torch.nn.functional.normalize(encoder.model.encode_text(tokens), dim=-1)
        embedding = text_tower(encoder.model).token_embedding
        handle = embedding.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        found = encoder.encode_texts(CAPTIONS, batch_size=2)
        handle.remove()
    # float32: unit features, a handful of roundings of 6e-8 each in other matrix shapes.
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    ordered = sorted(encoder.text_lengths(list(dict.fromkeys(CAPTIONS))))  # five distinct ones
    assert seen == [(2, ordered[1]), (2, ordered[3]), (1, ordered[4])]


@pytest.mark.parametrize(("precision", "digits"), [("bf16", 8), ("fp16", 11)])
def test_a_lower_precision_moves_features_by_its_rounding(precision, digits):
    """Of the towers' arithmetic; features are float32 and of unit length in any case."""
    exact = made()
    lower = Encoder(exact.model, exact.name, exact.architecture, device="cpu", precision=precision)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for whole, found in (
        (exact.encode_images(images), lower.encode_images(images)),
        (exact.encode_texts(CAPTIONS), lower.encode_texts(CAPTIONS)),
    ):
        assert found.dtype == torch.float32
        assert torch.allclose(found.norm(dim=1), torch.ones(len(found)), atol=1e-6)
        assert (
            0 < float((found - whole).abs().max()) < 16 * 2.0**-digits
        )  # two layers of a few roundings each


def test_batches_end_where_lengths_rise_and_at_their_size():
    lengths = [3] * 20 + [4] * 20 + [5] * 100 + [9]
    batches = like_lengths(lengths, 64)
    assert [(s.start, s.stop) for s in batches] == [(0, 40), (40, 104), (104, 140), (140, 141)]
    assert [(s.start, s.stop) for s in like_lengths([7, 7, 7], 2)] == [(0, 2), (2, 3)]


PADDED = {
    "not_causal": ({"text": {"no_causal_mask": True, "pool_type": "last"}, "custom": True}, "not causal"),
    "last": (
        {"text": {"pool_type": "last"}, "custom": True},
        "pool_type 'last' reads the output at the padding",
    ),
    "class_token": ({"text": {"embed_cls": True}, "custom": True}, "class token comes after the padding"),
}


@pytest.mark.parametrize("name", PADDED)
def test_a_tower_that_reads_the_padding_gets_all_of_it(name):
    settings, reason = PADDED[name]
    encoder = made(**settings)
    assert reason in str(reads_padding(encoder.model))
    assert not cuts(encoder.model)
    assert set(encoder.text_lengths(["a", "a cat"])) == {24}
    tokens = encoder.tokenizer(["a", "a cat"])
    with torch.no_grad():
        expected = encoder.model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(encoder.encode_texts(["a", "a cat"]), expected, atol=1e-6, rtol=0)


def test_a_sharded_tower_is_not_cut():
    model = made().model

    class Sharded(torch.nn.Parameter):
        """As DTensor is, to the eye of `cuts`."""

    model.positional_embedding = Sharded(model.positional_embedding.detach())
    assert not cuts(model)
    partitioned = made().model
    partitioned.positional_embedding = torch.nn.Parameter(torch.empty(0))  # what ZeRO-3 leaves of a parameter
    assert not cuts(partitioned)


@pytest.mark.parametrize("vision", ["vit", "timm"])
def test_features_before_the_projection_give_those_after_it(vision):
    encoder = made(vision=VISION if vision == "vit" else TIMM)
    images = torch.randn(3, 3, encoder.image_size, encoder.image_size)
    after, before = encoder.encode_images_twice(images)
    assert torch.equal(after, encoder.encode_images(images))
    assert before.dtype == torch.float32
    visual = encoder.model.visual
    with torch.no_grad():
        projected = before @ visual.proj if vision == "vit" else visual.head(before)
        if vision == "vit":
            assert before.shape == (3, 32)
        else:
            assert torch.equal(before, visual.trunk(images))
    torch.testing.assert_close(torch.nn.functional.normalize(projected, dim=-1), after, atol=1e-6, rtol=0)


def test_the_projection_is_back_after_an_error():
    encoder = made()
    projection = encoder.model.visual.proj
    with pytest.raises(RuntimeError):
        encode_with_penultimate(encoder.model, torch.randn(1, 3, 7, 7, 7))
    assert encoder.model.visual.proj is projection
    assert "proj" in dict(encoder.model.visual.named_parameters())


def test_coca_has_features_before_its_projection():
    text = {"width": 32, "heads": 2, "layers": 1, "context_length": 8, "vocab_size": 60}
    pooler = {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    model = open_clip.CoCa(
        embed_dim=24,
        multimodal_cfg={**text, "width": 24},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg={**VISION, **pooler, "output_tokens": True},
    ).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        after, before = encode_with_penultimate(model, images)
        assert torch.equal(after, model.encode_image(images, normalize=False))
    assert before.shape == (2, 24)


def test_a_tower_without_features_before_a_projection_says_so():
    encoder = made(vision={**VISION, "layers": [1, 1, 1, 1], "width": 8})
    with pytest.raises(
        ConfigError,
        match=r"before the projection were asked for, and tiny has none: its image tower is a ModifiedResNet, which "
        r"pools and projects in one step; use a ViT or a timm tower with a projection, or features=projected",
    ):
        encoder.encode_images_twice(torch.randn(1, 3, 32, 32))
    assert "timm tower has no projection" in str(no_penultimate(made(vision={**TIMM, "timm_proj": ""}).model))
    assert "timm tower pools and projects" in str(
        no_penultimate(made(vision={**TIMM, "timm_pool": "abs_attn", "timm_proj": ""}).model)
    )
    bare = copy.deepcopy(made().model)
    bare.visual.proj = None
    assert "its image tower has no projection" in str(no_penultimate(bare))
    sharded = made().model
    sharded.visual.proj = torch.nn.Parameter(torch.empty(0))
    assert "sharded over ranks" in str(no_penultimate(sharded))


def test_the_temperature_is_the_models_own():
    encoder = made()
    with torch.no_grad():
        encoder.model.logit_scale.fill_(2.0)
    assert encoder.logit_scale == pytest.approx(7.389056, abs=1e-5)
    del encoder.model.logit_scale
    assert encoder.logit_scale is None


def test_no_texts_have_no_lengths():
    assert made().text_lengths([]) == []
