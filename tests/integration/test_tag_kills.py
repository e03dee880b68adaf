"""kill -9 in the middle of tagging, and the same command again: the same bytes as a run that nobody killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_images import image_file
from tag_runs import export, write_raw_shards

from crawl2clip.schema import uid_of

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, signal, sys
from types import SimpleNamespace
from tag_runs import config_of
from data_pipeline.stage import Outcome, make_shard, publish_shard, run_stage, temporary_folder
from data_pipeline.tag import make_stages
from data_pipeline.taggers.contamination import ContaminationConfig
from data_pipeline.taggers.duplicates import DuplicatesConfig
from data_pipeline.taggers.zero_shot import PromptSetConfig, ZeroShotConfig

class Dying:
    # Kills this process with -9 when so many shards of all stages are made, before the last is in place.
    def __init__(self, shards):
        self.left = shards
    def run(self, stage, shards):
        context = stage.setup()
        for shard in shards:
            make_shard(stage, context, shard, temporary_folder(stage, shard))
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            publish_shard(stage, shard, temporary_folder(stage, shard))
            yield Outcome(shard, None)

if __name__ == "__main__":
    output, weights, sets, shards = sys.argv[1:]
    config = config_of(
        weights, [{"name": "tiny"}], ["clip", "zero_shot", "text", "duplicates", "contamination"],
        zero_shot=ZeroShotConfig(sets={"s": PromptSetConfig(top=1, plain=["a"], flagged=["b"])}),
        duplicates=DuplicatesConfig(
            hamming_radius=2, min_cosine=0.9, rows_per_cluster=1000, rows_per_range=20, clip_model="tiny"
        ),
        contamination=ContaminationConfig(sets={"e": sets}, hamming_radius=2, min_cosine=0.99, clip_model="tiny"),
    )
    executor = Dying(int(shards))
    for stage in make_stages(SimpleNamespace(output_dir=output, tagger=config)):
        run_stage(stage, executor, max_failed_fraction=0.0)
"""


def tags_of(output):
    """name -> bytes of all that the taggers wrote, records of time aside."""
    files = sorted((output / "tags").rglob("*"))
    kept = [
        path for path in files if path.suffix in (".parquet", ".npy", ".arrow", ".json") and path.is_file()
    ]
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in kept
        if not path.name.endswith(("stats.json", "manifest.json"))
    }


@pytest.mark.slow
def test_tagging_goes_on_after_kill_9_and_ends_with_the_same_bytes(tmp_path):
    weights = export(tmp_path / "weights")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x.jpg").write_bytes(image_file(30, 20, seed=3))
    rng = np.random.default_rng(0)
    images = [image_file(30, 20, "PNG", seed=seed % 9) for seed in range(24)]
    rows = [
        {
            "uid": uid_of("u", str(n)),
            "text": f"text {n}",
            "sha256": f"{n % 9:064x}",
            "phash": rng.bytes(8).hex(),
        }
        for n in range(24)
    ]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    for run, kills in (("whole", [0]), ("killed", [2, 9, 0])):
        write_raw_shards(tmp_path / run, [rows[:12], rows[12:]], [images[:12], images[12:]])
        for shards in kills:
            command = [
                sys.executable,
                str(script),
                str(tmp_path / run),
                weights,
                str(tmp_path / "set"),
                str(shards),
            ]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == (-signal.SIGKILL if shards else 0), done.stderr[-2000:]
    assert tags_of(tmp_path / "killed") == tags_of(tmp_path / "whole")
