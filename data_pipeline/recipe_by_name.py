"""A recipe by its name or file, for what compares recipes: `recipe_diff` and the explorer's index."""

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from crawl2clip.config import CONFIG_DIR, explain
from crawl2clip.errors import ConfigError, unknown_name
from data_pipeline.own_recipe import register_recipe
from data_pipeline.recipe import RecipeConfig


def load_recipe(name: str) -> RecipeConfig:
    """The recipe of that name in configs/recipe, or in that YAML file.

    Raises:
        ConfigError: there is none, or it is not a recipe.
    """
    if name.endswith((".yaml", ".yml")):
        chosen = register_recipe(name)
    else:
        known = [path.stem for path in (CONFIG_DIR / "recipe").glob("*.yaml")]
        if name not in known:
            raise ConfigError(unknown_name("recipe", name, known, do="A file of your own ends in .yaml."))
        chosen = name
    within = GlobalHydra.instance()
    command, within.hydra = within.hydra, None  # a command that runs under Hydra may ask, too
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            composed = compose(f"recipe/{chosen}")["recipe"]
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RecipeConfig), composed))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"recipe {name!r} cannot be used: {explain(error)}") from error
    finally:
        within.hydra = command
    assert isinstance(recipe, RecipeConfig)
    return recipe
