"""open_clip's text towers: where a caption's feature is read, and captions cut to what the feature depends on.

CLIP pads captions to 77 tokens and they average 10 to 18. A causal tower whose feature is the output at the end of
the text never sees what follows, so the columns after a batch's longest caption can be left out: the feature is the
same but for the rounding of other matrix shapes. Towers that read the padding are told apart by `reads_padding`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class TextLengths:
    """How much of each caption a model's text feature depends on; small enough to go to worker processes.

    Follows open_clip's pooling to the letter: 'argmax' takes the first largest token id, wherever a caption without an
    end has it; 'eos' the first end-of-text id, or the first token when there is none.

    Attributes:
        pool_type: open_clip's, or "all" for a tower that reads every token, the padding too.
        eos_id: the end of 'eos'.
    """

    pool_type: str
    eos_id: int

    def __call__(self, text_tokens: torch.Tensor) -> torch.Tensor:
        """Tokens up to and including the pooled one, int64 [B], of text_tokens int64 [B, L]."""
        if self.pool_type in ("all", "first"):
            length = 1 if self.pool_type == "first" else text_tokens.shape[1]
            return torch.full((len(text_tokens),), length, dtype=torch.int64)
        if self.pool_type == "eos":
            return (text_tokens == self.eos_id).int().argmax(dim=-1) + 1
        return text_tokens.argmax(dim=-1) + 1


def text_tower(model: Any) -> Any:
    """The module with open_clip's text transformer's parts: the model itself, or its `text`; None for other towers."""
    from open_clip import CLIP
    from open_clip.transformer import TextTransformer

    if isinstance(model, CLIP):
        return model
    text = getattr(model, "text", None)
    return text if isinstance(text, TextTransformer) else None


def pool_type(model: Any) -> str:
    """Which output of the text tower is the caption's, in open_clip's words."""
    tower = text_tower(model)
    return tower.text_pool_type if tower is model else tower.pool_type


def end_id(model: Any) -> int:
    """The token that ends a caption under 'eos' pooling."""
    tower = text_tower(model)
    return tower.text_eos_id if tower is model else tower.eos_id


def reads_padding(model: Any) -> str | None:
    """None where what follows a caption's end cannot change its feature, or the reason why it can, a sentence."""
    tower = text_tower(model)
    if tower is None:
        name = type(getattr(model, "text", model)).__name__
        return f"its text tower is a {name}, not a text transformer of open_clip's own"
    if getattr(tower, "cls_emb", None) is not None:
        return "its class token comes after the padding"
    if not _is_causal(tower.attn_mask):
        return "its attention is not causal, so every token sees the padding (no_causal_mask)"
    if pool_type(model) not in ("argmax", "eos", "first"):
        return f"its pool_type {pool_type(model)!r} reads the output at the padding"
    return None


def cuts(model: Any) -> bool:
    """Whether `encode_cut` can run this model.

    A tower that is sharded over ranks cannot: its parameters are only whole inside the model's own methods.
    """
    if reads_padding(model) is not None:
        return False
    tower = text_tower(model)
    plain = all(type(p) is nn.Parameter and p.numel() > 0 for p in tower.parameters())
    return plain and not getattr(tower, "use_pad_mask", False) and not getattr(tower, "output_tokens", False)


def encode_cut(model: Any, text_tokens: torch.Tensor) -> torch.Tensor:
    """Text features [B, D], not normalised, of tokens int64 [B, L]; open_clip's own method insists on the full width.

    Args:
        model: one that `cuts`.
        text_tokens: with any L from the longest caption of the batch to the context length.
    """
    from open_clip.transformer import text_global_pool

    tower, width = text_tower(model), text_tokens.shape[1]
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(text_tokens).to(dtype) + tower.positional_embedding[:width].to(dtype)
    x = tower.transformer(x, attn_mask=tower.attn_mask[:width, :width])
    # Pooled first: the norm works row by row, and only the pooled row is read.
    x = tower.ln_final(text_global_pool(x, text_tokens, pool_type(model), eos_token_id=end_id(model)))
    if tower.text_projection is None:
        return x
    if isinstance(tower.text_projection, nn.Linear):
        return tower.text_projection(x)
    return x @ tower.text_projection


def _is_causal(mask: torch.Tensor | None) -> bool:
    if mask is None:
        return False
    if mask.is_meta:
        return True  # no values to look at; open_clip has no other mask than the causal one
    return bool(torch.equal(mask == 0, torch.ones_like(mask, dtype=torch.bool).tril()))
