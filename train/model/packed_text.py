"""Captions without their padding: the text tower computes the tokens there are, and nothing else.

Captions average 16 to 18 tokens of CLIP's 77. A causal text tower whose feature is the output at the end of
the text never sees what follows, so the tokens of a batch are laid end to end, [T, D] rows run through the
tower's own blocks, and only attention has to know where captions begin (`packed_attention`). Of the last block
only the end-of-text rows are read, so only they are computed. Features and gradients are those of the padded run.

Surprising: `install` replaces bound methods on the instances (a few `forward`s and `encode_text`), not the modules,
so parameter names, hooks, sharding and compilation of blocks stay what they were; it has to come before
anything else that replaces a block's forward.
"""

import types
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from crawl2clip.errors import DataError
from crawl2clip.text_tower import TextLengths, end_id, pool_type, reads_padding, text_tower
from train.model.packed_attention import Ends, Layout, custom_attention, multihead_attention


@dataclass(frozen=True)
class PackedTexts:
    """The tokens of B captions, laid end to end, shortest caption first.

    Attributes:
        tokens: int64 [T].
        places: int64 [T], place of each token in its caption, from 0.
        rank: int64 [B], place of each caption in the order of lengths, to take results back to the batch's order.
        layout: where the captions lie.
    """

    tokens: torch.Tensor
    places: torch.Tensor
    rank: torch.Tensor
    layout: Layout

    def __len__(self) -> int:
        """Number of captions."""
        return len(self.rank)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PackedTexts":
        """The same captions on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "PackedTexts":
        """The same captions in page-locked memory."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, change: Any) -> "PackedTexts":
        layout = self.layout
        moved = Layout(
            change(layout.starts), change(layout.lasts), change(layout.slots), layout.groups, layout.longest
        )
        return PackedTexts(change(self.tokens), change(self.places), change(self.rank), moved)


def pack_texts(text_tokens: torch.Tensor, text_lengths: torch.Tensor) -> PackedTexts:
    """Lays captions end to end.

    Args:
        text_tokens: int64 [B, L], on the CPU.
        text_lengths: int64 [B], on the CPU: tokens of each caption up to and including the one whose output is
            its feature (`TextLengths`).

    Raises:
        DataError: a length below 1 or above L, or another number of lengths than captions.
    """
    num_captions, width = text_tokens.shape
    if (
        len(text_lengths) != num_captions
        or not num_captions
        or not 1 <= int(text_lengths.min()) <= int(text_lengths.max()) <= width
    ):
        raise DataError(
            f"cannot pack text_tokens of shape {list(text_tokens.shape)} by text_lengths {text_lengths.tolist()[:16]}; "
            f"give each caption a length from 1 to {width}, counted up to and including its end-of-text token"
        )
    lengths, order = torch.sort(text_lengths, stable=True)
    column = torch.arange(width)
    real = column < lengths[:, None]
    starts = F.pad(lengths.cumsum(0), (1, 0))
    found, counts = torch.unique_consecutive(lengths, return_counts=True)
    longest = int(lengths[-1])
    slots = torch.arange(num_captions)[:, None] * longest + column
    layout = Layout(
        starts=starts.to(torch.int32),
        lasts=starts[1:] - 1,
        slots=slots[real],
        groups=tuple(zip(counts.tolist(), found.tolist(), strict=True)),
        longest=longest,
    )
    rank = torch.empty_like(order)
    rank[order] = torch.arange(num_captions)
    return PackedTexts(text_tokens[order][real], column.expand(num_captions, -1)[real], rank, layout)


def text_lengths_of(model: nn.Module) -> TextLengths:
    """The TextLengths of a model, whole captions for one that does not pack."""
    if packs(model) is not None:
        return TextLengths("all", 0)
    return TextLengths(pool_type(model), end_id(model))


def text_lengths(model: nn.Module, text_tokens: torch.Tensor) -> torch.Tensor:
    """`text_lengths_of` a model, applied: int64 [B, L] to int64 [B]."""
    return text_lengths_of(model)(text_tokens)


def packs(model: nn.Module) -> str | None:
    """None where packed captions give the features of padded ones, or the reason why not, a sentence."""
    from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, Transformer

    if text_tower(model) is not None and hasattr(model, "text_decoder"):
        return "its caption decoder needs the output of every token"
    if reason := reads_padding(model):
        return reason
    tower = text_tower(model)
    if getattr(tower, "output_tokens", False):
        return "it gives out the output of every token (output_tokens)"
    transformer = tower.transformer
    if type(transformer) is not Transformer or not transformer.batch_first:
        return f"its transformer is a {type(transformer).__name__} of another layout than [B, L, D]"
    for block in transformer.resblocks:
        if type(block) not in (ResidualAttentionBlock, CustomResidualAttentionBlock):
            return f"its blocks are of the unknown type {type(block).__name__}"
        if reason := _attention_differs(block.attn):
            return reason
    return None


