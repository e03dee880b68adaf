"""The first half of a transformer's MLP, product and GELU together, for inference in float32 on a CPU.

torch copies the bias, multiplies (MKL) and then goes over the four times wider result once more for the GELU: of a
ViT-B/32's image a tenth of the time. oneDNN, which torch carries, does all three in one pass; that is what
torch.compile makes of it too, here without the compiler. The values differ by rounding (2e-6 of values around 1).

Surprising: the operator is one of torch's internal ones (inductor's); where a torch has none, nothing is changed. It
has no backward.
"""

import types
from typing import Any

import torch
from torch import nn


def install(model: nn.Module) -> None:
    """Changes the MLPs that it knows, in place: linear, exact GELU, linear, as open_clip's towers have them."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return
    for module in model.modules():
        if type(module) is nn.Sequential and _known(dict(module.named_children())):
            module.forward = types.MethodType(_forward, module)


def _known(layers: dict[str, nn.Module]) -> bool:
    gelu = layers.get("gelu")
    return (
        list(layers) == ["c_fc", "gelu", "c_proj"]
        and type(layers["c_fc"]) is nn.Linear
        and type(gelu) is nn.GELU
        and gelu.approximate == "none"
    )


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """[..., D] -> [..., D]."""
    first = self.c_fc
    return self.c_proj(torch.ops.mkldnn._linear_pointwise(x, first.weight, first.bias, "gelu", [], "none"))
