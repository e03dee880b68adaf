"""Training speed, ours against open_clip_train's: same shards, weights, batches, schedule; in turn, medians.

    python benchmarks/train.py [preset=tiny|b32|b16|l14] [data=shards|cached] [batch=N] [steps=N] [repeats=N]
        [workers=N] [overlay=FOLDER] [peer=1] [ours_more='...'] [peer_more='...']

`tiny` is for one CPU core: 64 px, patches of 8, width 128, four layers in both towers, 77 tokens, float32. The others
are open_clip's models of those names on a GPU, bfloat16, compiled on both sides. data=cached takes the loader out as
far as it goes: decoded images in memory for ours, open_clip_train's own synthetic data for it. The pairs are made here
(train_pairs.py); both start with the same weights and see each sample once, in orders of their own.

open_clip_train 3.3.0 fails with today's webdataset (KeyError 'fname') and needs 0.2.86 or older, and pandas. The script
puts these into the folder `overlay`, when it is not there yet, by `pip install --target`; only the peer sees it. peer=0
leaves the peer out and needs no folder; without internet, fill it beforehand. One repeat of both sides on a GPU takes
some minutes, most of them for compiling, so repeats=1 is the default there. `ours_more` and `peer_more` are further
settings of either side.
"""

import logging
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from train_pairs import write_pairs
from train_runs import ROOT, Run, run_ours, run_peer

from crawl2clip.files import write_json
from crawl2clip.models import ModelConfig, architecture_of, create_model
from train.model.flops import pair_flops, peak_flops

TARGET = 1.5  # issue-level: at least so many times the peer's samples/s at the same loss
LAST_STEPS = 16  # whose mean loss is compared at the end
PEER_NEEDS = ["webdataset==0.2.86", "pandas", "python-dateutil", "six", "tzdata"]

TINY = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
}


@dataclass(frozen=True)
class Preset:
    """What is trained, and how, on both sides."""

    model: str
    architecture: dict[str, Any] | None
    device: str
    precision: str
    batch: int
    steps: int
    workers: int
    log_every: int
    skip: int  # steps left out at the start: compiling, filling the queues
    unique: int  # different pairs
    image_side: int
    lr: float


PRESETS = {
    "tiny": Preset("tiny-64", TINY, "cpu", "fp32", 64, 64, 1, 1, 8, 1 << 20, 80, 1e-3),
    # The peer rounds its steps up to a multiple of its workers: 12 workers leave 120 steps as they are.
    "b32": Preset("ViT-B-32", None, "cuda", "bf16", 1024, 120, 12, 5, 40, 8192, 256, 5e-4),
    "b16": Preset("ViT-B-16", None, "cuda", "bf16", 512, 120, 12, 5, 40, 8192, 256, 5e-4),
    "l14": Preset("ViT-L-14", None, "cuda", "bf16", 256, 120, 12, 5, 40, 8192, 256, 5e-4),
}


def main(words: list[str]) -> None:
    """Makes data and weights, runs both in turn, prints figures and result lines."""
    logging.disable(logging.WARNING)
    given = dict(word.split("=", 1) for word in words)
    preset = PRESETS[given.pop("preset", "tiny")]
    settings: dict[str, str] = {
        "data": "shards", "batch": str(preset.batch), "steps": str(preset.steps),
        "repeats": "3" if preset.device == "cpu" else "1",
        "workers": str(preset.workers), "overlay": str(ROOT / "runs/benchmarks/open_clip_train"), "peer": "1",
        "ours_more": "", "peer_more": "",
    }  # fmt: skip
    if unknown := given.keys() - settings.keys():
        raise SystemExit(f"unknown settings {', '.join(unknown)}; known are preset, {', '.join(settings)}")
    settings |= given
    overlay = prepare_overlay(Path(settings["overlay"])) if settings["peer"] == "1" else None
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(preset, settings, Path(folder), overlay)
        for _ in range(int(settings["repeats"])):
            comparison.repeat()
        comparison.print_results()


def prepare_overlay(folder: Path) -> Path:
    """The folder with the webdataset that the peer needs, installed when it is not there."""
    if not (folder / "webdataset").is_dir():
        words = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PEER_NEEDS]
        subprocess.run([sys.executable, *words], check=True)
    return folder


