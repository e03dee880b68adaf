"""The CLIP tagger against a plain open_clip loop and clip-retrieval's inference: same model, shards, batch and threads.

    python benchmarks/tag.py [samples=96] [repeats=3] [batch=32] [model=ViT-B-32] [peer=runs/benchmarks/clip_retrieval]

Each program runs in a process of its own, in turn, and times what comes after the model is loaded and was called
once: reading, decoding, both towers, writing. The weights are random (the same file for all), which changes no time;
images have a short side of 256 pixels, as the download stage stores them, and captions the lengths of alt texts. The
plain loop is webdataset, open_clip's transform and tokenizer, both towers, a dot product. clip-retrieval runs in its
own virtual environment at `peer` (python -m venv, pip install clip-retrieval "setuptools<81"); without one it is left
out, and that is said. Its embeddings are float16, which is what its scores differ by. On the GPU, precision is bf16
for us and what clip-retrieval takes by itself.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from train_pairs import write_pairs

from crawl2clip.schema import DOWNLOAD_SCHEMA, uid_of
from crawl2clip.shards import ShardWriter, raise_fault, read_samples

ROOT = Path(__file__).resolve().parents[1]
PEER = str(ROOT / "runs" / "benchmarks" / "clip_retrieval")
NUM_SHARDS = 2


def main(words: list[str]) -> None:
    """Makes shards and weights, runs all in turn, prints the result lines."""
    settings = {
        "samples": "96",
        "repeats": "3",
        "batch": "32",
        "model": "ViT-B-32",
        "peer": PEER,
        "side": "256",
    }
    settings |= dict(word.split("=") for word in words)
    samples = int(settings["samples"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        weights = folder / "weights.pt"
        torch.save(open_clip.create_model(settings["model"]).state_dict(), weights)
        tokens = write_raw(folder / "raw", folder / "pairs", samples, int(settings["side"]))
        print(f"{samples} pairs, captions of {tokens:.1f} tokens, {settings['model']} on {device}")
        peer = Path(settings["peer"]) / "bin" / "python"
        programs = {
            "ours": [sys.executable, "tag_ours.py"],
            "open_clip": [sys.executable, "tag_peers.py", "open_clip"],
        }
        if peer.is_file():
            programs["clip_retrieval"] = [str(peer), "tag_peers.py", "clip_retrieval"]
        else:
            print(f"clip-retrieval is left out: {peer} is not there")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
        for _ in range(int(settings["repeats"])):
            for name, command in programs.items():
                shared = [str(folder / "raw"), str(weights), settings["model"], settings["batch"]]
                runs[name].append(run(command, shared))
                print(name, {key: value for key, value in runs[name][-1].items() if key != "scores"})
    report(runs, samples, device)


def report(runs: dict[str, list[dict[str, Any]]], samples: int, device: str) -> None:
    """Prints medians and the result lines."""

    def median(name: str, key: str) -> float:
        return statistics.median(each[key] for each in runs[name]) if name in runs else float("nan")

    for name in runs:
        print(
            f"{name}: {samples / median(name, 'wall_s'):.2f} images/s, "
            f"{1e3 * median(name, 'cpu_s') / samples:.1f} CPU ms an image"
        )
    if "clip_retrieval" in runs:
        difference = largest_difference(runs["ours"][-1]["scores"], runs["clip_retrieval"][-1]["scores"])
        print(f"clip-retrieval's scores, of float16 embeddings, differ by {difference:.1e} at most")
    # On a shared machine CPU seconds tell more than wall time; on a GPU the wall is what counts.
    key = "cpu_s" if device == "cpu" else "wall_s"
    speeds = {name: samples / median(name, key) for name in runs}
    difference = largest_difference(runs["ours"][-1]["scores"], runs["open_clip"][-1]["scores"])
    waits = statistics.median(each["waited_s"] / each["wall_s"] for each in runs["ours"])
    unit = "images/CPU_s" if device == "cpu" else "images/s"
    print(f"ratio to open_clip {speeds['ours'] / speeds['open_clip']:.2f}")
    print(
        f"result name=tag_speed ours={speeds['ours']:.2f} peer={speeds['open_clip']:.2f} "
        f"clip_retrieval={speeds.get('clip_retrieval', float('nan')):.2f} target={1.5 * speeds['open_clip']:.2f} "
        f"unit={unit}"
    )
    print(f"result name=tag_model_waits ours={waits:.4f} target=0.05 unit=fraction")
    limit = 1e-5 if device == "cpu" else 1e-3
    print(f"result name=tag_score_difference ours={difference:.2e} target={limit:.0e} unit=cosine")


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """Of the scores of the same pairs; both have all of them."""
    if ours.keys() != theirs.keys():
        raise SystemExit(f"{len(ours)} and {len(theirs)} scores are not of the same pairs")
    return max(abs(ours[uid] - theirs[uid]) for uid in ours)


def run(command: list[str], words: list[str]) -> dict[str, Any]:
    """Runs a program of this folder; it prints its figures as JSON, after which clip-retrieval's logger may go on."""
    python, script, *rest = command
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    done = subprocess.run(
        [python, str(Path(__file__).with_name(script)), *rest, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{script} ended with {done.returncode}:\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        )
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def write_raw(raw: Path, pairs: Path, samples: int, side: int) -> float:
    """Writes raw shards as the download stage leaves them; returns the mean tokens of a caption."""
    tokens = write_pairs(pairs, samples=samples, unique=samples, image_side=side, shards=NUM_SHARDS)
    raw.mkdir()
    blank = {**dict.fromkeys(DOWNLOAD_SCHEMA.names), "text_source": "alt", "status": "success"}
    names = []
    for tar in sorted(pairs.glob("*.tar")):
        names.append(f"{int(tar.stem):08d}")
        rows = []
        with ShardWriter(raw / f"{names[-1]}.tar") as writer:
            for sample in read_samples(tar, raise_fault):
                text = sample.fields["txt"].decode()
                uid = uid_of(sample.key, text)
                writer.write(uid, sample.fields)
                rows.append({**blank, "uid": uid, "url": sample.key, "text": text})
        pq.write_table(pa.Table.from_pylist(rows, DOWNLOAD_SCHEMA), raw / f"{names[-1]}.parquet")
        (raw / f"{names[-1]}.stats.json").write_text("{}")
    (raw / "manifest.json").write_text(json.dumps({"shards": [{"name": name} for name in names]}))
    return tokens


if __name__ == "__main__":
    main(sys.argv[1:])
