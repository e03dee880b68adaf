"""Shapes of the tensors in a weights file, read without the tensors: what a loader may have changed to make them fit.

open_clip interpolates position embeddings of another length without a word above its info log. That is what
fine-tuning at another image size wants, and no evaluation does: a 336 px checkpoint scored under a 224 px name is
neither model.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from crawl2clip.errors import ConfigError
from crawl2clip.models import numpy_scalars_allowed

Shape = tuple[int, ...]


def check_same_shapes(model: nn.Module, name: str, file: Path) -> None:
    """Makes sure that a model has the weights of a file as they are there.

    Args:
        model: with the weights of `file` loaded.
        name: of the model, for the message.
        file: .safetensors or .pt; of one in torch's format before 1.6 the shapes are not known, and it passes.

    Raises:
        ConfigError: some had another shape.
    """
    there = _shapes_in(file)
    changed = [
        f"{what} is {there[what]} and not {tuple(tensor.shape)}"
        for what, tensor in model.state_dict().items()
        if there.get(what, tuple(tensor.shape)) != tuple(tensor.shape)
    ]
    if changed:
        raise ConfigError(
            f"the weights in {file} are of another image size or context length than {name}: {', '.join(changed)}; "
            "interpolated they would be no model that anyone trained. Name the model they were trained as"
        )


def _shapes_in(file: Path) -> dict[str, Shape]:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(str(file), framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 # no mapping
    try:
        with numpy_scalars_allowed():
            saved: Any = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, ValueError):  # the old format cannot be mapped
        return {}
    weights = saved.get("state_dict", saved)
    # DistributedDataParallel's names, as open_clip takes them off.
    return {
        name.removeprefix("module."): tuple(tensor.shape)
        for name, tensor in weights.items()
        if isinstance(tensor, torch.Tensor)
    }
