"""The command's settings: every suite composes, and each wrong one is told apart."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.errors import ConfigError
from crawl2clip.models import ModelConfig
from evaluate.averages import AverageConfig
from evaluate.command import models_of
from evaluate.config import EvaluateConfig, PrecisionConfig, SuiteConfig, register_zoo
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.data.prompts import known_templates

SUITES = sorted(path.stem for path in (CONFIG_DIR / "suite").glob("*.yaml"))


def composed(*overrides: str) -> EvaluateConfig:
    register("evaluate_schema", EvaluateConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("evaluate", ["pretrained=x", *overrides]), EvaluateConfig)


@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_composes_and_its_prompts_are_known(suite):
    config = composed(f"suite={suite}")
    assert config.suite.name == suite
    for name, entry in config.suite.datasets.items():
        if Task.zero_shot in entry.tasks and entry.builder:
            assert known_templates(entry.prompts or entry.builder or name, entry.language)


def test_the_emoji_suite_is_what_the_demo_scores():
    suite = composed("suite=emoji").suite
    assert {name: [t.value for t in entry.tasks] for name, entry in suite.datasets.items()} == {
        "emoji_concepts": ["zero_shot"],
        "emoji_retrieval": ["retrieval"],
        "emoji_subgroups": ["linear_probe", "few_shot"],
    }
    assert suite.few_shot is not None
    assert (suite.few_shot.shots, len(suite.few_shot.seeds)) == ([1, 2, 4], 3)


def test_any_open_clip_model_and_any_of_ours_can_be_named():
    register_zoo()
    assert "ViT-B-32.yaml" in ConfigStore.instance().list("model")
    for asked, name in (
        ("ViT-B-32", "ViT-B-32"),
        ("ViT-L-14-quickgelu", "ViT-L-14-quickgelu"),
        ("tiny", "tiny"),
    ):
        model = composed(f"model={asked}").model
        assert model is not None
        assert model.name == name
    assert composed().model is None
    assert composed("precision=bf16").precision == PrecisionConfig(
        name=composed("precision=bf16").precision.name
    )


def test_one_data_set_of_a_suite_can_be_changed():
    config = composed("suite=emoji", "suite.datasets.emoji_concepts.path=elsewhere", "max_bad_images=3")
    assert config.suite.datasets["emoji_concepts"].path == "elsewhere"
    assert config.max_bad_images == 3


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="image_batch_size is 0; give 1 or more"):
        composed("image_batch_size=0")
    with pytest.raises(ConfigError, match="max_bad_images is -1; give 0 or more"):
        composed("max_bad_images=-1")
    with pytest.raises(ConfigError, match=r"cache_limit_gb is -1\.0; give 0 or more"):
        composed("cache_limit_gb=-1")


def test_an_average_that_does_not_fit_its_suite_is_refused():
    one = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    other = DatasetConfig(tasks=[Task.zero_shot], metric="mean_per_class_recall")
    with pytest.raises(ConfigError, match="mean of acc1, but 'b' has the metric mean_per_class_recall"):
        SuiteConfig(
            name="mixed", datasets={"a": one, "b": other}, averages=[AverageConfig(name="all", metric="acc1")]
        )


def test_one_model_or_several_are_named_and_none_twice():
    several = composed(
        "pretrained=null", "models=[{model: ViT-B-32, pretrained: openai}, {pretrained: runs/a}]"
    )
    assert models_of(several) == [(ModelConfig(name="ViT-B-32"), "openai"), (None, "runs/a")]
    assert models_of(composed()) == [(None, "x")]
    with pytest.raises(ConfigError, match="no weights are named; give pretrained=<open_clip tag"):
        composed("pretrained=null")
    with pytest.raises(ConfigError, match="models names 1 models, and model or pretrained another"):
        composed("models=[{pretrained: y}]")
    with pytest.raises(ConfigError, match="models names B openai more than once"):
        composed("pretrained=null", "models=[{model: B, pretrained: openai}, {model: B, pretrained: openai}]")


def test_few_shot_without_settings_and_an_empty_suite_are_refused():
    with pytest.raises(ConfigError, match=r"b have the few_shot task, but suite.few_shot is not set"):
        SuiteConfig(name="s", datasets={"b": DatasetConfig(tasks=[Task.few_shot], metric="acc1")})
    with pytest.raises(ConfigError, match="suite 's' has no data sets"):
        SuiteConfig(name="s", datasets={})
