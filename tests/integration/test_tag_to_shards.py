"""Raw shards to training shards through worker processes: tagged, selected, resharded, killed and gone on with."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from PIL import Image
from toy_stages import Inline

from crawl2clip.encoder import load_encoder
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of, uids_to_array
from crawl2clip.shards import ShardWriter, list_shards, read_manifest
from data_pipeline import report, reshard, select, tag
from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.language import LanguageDetector
from data_pipeline.recipe import RecipeConfig, RuleConfig
from data_pipeline.reshard import ReshardConfig
from data_pipeline.select import SelectConfig
from data_pipeline.stage import (
    finished_shards,
    run_stage,
)
from data_pipeline.tag import TagConfig

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def write_raw(folder, shards):
    """Raw shards of (uid, text, image bytes) lists."""
    folder.mkdir(parents=True)
    for number, pairs in enumerate(shards):
        name = f"{number:08d}"
        blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "url": "", "text_source": "alt", "status": "success"}
        rows = [{**blank, "uid": uid, "text": text, "bytes": len(data)} for uid, text, data in pairs]
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), folder / f"{name}.parquet")
        with ShardWriter(folder / f"{name}.tar") as writer:
            for uid, text, data in pairs:
                writer.write(uid, {"jpg": data, "txt": text.encode(), "json": b"{}"})
        stats = {
            "counts": {"rows_in": len(rows), "rows_out": len(rows), "dropped": {}, "extra": {}},
            "seconds": 1.0,
        }
        (folder / f"{name}.stats.json").write_text(json.dumps(stats))
    names = [{"name": f"{number:08d}"} for number in range(len(shards))]
    (folder / "manifest.json").write_text(json.dumps({"stage": "download", "shards": names}))


def jpeg(seed):
    pixels = np.random.default_rng(seed).integers(256, size=(3, 3, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((24, 20), Image.Resampling.NEAREST).save(buffer, "jpeg", quality=95)
    return buffer.getvalue()


def test_tag_select_reshard_and_report(tmp_path):
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    weights = export_model(build_model(config), config, tmp_path / "weights", provenance={})
    texts = [
        f"a photo of object number {n}" if n % 2 else f"ein schönes Bild von Gegenstand {n}"
        for n in range(40)
    ]
    pairs = [(uid_of(str(number), text), text, jpeg(number)) for number, text in enumerate(texts)]
    output = tmp_path / "run"
    write_raw(output / "raw", [pairs[:20], pairs[20:]])
    settings = SimpleNamespace(
        output_dir=str(output),
        tagger=TagConfig(
            taggers=["language", "clip"],
            pretrained=str(weights),
            models=[ClipModelConfig(name="tiny")],
            language_detector=LanguageDetector.fasttext,
            min_language_probability=0.3,
            device="cpu",
            precision="fp32",
            image_batch_size=8,
            decode_margin=2.0,
            weights_cache="unused",
        ),
        recipe=RecipeConfig(
            name="half",
            version="1",
            source="-",
            min_text_length=0,
            min_bytes=0,
            taggers=["language", "clip"],
            rules=[RuleConfig(reason="low", top_fraction=0.5, of="clip_score", by="language_bucket")],
        ),
        select=SelectConfig(phash_distance=0),
        reshard=ReshardConfig(samples_per_shard=8, seed=3),
    )
    workers = LocalExecutor(num_workers=2, retries=0, shard_timeout_s=120.0)
    stages = [
        *tag.make_stages(settings),
        select.make_stage(settings),
        *reshard.make_stages(settings),
        report.make_stage(settings),
    ]
    for stage in stages:
        executor = workers if stage.name in ("tag/clip", "reshard/write") else Inline()
        run_stage(stage, executor, max_failed_fraction=0.0)

    encoder = load_encoder(None, str(weights))
    images = torch.stack([encoder.preprocess(Image.open(io.BytesIO(data))) for _, _, data in pairs])
    scores = (encoder.encode_images(images) * encoder.encode_texts(texts)).sum(dim=1).tolist()
    language = pl.read_parquet(output / "tags" / "language" / "*.parquet")
    assert dict(language.group_by("language_bucket").len().iter_rows()) == {"en": 20, "other": 20}
    best = {
        uid
        for parity in (0, 1)
        for _, uid in sorted((scores[n], pairs[n][0]) for n in range(parity, 40, 2))[10:]
    }

    entries = read_manifest(output / "shards")
    assert [entry.samples for entry in entries] == [6, 7, 7]
    # As open_clip's training reads a shard: the image decoded by extension, the caption as text.
    reader = webdataset.WebDataset(list_shards(str(output / "shards")), shardshuffle=False).decode("pilrgb")
    read = {sample["__key__"]: sample for sample in reader.rename(image="jpg;png;webp", text="txt")}
    assert set(read) == best
    assert all(read[uid]["text"] == text for uid, text, _ in pairs if uid in best)
    assert read[min(best)]["image"].size == (24, 20)
    assert "top 50% by clip_score in each language_bucket" in (output / "report" / "report.html").read_text()

    for stage in stages:  # everything is there: nothing runs again
        assert run_stage(stage, workers, max_failed_fraction=0.0).done == 0


RESHARD = """
import sys
from types import SimpleNamespace
from data_pipeline.executors.local import LocalExecutor
from data_pipeline.reshard import ReshardConfig, make_stages
from data_pipeline.stage import run_stage
from toy_stages import DyingExecutor

if __name__ == "__main__":
    config = SimpleNamespace(output_dir=sys.argv[1], reshard=ReshardConfig(samples_per_shard=4, seed=0))
    settings = dict(num_workers=1, retries=0, shard_timeout_s=120.0)
    executor = DyingExecutor("reshard/write", 3, **settings) if "die" in sys.argv else LocalExecutor(**settings)
    for stage in make_stages(config):
        run_stage(stage, executor, max_failed_fraction=0.0)
"""


@pytest.mark.slow
def test_resharding_goes_on_after_kill_9_and_ends_with_the_same_bytes(tmp_path):
    pairs = [(uid_of(str(number), "x"), "x", bytes([number % 256]) * 4000) for number in range(600)]
    for run in ("killed", "whole"):
        write_raw(tmp_path / run / "raw", [pairs[:200], pairs[200:]])
        (tmp_path / run / "subset").mkdir()
        np.save(tmp_path / run / "subset" / "subset.uids.npy", uids_to_array(uid for uid, _, _ in pairs))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RESHARD))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, str(script), str(tmp_path / "killed")]

    killed = subprocess.run(
        [*command, "die"], env=environment, cwd=ROOT, stderr=subprocess.DEVNULL, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    written = tmp_path / "killed" / "reshard" / "write"
    done = finished_shards(written)
    assert 3 <= len(done) < 150
    times = {name: (written / f"{name}.tar").stat().st_mtime_ns for name in done}
    assert not (tmp_path / "killed" / "shards").exists()

    subprocess.run(command, env=environment, cwd=ROOT, check=True, capture_output=True)
    whole = SimpleNamespace(
        output_dir=str(tmp_path / "whole"), reshard=ReshardConfig(samples_per_shard=4, seed=0)
    )
    for stage in reshard.make_stages(whole):
        run_stage(stage, Inline(), max_failed_fraction=0.0)
    assert read_manifest(tmp_path / "killed" / "shards") == read_manifest(tmp_path / "whole" / "shards")
    assert {name: (written / f"{name}.tar").stat().st_mtime_ns for name in done} == times
