"""The suites of configs/suite as tests want them: typed, without the rest of an evaluation's settings."""

import functools

from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from evaluate.config import EvaluateConfig, SuiteConfig


@functools.cache
def suite_of(name: str) -> SuiteConfig:
    """A choice of configs/suite; every caller gets the same one, so leave it as it is."""
    register("evaluate_schema", EvaluateConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("evaluate", ["pretrained=weights.pt", f"suite={name}"]), EvaluateConfig).suite
