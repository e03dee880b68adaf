"""Packed captions against padded ones: features and every gradient, in float64."""

import copy
import logging
from typing import Any

import open_clip
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import train.model.packed_attention as packed_attention
from crawl2clip.errors import DataError
from train.model.packed_text import PackedTexts, install, pack_texts, packs, text_lengths
from train.model.towers import Towers

CONTEXT, END = 20, 59

# Both kinds of model, both kinds of block, and every option of the text tower that packing has to know.
ARCHITECTURES = {
    "clip": (open_clip.CLIP, {}, {}),
    "clip_quick_gelu": (open_clip.CLIP, {}, {"quick_gelu": True}),
    "clip_layer_scale": (open_clip.CLIP, {"ls_init_value": 0.1}, {}),
    "clip_no_projection": (open_clip.CLIP, {"proj_type": "none"}, {}),
    "clip_eos": (open_clip.CLIP, {"pool_type": "eos", "eos_id": END}, {}),
    "custom": (open_clip.CustomTextCLIP, {"heads": 1}, {}),
    "custom_linear_projection": (open_clip.CustomTextCLIP, {"proj_bias": True, "pad_id": 7}, {}),
    "custom_blocks": (
        open_clip.CustomTextCLIP,
        {
            "qk_norm": True,
            "scale_heads": True,
            "scale_attn_inner": True,
            "scale_attn": True,
            "scale_fc": True,
        },
        {},
    ),
    "custom_first": (open_clip.CustomTextCLIP, {"pool_type": "first", "layers": 1}, {}),
}


def tiny(name: str = "clip", **text: Any) -> Any:
    kind, options, others = ARCHITECTURES[name]
    text_cfg = {"context_length": CONTEXT, "vocab_size": 60, "width": 32, "heads": 4, "layers": 3}
    vision_cfg = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16}
    torch.manual_seed(0)
    model = kind(
        embed_dim=24,
        vision_cfg=vision_cfg,
        text_cfg={**text_cfg, **options, **text},
        output_dict=True,
        **others,
    )
    return model.double()


def captions(lengths: list[int], seed: int = 1) -> torch.Tensor:
    tokens = torch.randint(1, END - 1, (len(lengths), CONTEXT), generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(lengths):
        tokens[row, length - 1] = END
        tokens[row, length:] = 0
    return tokens


def packed(model: nn.Module, tokens: torch.Tensor) -> PackedTexts:
    return pack_texts(tokens, text_lengths(model, tokens))


def features_and_gradients(model: Any, texts: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    features = model.encode_text(texts, normalize=True)
    weights = torch.arange(features.numel(), dtype=features.dtype).view_as(features).cos()
    (features * weights).sum().backward()
    return features.detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def assert_same(model: Any, reference: Any, tokens: torch.Tensor, tolerance: float = 1e-10) -> None:
    expected, expected_gradients = features_and_gradients(reference, tokens)
    got, gradients = features_and_gradients(model, packed(model, tokens))
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient,
            expected_gradients[name],
            rtol=tolerance,
            atol=tolerance,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.fixture
def clip() -> tuple[Any, Any]:
    reference = tiny()
    model = copy.deepcopy(reference)
    install(model)
    return model, reference


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_and_gradients_are_those_of_the_padded_run(name: str) -> None:
    reference = tiny(name)
    model = copy.deepcopy(reference)
    install(model)
    assert_same(model, reference, captions([2, 20, 5, 5, 3, 9, 14, 20, 2]))


@pytest.mark.parametrize(
    "lengths", [[2], [CONTEXT], [7, 7, 7], [1, 2], [CONTEXT] * 2, list(range(2, CONTEXT + 1))]
)
def test_any_lengths(clip: tuple[Any, Any], lengths: list[int]) -> None:
    assert_same(*clip, captions(lengths))


@pytest.mark.parametrize("name", ["clip", "custom_blocks"])
def test_the_padded_attention_of_gpus_without_the_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_attention, "_attend_by_length", packed_attention._attend_padded)
    reference = tiny(name)
    model = copy.deepcopy(reference)
    install(model)
    assert_same(model, reference, captions([2, 20, 5, 5, 3, 9, 14, 2]))


def test_the_kernel_is_asked_for_causal_attention_within_each_caption(
    clip: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="needs torch 2.10")

    def reference_kernel(q, k, v, starts_q, starts_k, max_q, max_k, *, window_size=(-1, -1)):
        """What its documentation says, one sequence at a time."""
        assert starts_q.dtype == starts_k.dtype == torch.int32
        assert int(starts_q.diff().max()) <= max_q
        assert int(starts_k.diff().max()) <= max_k
        parts = []
        for row in range(len(starts_q) - 1):
            of_q, of_k = (slice(*starts[row : row + 2].tolist()) for starts in (starts_q, starts_k))
            one = [t[s].transpose(0, 1) for t, s in ((q, of_q), (k, of_k), (v, of_k))]
            causal = window_size == (-1, 0)
            parts.append(nn.functional.scaled_dot_product_attention(*one, is_causal=causal).transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(varlen, "varlen_attn", reference_kernel)
    monkeypatch.setattr(packed_attention, "_attend_by_length", packed_attention._attend_in_kernel)
    assert_same(*clip, captions([2, 20, 5, 5, 3, 9, 14, 2]))


def test_the_earliest_kernel_had_no_windows_and_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="needs torch 2.10")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    asked = 0, torch.bfloat16, 64
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, *, window_size=(-1, -1): query)
    assert packed_attention.has_kernel(*asked)
    monkeypatch.setattr(varlen, "varlen_attn", lambda query, *, is_causal=False: query)
    assert not packed_attention.has_kernel(*asked)


