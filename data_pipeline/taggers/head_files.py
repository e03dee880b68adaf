"""Heads on embeddings in every form that they were published in, and ours.

| form | what it is |
|---|---|
| `.pth`, `.pt` with `weight`, `bias` | one linear layer: LAION's aesthetic predictor of 2022 (v1) |
| `.pth`, `.pt` with `layers.N.weight` ... | an nn.Sequential: improved-aesthetic-predictor (v2), H14_NSFW_Detector |
| `.zip` with a Keras SavedModel | AutoKeras' classifier: LAION's NSFW detectors for ViT-L-14 and ViT-B-32 |
| `.safetensors` | ours, made by `python -m data_pipeline.taggers.head_files IN OUT.safetensors` |

A Sequential's file does not say where its ReLUs were. The published ones are known by the places of their layers; any
other has to be given as .safetensors with the activations named. Pickles are read with weights_only, and no code of
any file runs. In ours, the tensors `layers.N.weight` [out, in] and `layers.N.bias` stand with metadata
`crawl2clip_head`: JSON with `relu_after` (numbers of layers), and `constant` (input columns that are set to 0); `mean`
and `std` are tensors, if inputs are normalised first.
"""

import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path
from data_pipeline.taggers.tensor_bundle import read_tensor_bundle

_METADATA = "crawl2clip_head"
_KERAS_EPSILON = 1e-7  # keras.backend.epsilon(), the least standard deviation of its Normalization
_MAX_BYTES = 1 << 28
_NO_ACTIVATION = (0, 2, 4, 6, 7)  # sac+logos+ava1-l14-linearMSE: dropouts between the layers
_RELU_AFTER = {
    _NO_ACTIVATION: (),
    (0, 3, 6, 9, 11): (0, 1, 2, 3),  # ava+logos-l14-reluMSE
    (0, 3, 6, 9, 12, 15, 16): (0, 1, 2, 3, 4),  # H14_NSFW_Detector, with none before its last layer
}
"""Places of the linear layers in a published nn.Sequential -> the layers that a ReLU follows."""


@dataclass
class Head:
    """A small network of linear layers.

    Attributes:
        weights: of each layer, [out, in] float32.
        biases: [out] float32.
        relu_after: numbers of the layers that a ReLU follows.
        mean, std: [D] float32, taken off and divided by first; None for none.
        constant: input columns that are set to 0 first.
    """

    weights: list[torch.Tensor]
    biases: list[torch.Tensor]
    relu_after: tuple[int, ...] = ()
    mean: torch.Tensor | None = None
    std: torch.Tensor | None = None
    constant: tuple[int, ...] = field(default=())

    @property
    def width(self) -> int:
        """Of the embeddings it takes."""
        return self.weights[0].shape[1]

    @property
    def outputs(self) -> int:
        """Numbers it gives."""
        return self.weights[-1].shape[0]

    @torch.inference_mode()
    def __call__(self, embeddings: torch.Tensor) -> torch.Tensor:
        """[N, outputs] float32 of embeddings [N, D] float32, L2-normalised, before any sigmoid or softmax."""
        x = embeddings
        if self.constant:
            x = x.clone()
            x[:, list(self.constant)] = 0.0
        if self.mean is not None and self.std is not None:
            x = (x - self.mean) / self.std
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = nn.functional.linear(x, weight, bias)
            if number in self.relu_after:
                x = x.relu()
        return x


def load_head(path: Path, name: str = "") -> Head:
    """The head in a file of any known form.

    Args:
        path: the file.
        name: how messages call it; its path when empty.

    Raises:
        DataError: it cannot be read, or is no head of a known form.
    """
    name = name or str(path)
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(
            f"{name} has {path.stat().st_size:,} bytes; a head is a small network, at most {_MAX_BYTES:,}"
        )
    start = path.read_bytes()
    if zipfile.is_zipfile(path) and not _is_torch(path):
        head = _from_keras(start, name)
    elif _is_torch(path) or start[:1] == b"\x80":
        head = _from_state(_read_pickle(path, name), name)
    else:
        head = _from_safetensors(path, name)
    _check(head, name)
    return head


