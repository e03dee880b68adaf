"""A CLIP model as its users see it: images and captions in, unit features out.

The one thing that the tagger, the evaluation and the check inside training need.
"""

import ctypes
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crawl2clip.errors import ConfigError, unknown_name
from crawl2clip.image_tower import encode_with_penultimate, no_penultimate
from crawl2clip.models import (
    ModelConfig,
    architecture_of,
    create_model,
    hash_weights,
    preprocess_cfg_of,
    read_export,
    tokenizer_of,
)
from crawl2clip.text_tower import TextLengths, cuts, encode_cut, end_id, pool_type
from crawl2clip.weight_shapes import check_same_shapes

PRECISIONS = ("fp32", "bf16", "fp16")
_WORTHWHILE = 32
"""Texts that make a batch: so many keep a core busy, and from there on padding costs more than another batch."""


class Encoder:
    """A CLIP model with its preprocessing and tokenizer: images and captions in, unit features out.

    Attributes:
        preprocess: PIL image -> float32 [3, H, W], resized, cropped and normalised as the model expects.
        tokenizer: list of captions -> int64 [N, context_length].
        precision: "fp32", or "bf16"/"fp16" for autocast of both towers.
        architecture: the open_clip model_cfg.
        weights_sha256: over names, shapes and bytes of all parameters and buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        architecture: dict[str, Any],
        *,
        device: torch.device | str,
        precision: str,
        folder: Path | None = None,
    ) -> None:
        """Takes a model on its device.

        Args:
            model: an open_clip model.
            name: of the model.
            architecture: its open_clip model_cfg.
            device: where the model is.
            precision: one of PRECISIONS.
            folder: the export that the model was loaded from, with its tokenizer's files; None when there is none.

        Raises:
            ConfigError: an unknown precision.
        """
        from open_clip.transform import PreprocessCfg, image_transform_v2

        if precision not in PRECISIONS:
            raise ConfigError(unknown_name("precision", precision, PRECISIONS))
        self.model = model
        self.name = name
        self.architecture = architecture
        self.device = torch.device(device)
        self.precision = precision
        self.preprocess_cfg = preprocess_cfg_of(model)
        self.preprocess: Any = image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=False)
        self.tokenizer = tokenizer_of(name, architecture, folder)
        size = self.preprocess_cfg["size"]
        self.image_size: int = size[0] if isinstance(size, list) else size
        self.embed_dim: int = architecture["embed_dim"]
        self.context_length: int = architecture["text_cfg"].get("context_length", 77)
        self._weights_sha256: str | None = None

    @property
    def weights_sha256(self) -> str:
        """Hash of the weights as they were at the first call."""
        if self._weights_sha256 is None:
            self._weights_sha256 = hash_weights(self.model)
        return self._weights_sha256

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=dtype)

    @property
    def logit_scale(self) -> float | None:
        """1 / temperature of the model as it is, already exponentiated; None for a model without one."""
        scale = getattr(getattr(self.model, "module", self.model), "logit_scale", None)
        return float(scale.detach().float().exp()) if isinstance(scale, torch.Tensor) else None

    @torch.inference_mode()
    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Image features [B, D], float32 on the CPU, L2-normalised, of preprocessed images [B, 3, H, W]."""
        with _evaluating(self.model), self._autocast():
            features = self.model.encode_image(images.to(self.device, non_blocking=True))  # pyright: ignore[reportCallIssue] # open_clip's method
        return nn.functional.normalize(features.float(), dim=-1).cpu()

    def check_penultimate(self) -> None:
        """Makes sure that `encode_images_twice` will work.

        Raises:
            ConfigError: the image tower has no features before a projection.
        """
        if reason := no_penultimate(self.model):
            raise ConfigError(
                f"features before the projection were asked for, and {self.name} has none: {reason}; use a ViT or a "
                "timm tower with a projection, or features=projected"
            )

    @torch.inference_mode()
    def encode_images_twice(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image features of images [B, 3, H, W] from one forward pass, after and before the projection.

        Returns:
            [B, D] as `encode_images` gives them, and [B, W] float32 on the CPU, not normalised.

        Raises:
            ConfigError: as `check_penultimate`.
        """
        self.check_penultimate()
        with _evaluating(self.model), self._autocast():
            projected, pooled = encode_with_penultimate(self.model, images.to(self.device, non_blocking=True))
        return nn.functional.normalize(projected.float(), dim=-1).cpu(), pooled.float().cpu()

    def text_lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text that are computed, padding left out; all of them for a tower that reads the padding."""
        if not texts:
            return []
        return self._text_lengths()(self.tokenizer(list(texts))).tolist()

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Text features [N, D], float32 on the CPU, L2-normalised; each distinct text is encoded once.

        Texts of like length share a batch, and a batch is cut to its longest text where the tower does not read the
        padding. That changes features by rounding alone: 1.3e-7 was measured for ViT-B-32 in float32.
        """
        if not texts:
            return torch.empty(0, self.embed_dim)
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(distinct)
        lengths = self._text_lengths()(tokens)
        order = torch.sort(lengths, stable=True).indices
        parts = []
        with _evaluating(self.model):
            for places in like_lengths(lengths[order].tolist(), batch_size):
                rows = order[places]
                batch = tokens[rows, : int(lengths[rows].max())].to(self.device)
                with self._autocast():
                    # Narrower than the tokenizer makes them: `_text_lengths` found that the tower allows it.
                    narrow = batch.shape[1] < tokens.shape[1]
                    found = encode_cut(self.model, batch) if narrow else self._encode_whole(batch)
                parts.append(nn.functional.normalize(found.float(), dim=-1).cpu())
        features = torch.cat(parts)[torch.argsort(order)]
        row = {text: index for index, text in enumerate(distinct)}
        return features[[row[text] for text in texts]]

    def _text_lengths(self) -> TextLengths:
        if not cuts(self.model):
            return TextLengths("all", 0)
        return TextLengths(pool_type(self.model), end_id(self.model))

    def _encode_whole(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(tokens)  # pyright: ignore[reportCallIssue] # open_clip's method


def like_lengths(lengths: Sequence[int], batch_size: int) -> list[slice]:
    """Cuts rising lengths into batches: at `batch_size`, and where the length rises once a batch is worth its while.

    Args:
        lengths: tokens of each text, in rising order.
        batch_size: texts a batch at most.
    """
    starts = [0]
    for place in range(1, len(lengths)):
        size = place - starts[-1]
        if size == batch_size or (size >= _WORTHWHILE and lengths[place] > lengths[place - 1]):
            starts.append(place)
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(lengths)], strict=True)]


class _evaluating:
    """The model in evaluation mode for a block, then in the mode it was in (the in-loop check needs both)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __enter__(self) -> None:
        self._was_training = self._model.training
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        self._model.train(self._was_training)


def encoder_of(
    model: nn.Module, config: ModelConfig, *, device: torch.device | str = "cpu", precision: str = "fp32"
) -> Encoder:
    """An Encoder around a live model; the model is not moved, copied or changed."""
    return Encoder(model, config.name, architecture_of(config), device=device, precision=precision)


def load_encoder(
    model: str | None, pretrained: str | None, *, device: torch.device | str = "cpu", precision: str = "fp32"
) -> Encoder:
    """An Encoder with trained weights, ready on its device.

    Args:
        model: an open_clip name; may be None when `pretrained` is an export folder, which knows its own.
        pretrained: an open_clip tag, a .pt or .safetensors file, or an export folder.

    Raises:
        ConfigError: unknown names, a missing choice, or weights of another model than the one named.
        DataError: weights that are missing or cannot be read.
    """
    if pretrained is None:
        raise ConfigError(
            f"no weights are named for model {model!r}; give pretrained=<open_clip tag, .pt/.safetensors file or "
            "export folder>"
        )
    folder = Path(pretrained) if Path(pretrained).is_dir() else None
    if folder is not None:
        export = read_export(folder)
        architecture, name = export["model_cfg"], export.get("model_name") or model or folder.name
        if model is not None and model != name and architecture_of(ModelConfig(name=model)) != architecture:
            raise ConfigError(
                f"{pretrained} holds a {name}, not a {model}; leave model out, or set model={name}"
            )
    elif model is None:
        what = "a weights file" if Path(pretrained).is_file() else f"the tag {pretrained!r}"
        raise ConfigError(
            f"{what} needs model=<name of the architecture>; only an export folder knows its own"
        )
    else:
        name, architecture = model, architecture_of(ModelConfig(name=model, pretrained=pretrained))
    loaded = create_model(name, architecture, pretrained)
    if Path(pretrained).is_file():
        check_same_shapes(loaded, name, Path(pretrained))
    _give_back_freed_memory()
    return Encoder(
        loaded.to(device).eval(), name, architecture, device=device, precision=precision, folder=folder
    )


def _give_back_freed_memory() -> None:
    """Weights are in memory twice while they load; of the freed half glibc would keep most (110 MB of 170)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:  # other C libraries have none
        trim(0)
