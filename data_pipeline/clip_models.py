"""Which CLIP models score which pairs: their settings, checks before any work, and text towers of other makers.

LAION-5B scored English captions with OpenAI's own text tower and all others with a multilingual one that was trained
to match the same image tower; hence a model here is a text tower, the image tower it is compared with, and the
language buckets it scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl
from omegaconf import MISSING

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json, sha256_of
from data_pipeline.language import LanguageBucket

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True, slots=True)
class ClipModelConfig:
    """One text tower, the image tower it is compared with, and the languages it scores."""

    name: str = MISSING  # names the column clip_score_<name>; lower_case_with_underscores
    model: str | None = None  # open_clip name of the image tower's model; null: tagger.model
    pretrained: str | None = (
        None  # its weights: open_clip tag, file or export folder; null: tagger.pretrained
    )
    text_model: str | None = (
        None  # a sentence-transformers text tower in place of the model's own (mCLIP's role)
    )
    languages: list[str] = field(default_factory=list)  # language buckets it scores; empty: every pair

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or not self.name.islower():
            raise ConfigError(
                f"a clip model is named {self.name!r}; the name becomes a column, so give lower-case letters, digits "
                "and _, a letter first"
            )
        buckets = [bucket.value for bucket in LanguageBucket]
        for language in self.languages:
            if language not in buckets:
                raise ConfigError(
                    unknown_name(f"language bucket of clip model {self.name!r}", language, buckets)
                )


def clip_columns(models: Sequence[ClipModelConfig]) -> dict[str, Any]:
    """The columns that the tagger adds, with their Polars types."""
    return {
        "clip_score": pl.Float32,  # cosine, -1 to 1: of the first model, in order, that scores the pair's language
        "clip_model": pl.String,  # that model's name
        **{
            f"clip_score_{model.name}": pl.Float32 for model in models
        },  # null where it does not score the language
        "clip_error": pl.String,  # why clip_score is null, one of CLIP_ERRORS; else null
    }


def tower_names(models: Sequence[ClipModelConfig]) -> dict[str, str]:
    """model name -> the name of its image tower, that of the first model with the same one.

    Args:
        models: with model and pretrained filled in.
    """
    first: dict[tuple[str | None, str | None], str] = {}
    return {
        config.name: first.setdefault((config.model, config.pretrained), config.name) for config in models
    }


def embed_dim_of(config: ClipModelConfig) -> int:
    """Width of a model's embeddings, without loading its weights.

    Raises:
        ConfigError: an unknown model.
        DataError: an export that cannot be read.
    """
    from crawl2clip.models import ModelConfig, architecture_of, read_export

    if config.pretrained is not None and Path(config.pretrained).is_dir():
        return read_export(Path(config.pretrained))["model_cfg"]["embed_dim"]
    return architecture_of(ModelConfig(name=config.model or ""))["embed_dim"]


def check_models(models: Sequence[ClipModelConfig]) -> None:
    """Checks, before any work and without loading a model, that the models can be there.

    Raises:
        ConfigError: no weights are named, a tag or model is unknown, or a text tower's package is not installed.
        DataError: a path of weights does not exist.
    """
    for config in models:
        if config.pretrained is None:
            raise ConfigError(
                f"no weights are named for clip model {config.name!r}; give tagger.pretrained=<open_clip tag, "
                ".pt/.safetensors file or export folder>, for example tagger.model=ViT-B-32 tagger.pretrained=openai"
            )
        _check_weights(config.name, config.model, config.pretrained)
        if config.text_model is not None:
            _require_sentence_transformers(config.text_model)


def _check_weights(name: str, model: str | None, pretrained: str) -> None:
    if Path(pretrained).exists():
        return
    if "/" in pretrained or Path(pretrained).suffix:
        raise DataError(
            f"the weights {pretrained!r} of clip model {name!r} do not exist; give an open_clip tag, a .pt or "
            ".safetensors file, or an export folder (train writes one to <run>/export)"
        )
    import open_clip

    if model is None:
        raise ConfigError(
            f"no architecture is named for clip model {name!r}; its tag {pretrained!r} needs "
            "tagger.model=<open_clip name>, or give a path of weights as tagger.pretrained"
        )
    known_models = open_clip.list_models()
    if model.replace("/", "-") not in known_models:
        do = f"The tag {pretrained!r} of clip model {name!r} needs tagger.model=<open_clip name>."
        raise ConfigError(unknown_name("model", model, known_models, do=do))
    tags = open_clip.list_pretrained_tags_by_model(model.replace("/", "-"))
    if pretrained not in tags:
        do = "A path would be a .pt or .safetensors file, or an export folder; none is there."
        raise ConfigError(unknown_name(f"pretrained weights for {model}", pretrained, tags, do=do))


def weights_fingerprint(pretrained: str | None) -> str | None:
    """SHA-256 that changes when the weights at a path do; None for a tag, which stands for fixed weights."""
    if pretrained is None or not Path(pretrained).exists():
        return None
    if Path(pretrained).is_file():
        return sha256_of(pretrained)
    return read_json(Path(pretrained) / "open_clip_config.json").get("weights_sha256")


def _require_sentence_transformers(text_model: str) -> None:
    import importlib.util
    import sys

    if (
        "sentence_transformers" not in sys.modules
        and importlib.util.find_spec("sentence_transformers") is None
    ):
        raise ConfigError(
            f"the text tower {text_model!r} needs the package sentence-transformers, which is not installed; "
            'pip install -e ".[multilingual]"'
        )


class TextTower(Protocol):
    """Captions in, L2-normalised float32 [N, D] features out; an open_clip `Encoder` is one."""

    def encode_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Features of captions, float32 [N, D] on the CPU, L2-normalised."""
        ...


class SentenceTextTower:
    """A sentence-transformers model as the text tower of a CLIP image tower it was trained to match."""

    def __init__(self, name: str, device: "torch.device | str") -> None:
        _require_sentence_transformers(name)
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]

        try:
            self._model = SentenceTransformer(name, device=str(device))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the text tower {name!r} is not in the local cache and could not be fetched "
                f"({str(error).splitlines()[0]}); downloads are off by default: set HF_HUB_OFFLINE=0 on a machine with "
                "internet, or give text_model=<folder>"
            ) from error

    def encode_texts(self, texts: Sequence[str]) -> "torch.Tensor":
        """Text features [N, D], float32 on the CPU, L2-normalised."""
        import torch

        features = self._model.encode(
            list(texts), convert_to_tensor=True, normalize_embeddings=True, show_progress_bar=False
        )
        return torch.as_tensor(features).float().cpu()
