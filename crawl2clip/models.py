"""CLIP models: built by open_clip, with weights from anywhere open_clip can load them.

`ModelConfig` names a model of open_clip's zoo or gives an architecture inline.
open_clip is imported inside functions: it takes seconds, and most of the pipeline's workers never need it.
"""

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import nn

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json, write_json
from crawl2clip.tokenizer import fast_tokenizer

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
TOKENIZER_MARK = "tokenizer_config.json"
"""What a folder with a Hugging Face tokenizer has."""


@dataclass(kw_only=True)
class ModelConfig:
    """Which CLIP model: a name that open_clip knows, or an architecture of one's own under a new name."""

    name: str = MISSING  # open_clip model name, or the name the export will carry
    pretrained: str | None = None  # open_clip tag, .pt/.safetensors file, or export folder to start from
    architecture: dict[str, Any] | None = None  # an open_clip model_cfg (embed_dim, vision_cfg, text_cfg)

    def __post_init__(self) -> None:
        if self.architecture is not None:
            lacking = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in self.architecture]
            if lacking:
                raise ConfigError(
                    f"model.architecture of {self.name!r} lacks {', '.join(lacking)}; it is an open_clip model_cfg "
                    "and needs embed_dim, vision_cfg and text_cfg"
                )


def known_models() -> list[str]:
    """Every model name of open_clip's zoo."""
    import open_clip

    return open_clip.list_models()


def architecture_of(config: ModelConfig) -> dict[str, Any]:
    """The open_clip model_cfg that a config stands for, a fresh copy.

    Raises:
        ConfigError: the name is not open_clip's and no architecture is given.
    """
    import open_clip

    if config.architecture is not None:
        return copy.deepcopy(config.architecture)
    name = config.name.replace("/", "-")
    found = open_clip.get_model_config(name)
    if found is None:
        do = "Or give model.architecture, an open_clip model_cfg."
        raise ConfigError(unknown_name("model", config.name, known_models(), do=do))
    if config.pretrained is not None:
        # Some weights were trained with QuickGELU under a name whose architecture has GELU. open_clip only warns, and
        # the wrong activation costs ImageNet points without an error (62.93 to 60.24 for B/32 laion400m_e32).
        trained = open_clip.get_pretrained_cfg(name, config.pretrained) or {}
        if trained.get("quick_gelu", False):
            found["quick_gelu"] = True
    return found


def build_model(config: ModelConfig) -> nn.Module:
    """A trainable CLIP model on the CPU in float32, with pretrained weights when the config names some.

    Raises:
        ConfigError: unknown model or tag, an architecture open_clip cannot build, or weights of another model.
        DataError: the weights are missing or cannot be read.
    """
    return create_model(config.name, architecture_of(config), config.pretrained)


def create_model(name: str, architecture: dict[str, Any], pretrained: str | None) -> nn.Module:
    """The model of an architecture, with the weights and preprocessing that `pretrained` names.

    Args:
        name: open_clip's name when `pretrained` is a tag; otherwise for messages only.
        architecture: an open_clip model_cfg.
        pretrained: an open_clip tag, a .pt or .safetensors file, an export folder, or None for fresh weights.

    Raises:
        ConfigError, DataError: as `build_model`.
    """
    import open_clip

    preprocess: dict[str, Any] = {}
    if pretrained is not None and Path(pretrained).is_dir():
        preprocess = read_export(Path(pretrained)).get("preprocess_cfg", {})
    elif pretrained is not None and not Path(pretrained).is_file():
        return _create_from_tag(name, architecture, pretrained)
    with tempfile.TemporaryDirectory() as folder:
        # A local-dir without weights is open_clip's way to build a model it has no name for.
        write_json(Path(folder) / CONFIG_NAME, {"model_cfg": architecture, "preprocess_cfg": preprocess})
        try:
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        except (TypeError, RuntimeError, ValueError, AssertionError, KeyError) as error:
            raise ConfigError(
                f"open_clip cannot build the architecture of {name!r}: {error}; compare it with the model_cfg of a "
                "model it knows (open_clip.get_model_config)"
            ) from error
    if pretrained is not None:
        file = _weights_in(Path(pretrained)) if Path(pretrained).is_dir() else Path(pretrained)
        _load_weights(model, file, name)
    return model


