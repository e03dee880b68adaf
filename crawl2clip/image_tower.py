"""Image features from before the projection, which linear probes of the CLIP paper use (Radford et al. 2021, A.3).

One forward pass gives both: the projection is the last step of the tower, so it is left out and then done by hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def no_penultimate(model: Any) -> str | None:
    """None where a model has image features before a projection, or the reason why not, a sentence."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual = _visual(model)
    if any(type(p) is not nn.Parameter or not p.numel() for p in visual.parameters()):
        return "its image tower is sharded over ranks"
    if isinstance(visual, VisionTransformer):
        return None if visual.proj is not None else "its image tower has no projection"
    if isinstance(visual, TimmModel):
        layers = [name for name, _ in visual.head.named_children()]
        if layers and not {"pool"} & set(layers):
            return None
        return (
            "its timm tower pools and projects in one step" if layers else "its timm tower has no projection"
        )
    return f"its image tower is a {type(visual).__name__}, which pools and projects in one step"


def encode_with_penultimate(model: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image features after and before the projection.

    Args:
        model: one for which `no_penultimate` is None.
        images: [B, 3, H, W], preprocessed, on the model's device.

    Returns:
        [B, D] and [B, W], neither normalised, in the tower's dtype.
    """
    from open_clip.transformer import VisionTransformer

    visual = _visual(model)
    if isinstance(visual, VisionTransformer):
        projection: Any = visual.proj
        with _without_projection(visual):
            found = visual(images)
        pooled = found[0] if isinstance(found, tuple) else found  # CoCa's tower gives its tokens too
        return pooled @ projection, pooled
    pooled = visual.trunk(images)
    return visual.head(pooled), pooled


@contextmanager
def _without_projection(visual: Any) -> Iterator[None]:
    projection: nn.Parameter = visual.proj
    visual.proj = None
    try:
        yield
    finally:
        visual.proj = projection


def _visual(model: Any) -> Any:
    return getattr(model, "module", model).visual  # DDP and the like keep the model under .module
