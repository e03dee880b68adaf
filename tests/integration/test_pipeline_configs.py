"""Every composed pipeline config: it composes, its settings fit together, and every stage can be made from it."""

import hashlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from crawl_files import image, member, wat_record, wat_value
from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from data_pipeline.config import PipelineConfig
from data_pipeline.pipeline import STAGES, validate

GROUPS = ("source", "recipe", "executor", "policy")
NOTHING = hashlib.sha256(b"").hexdigest()
REQUIRED = {
    "commoncrawl": ["source.crawl=CC-MAIN-2024-33", "source.files=[]"],
    "metadata": ["source.files=['https://example.org/{00..31}.parquet']"],
    "slurm": ["executor.cluster=a100"],
    "emoji": ["tagger.model=ViT-B-32", "tagger.pretrained=openai"],
    "emoji_pretrained": ["tagger.model=ViT-B-32", "tagger.pretrained=openai"],
    "trusted": ["recipe.parameters.page_prefix=http://localhost/trusted/"],
    "dfn": ["tagger.model=ViT-B-32", "tagger.pretrained=openai"],
    **dict.fromkeys(
        ("datacomp_image", "datacomp_image_and_clip"),
        (
            "tagger.image_cluster.centroids={files}/centroids.npy",
            "tagger.image_cluster.imagenet={files}/imagenet.npy",
        ),
    ),
    "datacomp_text": [
        "tagger.imagenet_text.wordnet={files}",
        "tagger.imagenet_text.synsets={files}/synsets.txt",
    ],
    **dict.fromkeys(
        ("laion_aesthetic_v1", "laion_art"),
        ("tagger.watermark.weights={files}/watermark.pt", f"tagger.watermark.sha256={NOTHING}"),
    ),
    **dict.fromkeys(
        ("metaclip", "metaclip_400m", "metaclip_2_5b"), ("tagger.metaclip.metadata={files}/metadata.json",)
    ),
}
"""What a choice cannot know by itself; {files} is the folder of `write_files`."""


def write_files(folder):
    """Stand-ins for what recipes need and we cannot ship."""
    folder.mkdir()
    np.save(folder / "centroids.npy", np.zeros((2, 768), np.float32))
    np.save(folder / "imagenet.npy", np.array([1]))
    for name in ("index.noun", "data.noun", "lexnames", "watermark.pt"):
        (folder / name).write_text("")
    (folder / "synsets.txt").write_text("n01440764\n")
    (folder / "metadata.json").write_text('["cat", "dog"]')


def choices(group):
    return sorted(path.stem for path in (Path(CONFIG_DIR) / group).glob("*.yaml"))


@pytest.mark.parametrize(
    ("group", "choice"), [(group, choice) for group in GROUPS for choice in choices(group)]
)
def test_every_choice_of_every_group(group, choice, tmp_path, monkeypatch):
    if choice == "ray":
        pytest.importorskip("ray", reason="pip install 'crawl2clip[ray]'")
    # A large extra that only the multilingual text tower of recipe=laion5b needs.
    monkeypatch.setitem(sys.modules, "sentence_transformers", ModuleType("sentence_transformers"))
    monkeypatch.setitem(sys.modules, "gcld3", ModuleType("gcld3"))  # the extra of recipe=laion5b_exact
    (tmp_path / "a.wat.gz").write_bytes(member(wat_record(wat_value([image("a.jpg")], url="https://h.org/"))))
    words = [
        f"{group}={choice}",
        f"output_dir={tmp_path}/out",
        "download.user_agent='tests/1.0 (+https://example.org/bot)'",
        f"source.files=['{tmp_path}/*.gz']",
        *(word.replace("{files}", str(tmp_path / "files")) for word in REQUIRED.get(choice, ())),
    ]
    write_files(tmp_path / "files")
    register("data_pipeline_schema", PipelineConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(compose("data_pipeline", words), PipelineConfig)
    steps = validate(config)
    assert list(steps) == [name for name in STAGES if name not in ("documents", "index")]
    assert all(steps[name] for name in steps if name != "tag" or config.tagger.taggers)
    assert not (tmp_path / "out").exists()
