"""Class names and templates that installed packages carry: CLIP_benchmark's lists by language, CuPL's prompts,
Babel-ImageNet's 93 languages, and open_clip's ImageNet lists. They are read there, not copied here.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, unknown_name

CUPL, OPEN_CLIP, BABEL = "cupl/", "open_clip/", "babel_imagenet"
"""How names that are not a data set of CLIP_benchmark's lists start; BABEL is the whole name."""


@dataclass(frozen=True)
class BabelPrompts:
    """ImageNet in one language (Geigle et al. 2023): the classes whose names could be translated."""

    indices: list[int]  # of the classes among ImageNet's 1,000, in the order of the names
    class_names: list[str]
    templates: list[str]


def benchmark_table(language: str, what: str) -> dict[str, Any]:
    """A table of CLIP_benchmark's, data set -> list.

    Args:
        language: en, or one of those that have ImageNet's (ar, cn, it, jp).
        what: "classnames" or "zeroshot_classification_templates".

    Raises:
        ConfigError: no such language, or the package is not installed.
    """
    folder = _benchmark_folder()
    path = folder / f"{language}_{what}.json"
    if not path.is_file():
        languages = [file.name.split("_")[0] for file in folder.glob(f"*_{what}.json")]
        do = f"Or give the prompts by file, or take prompts={BABEL} for ImageNet in 93 languages."
        raise ConfigError(unknown_name("language of prompts", language, languages, do=do))
    return _read(path)


def cupl_table() -> dict[str, dict[str, list[str]]]:
    """Data set -> class name -> prompts by a language model (Pratt et al. 2022), from CLIP_benchmark."""
    return _read(_benchmark_folder() / "cupl_prompts.json")


def babel_prompts(language: str) -> BabelPrompts:
    """Babel-ImageNet's names and the templates that were translated for it, from CLIP_benchmark.

    Raises:
        ConfigError: no such language.
    """
    folder = _benchmark_folder()
    names, templates = _read(folder / "babel_imagenet.json"), _read(folder / "nllb_dist13b_prompts.json")
    code = language.upper()
    if code not in names or code not in templates:
        known = sorted(names.keys() & templates.keys())
        raise ConfigError(unknown_name("language of Babel-ImageNet", code, known))
    indices, class_names = names[code]
    return BabelPrompts(indices, class_names, [text.replace("{}", "{c}") for text in templates[code]])


def open_clip_templates() -> dict[str, list[str]]:
    """open_clip's template lists for ImageNet, with `{c}` for the class name."""
    from open_clip import zero_shot_metadata as metadata

    return {
        "imagenet": [fill("{c}") for fill in metadata.OPENAI_IMAGENET_TEMPLATES],
        "imagenet_simple": [fill("{c}") for fill in metadata.SIMPLE_IMAGENET_TEMPLATES],
    }


def open_clip_class_names() -> list[str]:
    """open_clip's names of ImageNet's 1,000 classes."""
    from open_clip import zero_shot_metadata as metadata

    return list(metadata.IMAGENET_CLASSNAMES)


def _benchmark_folder() -> Path:
    spec = importlib.util.find_spec("clip_benchmark")  # its import would load every data set library
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "class names and templates come from the clip_benchmark package; pip install clip-benchmark"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "datasets"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