def _attention_differs(attention: Any) -> str | None:
    if isinstance(attention, nn.MultiheadAttention):
        plain = attention.bias_k is None and attention.in_proj_weight is not None and attention.batch_first
        dropout = attention.dropout
    else:
        plain = (
            attention.logit_scale is None
        )  # scaled cosine attention, which open_clip 3.3 cannot run at all
        dropout = attention.attn_drop.p
    if dropout:
        return f"its attention drops out weights (p = {dropout}), which would fall on other places"
    return None if plain else "its attention is of another kind than scaled dot products of the tokens"


def install(model: nn.Module) -> None:
    """Makes a model's `encode_text` take PackedTexts beside padded tokens, for which nothing changes.

    Raises:
        ValueError: the model does not pack.
    """
    if reason := packs(model):
        raise ValueError(f"the model cannot take packed captions: {reason}; give it padded tokens")
    tower: Any = text_tower(model)
    blocks = list(tower.transformer.resblocks)
    # Bound methods, not closures: a deep copy of the model gets methods bound to its own modules.
    for block in blocks:
        packed = _multihead_forward if isinstance(block.attn, nn.MultiheadAttention) else _custom_forward
        block.attn.forward = types.MethodType(packed, block.attn)
    blocks[-1].forward = types.MethodType(_last_block_forward, blocks[-1])
    if tower is model:
        tower.encode_text = types.MethodType(_encode_text, tower)
    else:
        tower.forward = types.MethodType(_tower_forward, tower)


def _multihead_forward(
    self: Any, query: Any, key: Any, value: Any, *, attn_mask: Any = None, **options: Any
) -> Any:
    if isinstance(attn_mask, Layout | Ends):
        return multihead_attention(self, query, attn_mask), None
    return type(self).forward(self, query, key, value, attn_mask=attn_mask, **options)


def _custom_forward(self: Any, x: torch.Tensor, attn_mask: Any = None) -> torch.Tensor:
    if isinstance(attn_mask, Layout | Ends):
        return custom_attention(self, x, attn_mask)
    return type(self).forward(self, x, attn_mask=attn_mask)


def _last_block_forward(self: Any, q_x: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
    """[T, D] -> [B, D]: what the last block gives at the end of each caption; the rest is never read."""
    layout = named.get("attn_mask", others[-1] if others else None)
    if not isinstance(layout, Layout):
        return type(self).forward(self, q_x, *others, **named)
    ends = Ends(layout)
    normed = self.ln_1(q_x)
    if isinstance(self.attn, nn.MultiheadAttention):
        mixed = self.attn(normed, normed, normed, need_weights=False, attn_mask=ends)[0]
    else:
        mixed = self.ln_attn(self.attn(normed, attn_mask=ends))
    x = q_x.index_select(0, layout.lasts) + self.ls_1(mixed)
    return x + self.ls_2(self.mlp(self.ln_2(x)))


def _encode_text(self: Any, text: torch.Tensor | PackedTexts, normalize: bool = False) -> torch.Tensor:
    """open_clip.CLIP.encode_text."""
    if not isinstance(text, PackedTexts):
        return type(self).encode_text(self, text, normalize)
    features = _features(self, text)
    return F.normalize(features, dim=-1) if normalize else features


def _tower_forward(self: Any, text: torch.Tensor | PackedTexts) -> Any:
    """open_clip's TextTransformer.forward."""
    return _features(self, text) if isinstance(text, PackedTexts) else type(self).forward(self, text)


def _features(tower: Any, texts: PackedTexts) -> torch.Tensor:
    """Text features [B, D], not normalised, in the order of the batch."""
    dtype = tower.transformer.get_cast_dtype()
    positions = tower.positional_embedding
    # At least float32 while rows are picked: their gradients are summed over the batch.
    positions = positions.to(torch.promote_types(positions.dtype, torch.float32))
    x = tower.token_embedding(texts.tokens).to(dtype) + F.embedding(texts.places, positions).to(dtype)
    x = tower.transformer(x, attn_mask=texts.layout).index_select(0, texts.rank)
    x = tower.ln_final(x)
    if tower.text_projection is None:
        return x
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(x)
    return x @ tower.text_projection
