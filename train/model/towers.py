"""Both towers in one forward: the one module that DDP, FSDP2 and DeepSpeed wrap and the step calls.

Captions go in as `texts_of` lays them out: without padding where the text tower allows it (`packed_text`), else
padded to the model's context length. Every tower that does not pack reads something at the padding, so there
is no middle way such as cutting a batch to its longest caption.
"""

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from crawl2clip import image_attention
from train.model.packed_text import PackedTexts, install, pack_texts, packs, text_lengths_of

_log = logging.getLogger(__name__)


class Towers(nn.Module):
    """An open_clip model called with a batch of pairs.

    Has to be made before anything replaces the forward of a block (compilation, activation checkpointing, sharding).

    Attributes:
        model: the plain open_clip model; its parameter names are the names of the training state.
        packs: whether captions are packed.
        text_lengths: int64 [B, L] tokens to int64 [B], how much of each caption the model needs.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        image_attention.install(model)
        reason = packs(model)
        self.packs = reason is None
        self.text_lengths = text_lengths_of(model)
        self._image_layout = image_layout(model)
        if reason is None:
            install(model)
        else:
            _log.info("captions are padded to the context length, because %s", reason)

    def forward(self, images: torch.Tensor, texts: torch.Tensor | PackedTexts) -> dict[str, torch.Tensor]:
        """Features of B pairs.

        Args:
            images: float [B, 3, S, S], normalised.
            texts: B captions, what `texts_of` gave, on the device of the images.

        Returns:
            image_features and text_features [B, D], L2-normalised; logit_scale, exponentiated; logit_bias where the
            model has one; of a CoCa model also logits [B, L, vocabulary] and labels int64 [B, L].
        """
        outputs: Any = self.model(images.to(memory_format=self._image_layout), texts)
        if isinstance(outputs, dict):
            return {name: value for name, value in outputs.items() if value is not None}
        names = ("image_features", "text_features", "logit_scale", "logit_bias")
        return dict(zip(names, outputs, strict=False))

    def texts_of(self, text_tokens: torch.Tensor) -> torch.Tensor | PackedTexts:
        """A batch's captions in the form that costs this model least; pin and move the result like a tensor.

        Args:
            text_tokens: int64 [B, L], on the CPU; L may be less than the context length where all the rest is 0.

        Returns:
            PackedTexts, or int64 [B, context length].
        """
        if self.packs:
            return pack_texts(text_tokens, self.text_lengths(text_tokens))
        missing = _context_length(self.model) - text_tokens.shape[1]
        return F.pad(text_tokens, (0, missing)) if missing > 0 else text_tokens


def image_layout(model: nn.Module) -> torch.memory_format:
    """Channels innermost for convolutional towers: on a CPU a ResNet takes two thirds of the time.

    A ViT's one patch convolution gains nothing.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    return torch.channels_last if convolutions > 1 else torch.preserve_format


def _context_length(model: Any) -> int:
    """Tokens of a padded caption; 0 for a tower that takes any number and masks the padding itself (Hugging Face's)."""
    from open_clip.hf_model import HFTextEncoder

    tower = getattr(model, "text", model)
    return 0 if isinstance(tower, HFTextEncoder) else tower.context_length
