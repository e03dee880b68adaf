"""The settings of docs/taggers.md as one types them on the command line."""

import hashlib

from hydra import compose, initialize_config_dir
from tag_runs import export

from crawl2clip.config import CONFIG_DIR, register, typed
from data_pipeline.config import PipelineConfig
from data_pipeline.tag import TAGGERS, known_columns, make_stages, tag_columns


def test_every_tagger_composes_from_the_command_line_and_its_columns_are_known(tmp_path):
    import numpy as np
    import polars as pl
    import torch
    from sample_images import image_file

    weights = export(tmp_path / "weights")
    head = tmp_path / "head.pth"
    torch.save(torch.nn.Linear(16, 1).state_dict(), head)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(image_file(20, 20))
    (tmp_path / "metadata.json").write_text('["a"]')
    np.save(tmp_path / "centroids.npy", np.ones((2, 16), np.float32))
    np.save(tmp_path / "imagenet.npy", np.array([1]))
    watermark = tmp_path / "watermark.pt"
    watermark.write_bytes(b"weights")
    taggers = [name for name in TAGGERS if name not in ("imagenet_text", "aesthetic", "unsafe")]
    mine = f"tagger: head, clip_model: clip, weights: {head}, sha256: {sha256(head)}, output: linear"
    words = [
        f"output_dir={tmp_path}/out",
        "recipe.clip_models=[{name: clip}]",
        f"tagger.pretrained={weights}",
        f"tagger.taggers=[{','.join(taggers)}]",
        f"+tagger.heads={{mine: {{{mine}}}}}",
        "tagger.use_heads=[mine]",
        f"tagger.watermark.weights={watermark}",
        f"tagger.watermark.sha256={sha256(watermark)}",
        f"tagger.metaclip.metadata={tmp_path}/metadata.json",
        f"tagger.image_cluster.centroids={tmp_path}/centroids.npy",
        f"tagger.image_cluster.imagenet={tmp_path}/imagenet.npy",
        f"+tagger.contamination.sets.photos={tmp_path}/set",
    ]
    register("data_pipeline_schema", PipelineConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = typed(
            compose("data_pipeline", ["recipe=laion400m", "tagger.model=null", *words]), PipelineConfig
        )
    stages = make_stages(config)
    folders = [stage.folder for stage in stages]
    assert all(tmp_path / "out" / "tags" / name in folders for name in taggers)
    assert not (tmp_path / "out").exists()
    known = known_columns(config.tagger, pl.Schema({"uid": pl.String}))
    assert {"aesthetic_v1", "unsafe_l14", "mine"} <= set(config.tagger.heads)
    for columns in tag_columns(config.tagger).values():
        assert columns.items() <= dict(known).items()
    assert {"nsfw", "zero_shot_animal", "head_mine", "pwatermark", "pii_kinds", "contaminated_by"} <= set(
        known
    )


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()