def test_float32() -> None:
    reference = tiny().float()
    model = copy.deepcopy(reference)
    install(model)
    # Sums of at most 60 rows in another order: some units of 1e-7 of gradients near 10.
    assert_same(model, reference, captions([2, 20, 5, 5, 3]), tolerance=2e-5)


def test_bfloat16_autocast_is_as_near_the_truth_as_the_padded_run() -> None:
    exact, padded = tiny(), tiny().float()
    model = copy.deepcopy(padded)
    install(model)
    tokens = captions([2, 20, 5, 5, 3])
    features, gradients = features_and_gradients(exact, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        runs = [features_and_gradients(padded, tokens), features_and_gradients(model, packed(model, tokens))]

    def error(run: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> float:
        """Norm of what is wrong with features and gradients, relative to them."""
        pairs = [(run[0], features), *((run[1][name], gradients[name]) for name in gradients)]
        return max(float((got.double() - true).norm() / true.norm()) for got, true in pairs)

    # bfloat16 keeps 8 bits; where a value is rounded differs between the runs, how much is lost does not.
    assert error(runs[0]) < 0.1
    assert error(runs[1]) < 1.3 * error(runs[0])


def test_a_model_in_bfloat16_throughout() -> None:
    from open_clip.model import convert_weights_to_lp

    reference = tiny().float()
    convert_weights_to_lp(reference, torch.bfloat16)
    model = copy.deepcopy(reference)
    install(model)
    tokens = captions([2, 20, 5])
    got, _ = features_and_gradients(model, packed(model, tokens))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, reference.encode_text(tokens, normalize=True), rtol=0.05, atol=0.02)


def test_a_caption_without_end_is_pooled_where_open_clip_pools_it(clip: tuple[Any, Any]) -> None:
    tokens = captions([5, 9, 9])
    tokens[0] = torch.tensor([3, 8, 40, 8, 40, 2] + [0] * (CONTEXT - 6))  # the first of two largest ids
    tokens[1, 4] = END  # the words <end_of_text> in a caption
    assert text_lengths(clip[0], tokens).tolist() == [3, 5, 9]
    assert_same(*clip, tokens)


def test_an_eos_that_is_not_there_pools_the_first_token() -> None:
    reference = tiny("clip_eos")
    model = copy.deepcopy(reference)
    install(model)
    tokens = captions([5, 9])
    tokens[0, 4] = 3
    assert text_lengths(model, tokens).tolist() == [1, 9]
    assert_same(model, reference, tokens)


def test_an_over_long_caption_cut_by_the_tokenizer() -> None:
    tokens = open_clip.SimpleTokenizer(context_length=CONTEXT)(["many words " * 40, "few"])
    reference = tiny(vocab_size=49408)
    model = copy.deepcopy(reference)
    install(model)
    assert text_lengths(model, tokens).tolist() == [CONTEXT, 3]
    assert_same(model, reference, tokens)


def test_padded_tokens_are_untouched(clip: tuple[Any, Any]) -> None:
    model, reference = clip
    tokens = captions([2, 20, 5])
    got, gradients = features_and_gradients(model, tokens)
    expected, expected_gradients = features_and_gradients(reference, tokens)
    assert torch.equal(got, expected)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in expected_gradients)
    assert model.state_dict().keys() == reference.state_dict().keys()


def test_gradients_add_up_over_calls(clip: tuple[Any, Any]) -> None:
    model, reference = clip
    for part in (captions([2, 9]), captions([20, 4, 4], seed=2)):
        model.encode_text(packed(model, part)).sum().backward()
        reference.encode_text(part).sum().backward()
    for got, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-10, atol=1e-10)


def test_a_deep_copy_uses_its_own_weights(clip: tuple[Any, Any]) -> None:
    model, _ = clip
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(copied, tiny(), captions([4, 7]))


@pytest.mark.parametrize("name", ["clip", "custom"])
def test_open_clips_own_activation_checkpointing(name: str) -> None:
    reference = tiny(name)
    model = copy.deepcopy(reference)
    install(model)
    model.set_grad_checkpointing()
    assert_same(model, reference, captions([2, 20, 5]))


