"""Every composed pipeline config: it composes, its settings fit together, and every stage can be made from it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from crawl_files import image, member, wat_record, wat_value
from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from data_pipeline.config import PipelineConfig
from data_pipeline.pipeline import STAGES, validate

GROUPS = ("source", "recipe", "executor")
REQUIRED = {
    "commoncrawl": ["source.crawl=CC-MAIN-2024-33", "source.files=[]"],
    "metadata": ["source.files=['https://example.org/{00..31}.parquet']"],
    "emoji": ["tagger.model=ViT-B-32", "tagger.pretrained=openai"],
    "emoji_pretrained": ["tagger.model=ViT-B-32", "tagger.pretrained=openai"],
    "trusted": ["recipe.parameters.page_prefix=http://localhost/trusted/"],
}
"""What a choice cannot know by itself."""


def choices(group):
    return sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_of_every_group(group, choice, tmp_path, monkeypatch):
    # A large extra that only the multilingual text tower of recipe=laion5b needs.
    monkeypatch.setitem(sys.modules, "sentence_transformers", ModuleType("sentence_transformers"))
    monkeypatch.setitem(sys.modules, "gcld3", ModuleType("gcld3"))  # the extra of recipe=laion5b_exact
    (tmp_path / "a.wat.gz").write_bytes(member(wat_record(wat_value([image("a.jpg")], url="https://h.org/"))))
    words = [
        f"{group}={choice}",
        f"output_dir={tmp_path}/out",
        "download.user_agent='tests/1.0 (+https://example.org/bot)'",
        f"source.files=['{tmp_path}/*.gz']",
        *REQUIRED.get(choice, ()),
    ]
    register("data_pipeline_schema", PipelineConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(compose("data_pipeline", words), PipelineConfig)
    steps = validate(config)
    assert list(steps) == [name for name in STAGES if name not in ("documents", "index")]
    assert all(steps[name] for name in steps if name != "tag" or config.tagger.taggers)
    assert not (tmp_path / "out").exists()
