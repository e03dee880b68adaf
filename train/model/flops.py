"""Floating-point operations of a run: of a pair, of a stage, of the device at its best.

A multiply-add counts as two. Only matrix products and convolutions count, as in published model FLOPs; attention
counts whole even where a causal mask spares half. open_clip's own transformers are counted by formula, every other
architecture by running it on the meta device, where tensors have shapes and no data.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from crawl2clip.errors import ConfigError
from train.model.meta_model import build_on_meta

BACKWARD_OVER_FORWARD = 2
"""Backward makes two products, with the inputs and with the weights, for each one of forward."""

ASSUMED_MFU = 0.4
"""The share of a device's peak that the budget's GPU-hours assume."""


@dataclass(frozen=True)
class PairFlops:
    """Forward FLOPs of one image and one caption."""

    image: float
    text: float  # for CoCa with the caption decoder

    @property
    def total(self) -> float:
        """Of both towers."""
        return self.image + self.text

    def training(self, *, image_trains: bool = True, text_trains: bool = True) -> float:
        """Forward and backward of a pair; a tower that is frozen whole does not go backward. No recompute."""
        image = self.image * (1 + BACKWARD_OVER_FORWARD * image_trains)
        return image + self.text * (1 + BACKWARD_OVER_FORWARD * text_trains)


def pair_flops(architecture: dict[str, Any], *, text_tokens: float) -> PairFlops:
    """Forward FLOPs of a pair in training, as the plain architecture has them.

    Rows of a tower's last block that nobody reads are counted, as in published figures, though they are not computed
    here (crawl2clip/image_attention.py, packed_text.py): MFU is above the arithmetic really done by about 0.8 / layers.

    Args:
        architecture: open_clip model_cfg; image_size and patch_dropout are its own.
        text_tokens: mean tokens of a caption as computed: its real length on packed text, else context_length.
            Attention is taken at the mean, a little below the mean over captions (it grows with the square).

    Raises:
        ConfigError: open_clip cannot build or run the architecture.
    """
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    by_formula_image = "timm_model_name" not in vision and not vision.get("attentional_pool")
    by_formula_text = "hf_model_name" not in text and "multimodal_cfg" not in architecture
    if by_formula_image and by_formula_text and isinstance(vision.get("layers", 12), int):
        embed_dim = architecture["embed_dim"]
        return PairFlops(_vision_flops(vision, embed_dim), _text_flops(text, embed_dim, text_tokens))
    return counted_flops(architecture, text_tokens=text_tokens)


def _vision_flops(vision: dict[str, Any], embed_dim: int) -> float:
    """A plain ViT's: patch embedding of every patch, blocks over the class token and the patches that are kept."""
    width, patch = vision.get("width", 768), vision.get("patch_size", 16)
    size = vision.get("image_size", 224)
    height, length = (size, size) if isinstance(size, int) else size
    patches = (height // patch) * (length // patch)
    kept = max(1, int(patches * (1 - vision.get("patch_dropout", 0.0))))
    embedding = 2 * 3 * patch**2 * width * patches
    blocks = vision.get("layers", 12) * block_flops(kept + 1, width, vision.get("mlp_ratio", 4.0))
    return embedding + blocks + 2 * width * embed_dim


def _text_flops(text: dict[str, Any], embed_dim: int, tokens: float) -> float:
    """A causal transformer's, with the projection of one token; looking tokens up is free."""
    width = text.get("width", 512)
    tokens += bool(text.get("embed_cls", False))
    projection = 0 if text.get("proj_type", "linear") == "none" else 2 * width * embed_dim
    return text.get("layers", 12) * block_flops(tokens, width, text.get("mlp_ratio", 4.0)) + projection


def block_flops(tokens: float, width: int, mlp_ratio: float) -> float:
    """One transformer block on one sequence: four projections, two products of attention, two layers of MLP."""
    per_token = 2 * (4 * width**2 + 2 * int(width * mlp_ratio) * width)
    return tokens * per_token + 2 * 2 * tokens**2 * width


def counted_flops(architecture: dict[str, Any], *, text_tokens: float) -> PairFlops:
    """Forward FLOPs of a pair, counted by torch while the model runs on the meta device.

    A length between two whole numbers of tokens is interpolated between their counts.

    Raises:
        ConfigError: open_clip cannot build or run the architecture.
    """
    whole = math.floor(text_tokens)
    image, low = _count(architecture, whole)
    high = _count(architecture, whole + 1)[1] if text_tokens > whole else low
    return PairFlops(image, low + (high - low) * (text_tokens - whole))


def _count(architecture: dict[str, Any], tokens: int) -> tuple[float, float]:
    from torch.utils.flop_counter import FlopCounterMode

    model = _on_meta_device(architecture, tokens)
    size = architecture["vision_cfg"].get("image_size", 224)
    height, length = (size, size) if isinstance(size, int) else size
    pairs = 2  # BatchNorm refuses to train on one sample
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        try:
            # In training mode and with gradients: patches are dropped, and torch's fused inference path, which the
            # counter does not see, is not taken.
            model.train()
            model.encode_image(torch.empty(pairs, 3, height, length))
            image = counter.get_total_flops() / pairs
            if hasattr(model, "text_decoder"):
                model(torch.empty(pairs, 3, height, length), torch.zeros(pairs, tokens, dtype=torch.long))
                return image, counter.get_total_flops() / pairs - 2 * image
            model.encode_text(torch.zeros(pairs, tokens, dtype=torch.long))
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(
                f"the model cannot run on images of {height} x {length} pixels and captions of {tokens} tokens "
                f"({str(error).splitlines()[0][:200]}); give the sizes its architecture was made for"
            ) from error
    return image, counter.get_total_flops() / pairs - image


_PEAK_TFLOPS: tuple[tuple[str, dict[str, float]], ...] = (
    # Dense tensor-core TFLOP/s with float32 accumulation, without sparsity, from NVIDIA's data sheets and
    # architecture white papers; fp32 is without TF32. The first name that the device's contains counts, so special
    # forms stand before the chip they are of.
    ("V100-PCIE", {"fp16": 112, "fp32": 14.0}),
    ("V100", {"fp16": 125, "fp32": 15.7}),
    ("Tesla T4", {"fp16": 65, "fp32": 8.1}),
    ("A100", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    ("A800", {"bf16": 312, "fp16": 312, "tf32": 156, "fp32": 19.5}),
    ("A10G", {"bf16": 70, "fp16": 70, "tf32": 35, "fp32": 35}),
    ("A10", {"bf16": 125, "fp16": 125, "tf32": 62.5, "fp32": 31.2}),
    ("A40", {"bf16": 149.7, "fp16": 149.7, "tf32": 74.8, "fp32": 37.4}),
    ("RTX A6000", {"bf16": 154.8, "fp16": 154.8, "tf32": 77.4, "fp32": 38.7}),
    ("RTX 3090", {"bf16": 71, "fp16": 71, "tf32": 35.6, "fp32": 35.6}),
    ("RTX 4090", {"float8": 330.3, "bf16": 165.2, "fp16": 165.2, "tf32": 82.6, "fp32": 82.6}),
    ("RTX 6000 Ada", {"float8": 728.5, "bf16": 364.2, "fp16": 364.2, "tf32": 182.1, "fp32": 91.1}),
    ("L40S", {"float8": 733, "bf16": 362, "fp16": 362, "tf32": 183, "fp32": 91.6}),
    ("L40", {"float8": 362, "bf16": 181, "fp16": 181, "tf32": 90.5, "fp32": 90.5}),
    ("NVIDIA L4", {"float8": 242, "bf16": 121, "fp16": 121, "tf32": 60, "fp32": 30.3}),
    ("H100 PCIe", {"float8": 1513, "bf16": 756, "fp16": 756, "tf32": 378, "fp32": 51}),
    ("H100 NVL", {"float8": 1670, "bf16": 835, "fp16": 835, "tf32": 417, "fp32": 60}),
    ("H100", {"float8": 1979, "bf16": 989, "fp16": 989, "tf32": 495, "fp32": 67}),
    ("H800", {"float8": 1979, "bf16": 989, "fp16": 989, "tf32": 495, "fp32": 67}),
    ("H200 NVL", {"float8": 1670, "bf16": 835, "fp16": 835, "tf32": 417, "fp32": 60}),
    ("H200", {"float8": 1979, "bf16": 989, "fp16": 989, "tf32": 495, "fp32": 67}),
    ("GH200", {"float8": 1979, "bf16": 989, "fp16": 989, "tf32": 495, "fp32": 67}),
    ("GB200", {"float8": 5000, "bf16": 2500, "fp16": 2500, "tf32": 1250, "fp32": 80}),
    ("B200", {"float8": 4500, "bf16": 2250, "fp16": 2250, "tf32": 1100, "fp32": 75}),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of a device at its best; None where it is not known, and then there is no MFU.

    Args:
        device_name: as torch.cuda.get_device_name gives it, for example "NVIDIA H100 80GB HBM3".
        precision: bf16, fp16, tf32, fp32 or float8: what the matrix products are done in.
    """
    for part, tflops in _PEAK_TFLOPS:
        if part.lower() in device_name.lower():
            return tflops[precision] * 1e12 if precision in tflops else None
    return None


def describe_budget(flops: float, device_name: str, precision: str) -> str:
    """A run's cost in words: EFLOP, and GPU-hours on such devices where their peak is known."""
    text = f"{flops / 1e18:.4g} EFLOP"
    peak = peak_flops(device_name, precision)
    if peak is None:
        return f"{text} (the peak of {device_name} in {precision} is not known, so no GPU-hours and no MFU)"
    hours = flops / (peak * ASSUMED_MFU) / 3600
    at = f"{ASSUMED_MFU:.0%} of {peak / 1e12:g} TFLOP/s in {precision}"
    return f"{text}, {hours:.4g} GPU-hours of {device_name} at {at}"


def total_budget(
    architectures_and_samples: Sequence[tuple[dict[str, Any], int]],
    *,
    text_tokens: float,
    image_trains: bool = True,
    text_trains: bool = True,
) -> float:
    """FLOPs of a run: for each stage its architecture (open_clip model_cfg) and the samples it sees.

    Args:
        architectures_and_samples: see `train.stages.budget_parts`.
        text_tokens: mean tokens of a caption as computed; cut to each stage's context length, so infinity is padded.
        image_trains: false for an image tower that is frozen whole.
        text_trains: false for a text tower that is frozen whole.
    """
    total = 0.0
    for architecture, samples in architectures_and_samples:
        tokens = min(text_tokens, context_length_of(architecture))
        pair = pair_flops(architecture, text_tokens=tokens)
        total += samples * pair.training(image_trains=image_trains, text_trains=text_trains)
    return total


def context_length_of(architecture: dict[str, Any]) -> int:
    """Tokens of a padded caption of an open_clip model_cfg."""
    return architecture["text_cfg"].get("context_length", 77)


def _on_meta_device(architecture: dict[str, Any], tokens: int) -> Any:
    changed = copy.deepcopy(architecture)
    if "hf_model_name" not in changed["text_cfg"]:
        changed["text_cfg"]["context_length"] = tokens
    return build_on_meta(changed)