def test_compiled_blocks_are_not_compiled_again_for_each_batch(clip: tuple[Any, Any]) -> None:
    from torch._dynamo.testing import CompileCounter

    model, reference = clip
    torch.compiler.reset()
    counter = CompileCounter()
    for block in model.transformer.resblocks:
        block.compile(backend=counter, fullgraph=True)
    counts = []
    for step in range(6):
        lengths = torch.randint(2, CONTEXT + 1, (8,), generator=torch.Generator().manual_seed(step)).tolist()
        assert_same(model, reference, captions(lengths, seed=step))
        counts.append(counter.frame_count)
    torch.compiler.reset()
    assert counts[-1] == counts[2]  # static at first, dynamic once a second size was seen, then never again


class Shapes(TorchFunctionMode):
    """Notes the shape of every result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.append(tuple(result.shape))
        return result


def test_nothing_is_padded(clip: tuple[Any, Any]) -> None:
    model, _ = clip
    texts = packed(model, captions([3, 5, 5, CONTEXT]))
    with Shapes() as shapes:
        model.encode_text(texts)
    rows = 3 + 5 + 5 + CONTEXT
    # Of B captions no tensor has [B, context length] rows, and none has more rows than there are tokens.
    assert not [shape for shape in shapes.seen if shape[:2] == (4, CONTEXT)]
    width_of_mlp = 4 * 32
    assert max(torch.Size(shape).numel() for shape in shapes.seen) <= rows * width_of_mlp
    last_mlp = [shape for shape in shapes.seen if shape == (4, width_of_mlp)]
    assert last_mlp  # the last block's MLP runs on the four end-of-text rows only


def test_what_cannot_be_packed_says_why() -> None:
    def reason(**text: Any) -> str:
        return packs(tiny("custom", **text)) or "packs"

    assert reason() == "packs"
    assert "not causal" in reason(no_causal_mask=True)
    assert "pool_type 'last'" in reason(pool_type="last")
    assert "pool_type 'none'" in reason(pool_type="none")
    assert "class token comes after the padding" in reason(embed_cls=True)
    assert "output_tokens" in reason(output_tokens=True)
    assert "another kind" in reason(scaled_cosine_attn=True)
    model = tiny()
    model.transformer.resblocks[1].attn.dropout = 0.1
    assert "drops out" in (packs(model) or "")
    with pytest.raises(ValueError, match="cannot take packed captions: its pool_type 'last'"):
        install(tiny("custom", pool_type="last"))


def test_every_model_of_the_zoo_is_judged_and_classic_clip_packs() -> None:
    """Built without weights on the meta device."""
    verdicts = {}
    for name in ("ViT-B-32", "RN50", "ViT-H-14-CLIPA", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16"):
        with torch.device("meta"):
            verdicts[name] = packs(open_clip.create_model(name, load_weights=False, device="meta"))
    assert [name for name, reason in verdicts.items() if reason is None] == ["ViT-B-32", "RN50", "EVA02-B-16"]
    assert "decoder" in str(verdicts["coca_ViT-B-32"])


def test_lengths_that_do_not_fit_are_refused() -> None:
    for lengths in ([0, 3], [3, CONTEXT + 1], [3]):
        with pytest.raises(DataError, match=f"give each caption a length from 1 to {CONTEXT}"):
            pack_texts(captions([3, 3]), torch.tensor(lengths))


def test_packed_texts_move_and_count(clip: tuple[Any, Any]) -> None:
    texts = packed(clip[0], captions([3, 5, 4]))
    assert len(texts) == 3
    moved = texts.to("meta", non_blocking=True)
    assert {moved.tokens.device.type, moved.layout.slots.device.type, moved.rank.device.type} == {"meta"}
    assert texts.layout.groups == ((1, 3), (1, 4), (1, 5))


def test_towers_pack_and_give_what_the_model_gives() -> None:
    reference = tiny()
    towers = Towers(copy.deepcopy(reference))
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    tokens = captions([4, 9, 5])
    got = towers(images, towers.texts_of(tokens[:, :9]))
    assert towers.packs
    for name, value in reference(images, tokens).items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)


def test_towers_fall_back_to_the_context_length_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        towers = Towers(tiny("custom", pool_type="last"))
    assert "padded to the context length, because its pool_type 'last'" in caplog.text
    assert towers.text_lengths(captions([4, 9])).tolist() == [CONTEXT, CONTEXT]
    texts = towers.texts_of(captions([4, 9])[:, :9])
    assert isinstance(texts, torch.Tensor)
    assert torch.equal(texts, captions([4, 9]))


def test_towers_train_coca_on_whole_captions() -> None:
    torch.manual_seed(0)
    text = {"context_length": CONTEXT, "vocab_size": 60, "width": 32, "heads": 4, "layers": 2}
    model = open_clip.CoCa(
        embed_dim=32,
        multimodal_cfg={"context_length": CONTEXT, "vocab_size": 60, "width": 32, "heads": 4, "layers": 2},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg={
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "image_size": 16,
            "attentional_pool": True,
            "attn_pooler_heads": 4,
            "output_tokens": True,
        },
    )
    towers = Towers(model)
    outputs = towers(torch.randn(2, 3, 16, 16), towers.texts_of(captions([4, 9])[:, :9]))
    assert not towers.packs
    assert outputs["labels"].shape == (2, CONTEXT - 1)
    assert outputs["logits"].shape[:2] == (2, CONTEXT - 1)
