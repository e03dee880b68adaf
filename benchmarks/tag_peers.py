"""The peers of benchmarks/tag.py: `python tag_peers.py open_clip|clip_retrieval RAW WEIGHTS MODEL BATCH`.

Imports nothing of ours, since clip-retrieval has an environment of its own. The last line with a brace is JSON.
"""

import glob
import io
import json
import resource
import sys
import tempfile
import time

sys.path.pop(0)  # this folder has a train.py and a loss.py, which nobody should find by mistake

import numpy as np
import torch


def open_clip_loop(raw: str, weights: str, model_name: str, batch_size: int) -> dict:
    """What one writes after open_clip's README: scores of all pairs, batch after batch."""
    import open_clip
    import webdataset
    from PIL import Image

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _, preprocess = open_clip.create_model_and_transforms(
        model_name, pretrained=weights, device=device
    )
    model.eval()
    tokenizer = open_clip.get_tokenizer(model_name)
    size = model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    with torch.inference_mode():  # first calls cost seconds
        model.encode_image(torch.zeros(1, 3, side, side, device=device))
        model.encode_text(tokenizer(["warm"]).to(device))
    wall, cpu = time.perf_counter(), cpu_seconds()
    scores = {}
    dataset = (
        webdataset.WebDataset(sorted(glob.glob(f"{raw}/*.tar")), shardshuffle=False)
        .map(lambda sample: (
            sample["__key__"],
            preprocess(Image.open(io.BytesIO(sample["jpg"]))),
            tokenizer(sample["txt"].decode())[0],
        ))
        .batched(batch_size)
    )  # fmt: skip
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        for keys, images, tokens in dataset:
            image_features = model.encode_image(images.to(device), normalize=True).float()
            text_features = model.encode_text(tokens.to(device), normalize=True).float()
            cosines = (image_features * text_features).sum(dim=-1)
            scores.update(zip(keys, cosines.tolist(), strict=True))
    return {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "scores": scores}


def clip_retrieval(raw: str, weights: str, model_name: str, batch_size: int) -> dict:
    """clip-retrieval's clip_inference, less the loading and warming of its model."""
    import pandas
    from clip_retrieval.clip_inference import mapper
    from clip_retrieval.clip_inference.main import main as clip_inference

    loading = {"wall_s": 0.0, "cpu_s": 0.0}
    load = mapper.load_clip

    def timed_load(*arguments, **options):
        wall, cpu = time.perf_counter(), cpu_seconds()
        found = load(*arguments, **options)
        loading["wall_s"] += time.perf_counter() - wall
        loading["cpu_s"] += cpu_seconds() - cpu
        return found

    mapper.load_clip = timed_load
    name = f"open_clip:{model_name}/{weights}"
    load(clip_model=name, use_jit=False, warmup_batch_size=1, clip_cache_path=None)  # its reader asks first
    shards = sorted(glob.glob(f"{raw}/*.tar"))
    with tempfile.TemporaryDirectory() as place:
        wall, cpu = time.perf_counter(), cpu_seconds()
        clip_inference(
            input_dataset=f"{raw}/{{{','.join(shard.split('/')[-1] for shard in shards)}}}", output_folder=place,
            input_format="webdataset", batch_size=batch_size, num_prepro_workers=1, clip_model=name,
            output_partition_count=1,
        )  # fmt: skip
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        images = np.load(f"{place}/img_emb/img_emb_0.npy").astype(np.float32)
        texts = np.load(f"{place}/text_emb/text_emb_0.npy").astype(np.float32)
        keys = pandas.read_parquet(f"{place}/metadata/metadata_0.parquet")["image_path"].tolist()
    scores = dict(zip(keys, (images * texts).sum(axis=1).tolist(), strict=True))
    return {"wall_s": wall - loading["wall_s"], "cpu_s": cpu - loading["cpu_s"], "scores": scores}


def cpu_seconds() -> float:
    """Of this process and the children it has waited for."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    program = {"open_clip": open_clip_loop, "clip_retrieval": clip_retrieval}[sys.argv[1]]
    found = json.dumps(program(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
    print(f"\n{found}", flush=True)  # clip-retrieval leaves a line without its end
