"""A recipe of configs/recipe by its name, for comparing it with the one that a run was made with."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.recipe import RecipeConfig


def compose_recipe(name: str) -> RecipeConfig:
    """The recipe.

    Raises:
        ConfigError: there is none of that name, or it leaves a value open.
    """
    folder = CONFIG_DIR / "recipe"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(unknown_name("recipe", name, known, do="index.recipes names it."))
    merged = OmegaConf.merge(OmegaConf.structured(RecipeConfig), _load(folder, name))
    if missing := sorted(OmegaConf.missing_keys(merged)):
        raise ConfigError(
            f"recipe {name!r} of index.recipes has no value for {', '.join(missing)}; a recipe that is compared is "
            "taken as its file has it: write a configs/recipe/<name>.yaml with the values and name that one"
        )
    recipe = OmegaConf.to_object(merged)
    assert isinstance(recipe, RecipeConfig)
    return recipe


def _load(folder: Path, name: str) -> Any:
    """A recipe's file on top of those that it is based on."""
    own: Any = OmegaConf.load(folder / f"{name}.yaml")
    based_on = [each for each in own.pop("defaults", []) if each != "_self_"]
    return OmegaConf.merge(*(_load(folder, each) for each in based_on), own)
