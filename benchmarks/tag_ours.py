"""Our CLIP tagger in a process of its own, for benchmarks/tag.py: `python tag_ours.py RAW WEIGHTS MODEL BATCH`.

The stage's own set-up and run, one shard after the other, as a worker does it. The last line printed is JSON.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import polars as pl
import torch

from data_pipeline.clip_models import ClipModelConfig
from data_pipeline.clip_tagger import ClipStage


def main(raw: str, weights: str, model: str, batch: str) -> None:
    """Tags all shards and prints."""
    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as place:
        stage = ClipStage(
            name="tag/clip", folder=Path(place), settings={}, raw=Path(raw), language_tags=None,
            models=(ClipModelConfig(name="clip", model=model, pretrained=weights),),
            device="cuda" if cuda else "cpu", precision="bf16" if cuda else "fp32", image_batch_size=int(batch),
            decode_margin=2.0,
        )  # fmt: skip
        context = stage.setup()
        encoder = context.image_towers["clip"]
        encoder.encode_images(
            torch.zeros(1, 3, encoder.image_size, encoder.image_size)
        )  # first calls cost seconds
        encoder.encode_texts(["warm"])
        wall, cpu = time.perf_counter(), cpu_seconds()
        for shard in stage.shards():
            stage.run(context, shard, Path(place))
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        tags = pl.read_parquet(f"{place}/*.parquet")
    scores = dict(tags.select("uid", "clip_score").iter_rows())
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "waited_s": context.waited_s, "scores": scores}))


def cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main(*sys.argv[1:])