def _create_from_tag(name: str, architecture: dict[str, Any], tag: str) -> nn.Module:
    """The model with weights of open_clip's zoo."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        do = "A path would be a .pt or .safetensors file, or an export folder; none is there."
        raise ConfigError(unknown_name(f"pretrained weights for {name}", tag, tags, do=do))
    quick_gelu = architecture.get("quick_gelu", False)
    try:
        return open_clip.create_model(
            name, pretrained=tag, require_pretrained=True, force_quick_gelu=quick_gelu
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"the weights {tag!r} of {name} are not in the local cache and could not be fetched "
            f"({str(error).splitlines()[0]}); downloads are off by default: set HF_HUB_OFFLINE=0 on a machine with "
            "internet, or give pretrained=<path of the weights>"
        ) from error


def _load_weights(model: Any, file: Path, name: str) -> None:
    import pickle

    import open_clip
    from safetensors import SafetensorError

    try:
        with numpy_scalars_allowed():
            open_clip.load_checkpoint(model, str(file), strict=True, weights_only=True)
    except RuntimeError as error:
        if "size mismatch" in str(error) or "key(s) in state_dict" in str(error):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ConfigError(
                f"the weights in {file} are of another model than {name}: {' '.join(lines[1:3])[:300]}; "
                "name the model they were trained as"
            ) from error
        raise DataError(
            f"{file} cannot be read as model weights: {error}; fetch or export it again"
        ) from error
    except AssertionError as error:  # open_clip's, before it interpolates the positions of a text tower
        raise ConfigError(
            f"the weights in {file} are of another model than {name}: {error}; name the model they were trained as"
        ) from error
    except (
        pickle.UnpicklingError,
        SafetensorError,
        EOFError,
        OSError,
        KeyError,
        AttributeError,
        StopIteration,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{file} cannot be read as model weights ({reason}); give a safetensors file or a checkpoint of plain "
            "tensors (pickled code is never run), or fetch it again"
        ) from error


@contextmanager
def numpy_scalars_allowed() -> Iterator[None]:
    """Lets torch's loader of plain tensors accept NumPy numbers too.

    Before version 3, open_clip's cosine schedule put a numpy.float64 learning rate into the optimizer state, so no
    checkpoint trained with it would load. Such a number is a dtype and its bytes; no code of the file is run.
    """
    import numpy as np

    scalar: Any = np.float64(0).__reduce__()[0]
    if not hasattr(torch.serialization, "safe_globals"):  # torch 2.4
        yield
        return
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # before NumPy 2, and since
    allowed: list[Any] = [(scalar, name) for name in names]
    with torch.serialization.safe_globals([*allowed, np.dtype, type(np.dtype(np.float64))]):
        yield


def read_export(folder: Path) -> dict[str, Any]:
    """The config file of an export folder, open_clip's keys and ours.

    Raises:
        DataError: the folder is not an export.
    """
    value = read_json(folder / CONFIG_NAME)
    if not isinstance(value, dict) or "model_cfg" not in value:
        raise DataError(f"{folder / CONFIG_NAME} has no model_cfg; it is not an open_clip export")
    return value


def _weights_in(folder: Path) -> Path:
    for name in (WEIGHTS_NAME, "open_clip_pytorch_model.bin"):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder} has no {WEIGHTS_NAME}; export the model again")


def tokenizer_of(name: str, architecture: dict[str, Any], folder: Path | None = None) -> Any:
    """The tokenizer that open_clip gives this architecture, made faster where that changes no id.

    Called with a list of captions it gives int64 [N, context_length].

    Args:
        name: of the model; open_clip chooses by it when the architecture is that of its zoo.
        architecture: an open_clip model_cfg.
        folder: an export; when the model needs a Hugging Face tokenizer, its files there are taken.

    Raises:
        DataError: a Hugging Face tokenizer is neither in the folder nor in the local cache.
    """
    import open_clip

    text = architecture["text_cfg"]
    hub_name = text.get("hf_tokenizer_name")
    try:
        if hub_name and folder is not None and (folder / TOKENIZER_MARK).is_file():
            return open_clip.get_tokenizer(f"local-dir:{folder}")
        if architecture == open_clip.get_model_config(name):
            return fast_tokenizer(open_clip.get_tokenizer(name))
        if hub_name:
            from open_clip.tokenizer import HFTokenizer

            # As open_clip makes it for a model of its zoo; from a local-dir it would look for the files there.
            return HFTokenizer(
                hub_name,
                context_length=text.get("context_length", 77),
                tokenizer_mode=text.get("tokenizer_mode"),
                **text.get("tokenizer_kwargs", {}),
            )
    except OSError as error:
        raise DataError(
            f"the tokenizer {hub_name!r} of {name} is not in the local cache and could not be fetched "
            f"({str(error).splitlines()[0]}); downloads are off by default: set HF_HUB_OFFLINE=0 on a machine with "
            "internet"
        ) from error
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / CONFIG_NAME).write_text(json.dumps({"model_cfg": architecture}), encoding="utf-8")
        return fast_tokenizer(open_clip.get_tokenizer(f"local-dir:{place}"))


def preprocess_cfg_of(model: nn.Module) -> dict[str, Any]:
    """The preprocessing a model expects (open_clip's preprocess_cfg: size, mean, std, interpolation ...)."""
    from open_clip.transform import PreprocessCfg

    # DDP and the like keep the model under .module.
    visual: Any = getattr(model, "module", model).visual
    found = {**asdict(PreprocessCfg()), **getattr(visual, "preprocess_cfg", {})}
    # Lists, as a JSON file would give them, so that an exported model and a live one compare equal.
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a model's parameters and buffers, 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