def _is_torch(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("data.pkl") for entry in archive.namelist())


def _read_pickle(path: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises nearly every kind on files made to break it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name} cannot be read as PyTorch weights ({reason}); give a state dict of plain tensors (pickled code "
            "is never run), or fetch it again"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):  # a Lightning checkpoint
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{name} does not hold a state dict; save the head's state_dict()")
    return {str(key).removeprefix("model."): value.float() for key, value in state.items()}


def _from_state(state: dict[str, torch.Tensor], name: str) -> Head:
    if set(state) == {"weight", "bias"}:
        return Head([state["weight"]], [state["bias"]])
    places = sorted(int(key.split(".")[1]) for key in state if _is_layer(key) and key.endswith(".weight"))
    wanted = {f"layers.{place}.{part}" for place in places for part in ("weight", "bias")}
    if not places or set(state) != wanted:
        raise DataError(
            f"{name} holds {', '.join(sorted(state)[:6])}: not one linear layer (weight, bias) and not a Sequential "
            "(layers.N.weight, layers.N.bias); convert it to .safetensors, see data_pipeline/taggers/head_files.py"
        )
    relu_after = () if len(places) == 1 else _RELU_AFTER.get(tuple(places))
    if relu_after is None:
        raise DataError(
            f"{name} is a Sequential with linear layers at {places}, which is none of the published ones, and its file "
            "does not say where its activations are; convert it to .safetensors with `relu_after` named, see "
            "data_pipeline/taggers/head_files.py"
        )
    return Head(
        [state[f"layers.{place}.weight"] for place in places],
        [state[f"layers.{place}.bias"] for place in places],
        relu_after,
    )


def _is_layer(key: str) -> bool:
    parts = key.split(".")
    return len(parts) == 3 and parts[0] == "layers" and parts[1].isdigit()


def _from_keras(body: bytes, name: str) -> Head:
    """AutoKeras' structured-data classifier: encoding, normalisation, dense layers with ReLUs between, sigmoid.

    It took a few columns of its training set for categories, since their float64 values repeated, and looks them up as
    words. The tables in the published files are empty, so every value gets the number of an unknown word: 0.
    """
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        names = archive.namelist()
        index = next((entry for entry in names if entry.endswith("variables/variables.index")), None)
        data = next((entry for entry in names if entry.endswith("variables.data-00000-of-00001")), None)
        if index is None or data is None:
            raise DataError(
                f"{name} is a zip without variables/variables.index and its one data file; give the zip of a Keras "
                "SavedModel, as LAION published it"
            )
        if sum(archive.getinfo(entry).file_size for entry in (index, data)) > _MAX_BYTES:
            raise DataError(f"{name} unpacks to more than {_MAX_BYTES:,} bytes; a head is a small network")
        try:
            tensors = read_tensor_bundle(archive.read(index), archive.read(data), name)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{name} is a damaged zip ({error}); fetch it again") from error
    layers: dict[int, dict[str, np.ndarray]] = {}
    constant: list[int] = []
    for key, tensor in tensors.items():
        parts = key.split("/")
        if not parts[0].startswith("layer_with_weights-"):
            continue
        if parts[1] == "encoding_layers":
            if len(tensor):
                raise DataError(f"{name} looks up words in column {parts[2]}, which no published head does")
            constant.append(int(parts[2]))
        else:
            layers.setdefault(int(parts[0].rpartition("-")[2]), {})[parts[1]] = tensor
    normalize = next((layer for layer in layers.values() if {"mean", "variance"} <= layer.keys()), None)
    dense = [layers[number] for number in sorted(layers) if layers[number].keys() == {"kernel", "bias"}]
    if not dense or len(layers) != len(dense) + (normalize is not None):
        found = {number: sorted(layer) for number, layer in sorted(layers.items())}
        raise DataError(
            f"{name} has the layers {found}; known are a normalisation (mean, variance) and dense layers (kernel, bias)"
        )
    mean = std = None
    if normalize is not None:
        mean = torch.tensor(normalize["mean"])
        std = torch.tensor(np.maximum(np.sqrt(normalize["variance"]), _KERAS_EPSILON))
    return Head(
        [torch.tensor(np.ascontiguousarray(layer["kernel"].T)) for layer in dense],
        [torch.tensor(layer["bias"]) for layer in dense],
        tuple(range(len(dense) - 1)),
        mean,
        std,
        tuple(sorted(set(constant))),
    )


