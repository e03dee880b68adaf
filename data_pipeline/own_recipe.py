"""A recipe from a file of the user's: `recipe=path/to/mine.yaml` in place of the name of a shipped one.

Hydra takes names of files in configs/recipe/ only. So the file is read here and put beside the shipped ones, in memory,
before Hydra composes; it may start from one of them with `defaults: [laion5b, _self_]`.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # of PyYAML, which OmegaConf reads with

from crawl2clip.errors import ConfigError

_OVERRIDE = "recipe="
_SUFFIXES = (".yaml", ".yml")


def with_own_recipe(words: Sequence[str]) -> list[str]:
    """The command line, a recipe's file replaced by the name under which Hydra finds it.

    Raises:
        ConfigError: the file is missing or is not YAML of a recipe.
    """
    return [
        f"{_OVERRIDE}{register_recipe(word.removeprefix(_OVERRIDE))}"
        if word.startswith(_OVERRIDE) and word.endswith(_SUFFIXES)
        else word
        for word in words
    ]


def register_recipe(path: str) -> str:
    """Makes the recipe in a file known to Hydra; the name by which it is."""
    asked = f"recipe={path}"
    try:
        value = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(
            f"{asked} cannot be read ({error.strerror or error}); give the path of a YAML file, or the name of "
            "a recipe in configs/recipe without .yaml"
        ) from error
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(f"{asked} is not YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(value, DictConfig) or not ({"rules", "defaults"} & {str(key) for key in value}):
        raise ConfigError(
            f"{asked} is not a recipe: it has no rules; see configs/recipe/datacomp_basic.yaml for a short one"
        )
    name = f"{Path(path).stem}_of_your_own"
    ConfigStore.instance().store(group="recipe", name=name, node=value)
    return name