class Comparison:
    """The runs of both sides, in turn, on the same data and weights."""

    def __init__(self, preset: Preset, settings: dict[str, str], folder: Path, overlay: Path | None) -> None:
        self.preset, self.settings, self.folder, self.overlay = preset, settings, folder, overlay
        self.batch, self.steps = int(settings["batch"]), int(settings["steps"])
        self.workers = int(settings["workers"])
        self.cached = settings["data"] == "cached"
        self.ours: list[Run] = []
        self.peer: list[Run] = []
        self.architecture = preset.architecture or architecture_of(ModelConfig(name=preset.model))
        samples = self.batch * (8 if self.cached else self.steps)
        shards = math.gcd(samples, 2 ** max(2, math.ceil(math.log2(self.workers + 1))))
        self.tokens = write_pairs(
            folder / "shards",
            samples=samples,
            unique=preset.unique,
            image_side=preset.image_side,
            shards=shards,
        )
        torch.manual_seed(0)
        self.weights = folder / "start.pt"
        torch.save(create_model(preset.model, self.architecture, None).state_dict(), self.weights)
        (folder / "models").mkdir()
        if preset.architecture:
            write_json(folder / "models" / f"{preset.model}.json", self.architecture)
        print(
            f"{preset.model} on {self.device_name()}, {preset.precision}, batch {self.batch}, {self.steps} steps, "
            f"{self.workers} workers, data {settings['data']}, captions of {self.tokens:.1f} tokens on average, "
            f"{settings['repeats']} repeats",
            flush=True,
        )

    def device_name(self) -> str:
        """As people call it."""
        return torch.cuda.get_device_name() if self.preset.device == "cuda" else "CPU, one thread"

    def repeat(self) -> None:
        """One run of each; who goes first changes."""
        number = len(self.ours)
        sides = [self.run_ours] + ([self.run_peer] if self.overlay else [])
        for run in sides if number % 2 == 0 else reversed(sides):
            run(number)

    def run_ours(self, number: int) -> None:
        """`python -m train`."""
        preset, where = self.preset, self.folder / f"ours_{number}"
        words = [
            f"model.name={preset.model}", f"model.pretrained={self.weights}", f"data.shards={self.folder}/shards",
            f"device={preset.device}", f"precision={preset.precision}", f"seed={number}",
            f"train.global_batch_size={self.batch}", f"train.samples_seen={self.batch * self.steps}",
            f"train.log_every_steps={preset.log_every}", f"optimizer.lr={preset.lr}",
            f"schedule.warmup_steps={self.warmup()}", f"data.num_workers={self.workers}",
            "checkpoint.every_steps=1000000", "wandb.enabled=false",
        ]  # fmt: skip
        if preset.architecture:
            # Over a model that has an architecture, all of whose keys this one gives too.
            words += ["model=tiny", f"model.architecture={_hydra(preset.architecture)}"]
        if preset.device == "cuda":
            words.append("compute=compiled")
        if self.cached:
            size = self.architecture["vision_cfg"]["image_size"]
            words += ["data.cache_decoded=true", "data.random_crop=null", f"data.decode_size={size}"]
        words += shlex.split(self.settings["ours_more"])
        self.ours.append(run_ours(words, where, threads=1, batch=self.batch, skip=self.skip()))
        self.tell("ours", self.ours[-1])
        shutil.rmtree(where)

    def run_peer(self, number: int) -> None:
        """`python -m open_clip_train.main`."""
        assert self.overlay is not None
        preset, where = self.preset, self.folder / f"peer_{number}"
        shards = sorted((self.folder / "shards").glob("*.tar"))
        words = [
            "--model", preset.model, "--pretrained", str(self.weights), "--device", preset.device,
            "--precision", {"fp32": "fp32", "bf16": "amp_bf16"}[preset.precision], "--seed", str(number),
            "--batch-size", str(self.batch), "--epochs", "1", "--train-num-samples", str(self.batch * self.steps),
            "--workers", str(self.workers), "--lr", str(preset.lr), "--warmup", str(self.warmup()),
            "--beta1", "0.9", "--beta2", "0.98", "--eps", "1e-6", "--wd", "0.2",
            "--log-every-n-steps", str(preset.log_every), "--save-frequency", "0", "--zeroshot-frequency", "0",
        ]  # fmt: skip
        if self.cached:
            words += ["--dataset-type", "synthetic"]
        else:
            data = f"{shards[0].parent}/{{{shards[0].stem}..{shards[-1].stem}}}.tar"
            words += ["--dataset-type", "webdataset", "--train-data", data]
        if preset.device == "cuda":
            words.append("--torchcompile")
        words += shlex.split(self.settings["peer_more"])
        models = self.folder / "models"
        self.peer.append(
            run_peer(words, where, models, self.overlay, threads=1, batch=self.batch, skip=self.skip())
        )
        self.tell("peer", self.peer[-1])
        shutil.rmtree(where)

    def warmup(self) -> int:
        """Steps of warm-up, the same for both."""
        return max(1, self.steps // 8)

    def skip(self) -> int:
        """Steps left out at the start; at least one is measured."""
        return min(self.preset.skip, self.steps // 2)

    def tell(self, side: str, run: Run) -> None:
        """One line for one run."""
        mfu = self.mfu(side, run)
        parts = [
            f"{run.samples_per_s:8.1f} samples/s", f"{run.cpu_ms_per_sample:6.2f} CPU ms/sample",
            f"{run.cpu_s:6.1f} CPU s with start and end", f"{run.peak_memory_mb:6.0f} MB",
            f"data wait {run.data_wait:.1%}", f"loss at the end {last_losses([run])[0]:.4f}",
        ]  # fmt: skip
        if self.preset.device == "cuda":
            parts += [f"GPU {run.peak_gpu_gb:.1f} GB", f"MFU {mfu:.1%}" if mfu else "MFU unknown"]
        print(f"{side}: {', '.join(parts)}", flush=True)

    def mfu(self, side: str, run: Run) -> float | None:
        """Of what each computes: ours counts the tokens of its captions, the peer's are padded to the full length."""
        if side == "ours":
            return run.mfu
        peak = peak_flops(self.device_name(), self.preset.precision) if self.preset.device == "cuda" else None
        if peak is None:
            return None
        tokens = self.architecture["text_cfg"].get("context_length", 77)
        return 3 * pair_flops(self.architecture, text_tokens=tokens).total * run.samples_per_s / peak

    def print_results(self) -> None:
        """Losses at equal samples, where the samples are the same, then the result lines."""
        if self.peer and not self.cached:
            self.print_losses()
        self.result("train_samples_per_s", lambda run: run.samples_per_s, TARGET, "samples/s")
        if self.preset.device == "cpu":
            self.result("train_cpu_ms_per_sample", lambda run: run.cpu_ms_per_sample, 1 / TARGET, "ms")
        self.result("train_peak_memory", lambda run: run.peak_memory_mb, 1, "MB")
        if self.preset.device == "cuda":
            self.result("train_peak_gpu_memory", lambda run: run.peak_gpu_gb, 1, "GB")

    def print_losses(self) -> None:
        """Mean losses over the same stretch of samples, and how far apart they are at the end."""
        quarter = self.batch * self.steps // 4
        for end in range(1, 5):
            ours, peer = (
                statistics.fmean(
                    window.loss for run in runs for window in run.windows
                    if (end - 1) * quarter < window.samples_seen <= end * quarter
                )
                for runs in (self.ours, self.peer)
            )  # fmt: skip
            print(f"loss, samples {(end - 1) * quarter} to {end * quarter}: ours {ours:.4f}, peer {peer:.4f}")
        (ours, ours_error), (peer, peer_error) = last_losses(self.ours), last_losses(self.peer)
        error = math.hypot(ours_error, peer_error)
        print(
            f"loss of the last {LAST_STEPS} lines: ours {ours:.4f} +- {ours_error:.4f}, peer {peer:.4f} +- "
            f"{peer_error:.4f}; apart {ours - peer:+.4f}, {abs(ours - peer) / max(error, 1e-9):.1f} standard errors"
        )

    def result(self, name: str, of: Any, factor: float, unit: str) -> None:
        """One result line: medians over repeats; the target is `factor` times the peer's."""
        ours = statistics.median(map(of, self.ours))
        if not self.peer:
            print(f"result name={name} ours={ours:.2f} unit={unit}")
            return
        peer = statistics.median(map(of, self.peer))
        print(f"result name={name} ours={ours:.2f} peer={peer:.2f} target={factor * peer:.2f} unit={unit}")


def last_losses(runs: list[Run]) -> tuple[float, float]:
    """Mean loss over the last lines of the runs' logs, and its standard error: between runs, or within a single one."""
    tails = [[window.loss for window in run.windows[-LAST_STEPS:]] for run in runs]
    values = tails[0] if len(runs) == 1 else [statistics.fmean(tail) for tail in tails]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return statistics.fmean(values), spread / math.sqrt(len(values))


def _hydra(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main(sys.argv[1:])