def _from_safetensors(path: Path, name: str) -> Head:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            described: Any = json.loads((file.metadata() or {}).get(_METADATA, "null"))
            tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(
            f"{name} is no head of a known form ({error}); see data_pipeline/taggers/head_files.py for them"
        ) from error
    places = sorted(int(key.split(".")[1]) for key in tensors if _is_layer(key) and key.endswith(".weight"))
    lacking = [f"layers.{place}.bias" for place in places if f"layers.{place}.bias" not in tensors]
    if not isinstance(described, dict) or places != list(range(len(places))) or not places or lacking:
        raise DataError(
            f"{name} holds {', '.join(sorted(tensors)[:6])}, with the metadata {_METADATA}={described}; a head has "
            f"layers.0.weight, layers.0.bias ... and {_METADATA}='{{\"relu_after\": [0]}}'"
        )
    return Head(
        [tensors[f"layers.{place}.weight"] for place in places],
        [tensors[f"layers.{place}.bias"] for place in places],
        tuple(int(number) for number in described.get("relu_after", ())),
        tensors.get("mean"),
        tensors.get("std"),
        tuple(int(column) for column in described.get("constant", ())),
    )


def _check(head: Head, name: str) -> None:
    """Raises DataError unless the layers fit together."""
    widths = [head.width, *(weight.shape[0] for weight in head.weights)]
    for number, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        if weight.ndim != 2 or weight.shape[1] != widths[number] or bias.shape != weight.shape[:1]:
            raise DataError(
                f"{name}: layer {number} is {list(weight.shape)} with a bias of {list(bias.shape)}, after "
                f"{widths[number]} numbers; the layers of a head follow each other"
            )
    for values in (head.mean, head.std):
        if values is not None and values.shape != (head.width,):
            raise DataError(f"{name}: its normalisation has {list(values.shape)} numbers, not {head.width}")
    if any(not 0 <= column < head.width for column in head.constant):
        raise DataError(f"{name}: its constant columns {head.constant} are not all of {head.width}")


def save_head(head: Head, path: Path) -> None:
    """Writes a head in our form."""
    from safetensors.torch import save_file

    tensors = {f"layers.{number}.weight": weight.contiguous() for number, weight in enumerate(head.weights)}
    tensors |= {f"layers.{number}.bias": bias.contiguous() for number, bias in enumerate(head.biases)}
    if head.mean is not None and head.std is not None:
        tensors |= {"mean": head.mean, "std": head.std}
    described = json.dumps({"relu_after": list(head.relu_after), "constant": list(head.constant)})
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {_METADATA: described})


def main(words: Sequence[str]) -> int:
    """Converts a published head: IN OUT.safetensors. Prints what it is."""
    if len(words) != 2:
        print(
            "usage: python -m data_pipeline.taggers.head_files IN.pth|IN.zip OUT.safetensors", file=sys.stderr
        )
        return 2
    try:
        head = load_head(Path(words[0]))
        save_head(head, Path(words[1]))
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = "-".join(str(size) for size in [head.width, *(weight.shape[0] for weight in head.weights)])
    print(f"{words[1]}: {sizes}, ReLU after layers {list(head.relu_after)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
