"""The watermark tagger: LAION-5B's classifier of visible watermarks, on the pixels.

timm's efficientnet_b3a at 256 x 256 (bilinear, aspect ratio not kept, ImageNet's mean and std) with a head of
1536-625-256-2; the softmax of output 0 is the probability of a watermark, as in LAION-5B-WatermarkDetection.

What may surprise: when the clip tagger starts together with it, the network runs there, on the same decoded images,
and this tagger only makes the table. Where the clip tags are there already, it decodes the images itself.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardFault
from data_pipeline.completion import read_settings
from data_pipeline.embeddings import read_uids, uids_name
from data_pipeline.stage import MANIFEST, Counts, Shard, Stage, stream_finished
from data_pipeline.tables import read_table
from data_pipeline.taggers.weights_file import WeightsFile
from data_pipeline.worker_device import device_of_worker, max_model_workers

if TYPE_CHECKING:
    import torch

    from data_pipeline.config import PipelineConfig
    from data_pipeline.pixel_batches import View

WATERMARK_COLUMNS: dict[str, Any] = {
    "pwatermark": pl.Float32,  # probability of a visible watermark, 0 to 1
    "watermark_error": pl.String,  # why it is null: missing_image, undecodable or not_finite
}

_CODES = {-1.0: "missing_image", -2.0: "undecodable"}
"""What stands for a probability where there is no image, in the file of the shared pass."""


@dataclass(kw_only=True, slots=True)
class WatermarkConfig:
    """The published weights, or one's own of the same network."""

    weights: str | None = None  # path or http(s) address of watermark_model_v1.pt
    sha256: str | None = None  # of that file, 64 hex digits


def watermark_name(shard: str) -> str:
    """File of a shard's probabilities in the clip tagger's folder: float32 [rows], _CODES where there is no image."""
    return f"{shard}.watermark.npy"


class WatermarkNet:
    """The network on a device.

    Args:
        weights: the published .pt: a state dict, or a dict with one as `weights`.
        device: where it runs.
        precision: fp32, bf16 or fp16; the softmax is float32.

    Raises:
        DataError: the weights cannot be had, or are of another network.
    """

    def __init__(self, weights: WeightsFile, device: "torch.device", precision: str) -> None:
        import timm
        import torch
        from torch import nn

        network: Any = timm.create_model("efficientnet_b3", pretrained=False, num_classes=2)
        network.classifier = nn.Sequential(
            nn.Linear(1536, 625),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(625, 256),
            nn.ReLU(),
            nn.Linear(256, 2),
        )
        try:
            state = torch.load(weights.path(), weights_only=True, map_location="cpu")
            network.load_state_dict(state.get("weights", state))
        except DataError:
            raise
        except Exception as error:  # torch raises nearly every kind on files made to break it
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"the watermark weights {weights.place} are not those of efficientnet_b3a with its head "
                f"({reason}); give LAION-5B-WatermarkDetection's watermark_model_v1.pt"
            ) from error
        self._network = network.to(device, memory_format=torch.channels_last).eval()
        self.device, self._precision = device, precision
        self.view = _view()

    def __call__(self, pixels: "torch.Tensor") -> np.ndarray:
        """Probability of a watermark, float32 [B], of uint8 [B, 256, 256, 3] on the device."""
        import torch

        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._precision)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None),
        ):
            outputs = self._network(self.view.normalized(pixels))
        return outputs.float().softmax(dim=1)[:, 0].cpu().numpy()


def _view() -> "View":
    from torchvision import transforms

    from data_pipeline.pixel_batches import view_of

    imagenet = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    steps = [transforms.Resize((256, 256)), transforms.ToTensor(), imagenet]
    return view_of(transforms.Compose(steps), "the watermark network")


@dataclass
class WatermarkStage(Stage):
    """Makes the watermark tags of raw shards."""

    name: str
    folder: Path
    settings: dict[str, Any]
    raw: Path  # the download stage's folder
    clip: Path | None  # the clip tagger's folder, when the network runs there
    weights: WeightsFile
    device: str
    precision: str
    batch_size: int
    decode_margin: float | None
    max_workers: int | None = None

    def shards(self) -> Iterator[Shard]:
        """One for each shard of the clip tagger, or each complete raw shard."""
        folder = self.raw if self.clip is None else self.clip
        for name in stream_finished(folder):
            files = (
                (f"{name}.parquet", f"{name}.tar")
                if self.clip is None
                else (uids_name(name), watermark_name(name))
            )
            yield Shard(name, tuple(str(folder / file) for file in files))

    def setup(self) -> WatermarkNet | None:
        """Loads the network, if it runs here."""
        if self.clip is not None:
            return None
        return WatermarkNet(self.weights, device_of_worker(self.device), self.precision)

    def run(self, context: WatermarkNet | None, shard: Shard, temporary: Path) -> Counts:
        """Tags one raw shard."""
        counts = Counts()
        if context is None:
            uids, found = read_uids(shard.inputs[0]), np.load(shard.inputs[1])
        else:
            uids = read_table(shard.inputs[0], ["uid"], stored_only=True)["uid"].to_list()
            found = self._run_network(context, shard.inputs[1], uids, counts)
        why = [
            _CODES.get(value) or ("not_finite" if not np.isfinite(value) else None)
            for value in found.tolist()
        ]
        scores = [None if reason else value for value, reason in zip(found.tolist(), why, strict=True)]
        table = pl.DataFrame(
            {"uid": uids, "pwatermark": scores, "watermark_error": why},
            schema={"uid": pl.String, **WATERMARK_COLUMNS},
        )
        table.write_parquet(temporary / f"{shard.name}.parquet")
        counts.rows_in = counts.rows_out = len(uids)
        for reason in filter(None, why):
            counts.extra[f"watermark_{reason}"] += 1
        return counts

    def _run_network(self, network: WatermarkNet, tar: str, uids: list[str], counts: Counts) -> np.ndarray:
        import torch

        from data_pipeline.pixel_batches import PixelBatches

        def count_fault(fault: ShardFault) -> None:
            counts.extra[f"shard_{fault.reason}"] += 1

        def count_unlisted() -> None:
            counts.extra["shard_unlisted_sample"] += 1

        batches = PixelBatches(
            tar, {uid: row for row, uid in enumerate(uids)}, [network.view], batch_size=self.batch_size,
            decode_margin=self.decode_margin, threads=torch.get_num_threads(), device=network.device,
            on_fault=count_fault, on_unlisted=count_unlisted,
        )  # fmt: skip
        found = no_probabilities(len(uids))
        with closing(batches):
            for batch in batches:
                put_probabilities(found, network, batch)
        return found


def no_probabilities(rows: int) -> np.ndarray:
    """float32 [rows]: no image yet."""
    return np.full(rows, -1.0, np.float32)


def put_probabilities(found: np.ndarray, network: WatermarkNet, batch: Any) -> None:
    """Enters the probabilities of a PixelBatch's images."""
    found[batch.undecodable] = -2.0
    if batch.rows:
        found[batch.rows] = network(batch.pixels[network.view.key])


def weights_of(config: WatermarkConfig, cache: str) -> WeightsFile:
    """The weights of the settings, checked.

    Raises:
        ConfigError: none are named.
        DataError: they are not there, or are not those that were named.
    """
    if config.weights is None or config.sha256 is None:
        raise ConfigError(
            "the watermark tagger needs tagger.watermark.weights and tagger.watermark.sha256: a path or address of "
            "watermark_model_v1.pt (github.com/LAION-AI/LAION-5B-WatermarkDetection, models/) and its SHA-256"
        )
    file = WeightsFile(config.weights, config.sha256, cache)
    file.check("tagger.watermark")
    return file


def runs_with_clip(config: "PipelineConfig") -> bool:
    """Whether the network runs in the clip tagger: both are asked for, and the one that started first was with it."""
    taggers, tags = config.tagger.taggers, Path(config.output_dir) / "tags"
    if "watermark" not in taggers or "clip" not in taggers[: taggers.index("watermark")]:
        return False
    for tagger, key in (("watermark", "with_clip"), ("clip", "watermark")):
        if (tags / tagger / MANIFEST).is_file():
            return bool(read_settings(tags / tagger).get(key))
    return True


def make_stages(config: "PipelineConfig") -> list[Stage]:
    """The stage.

    Raises:
        ConfigError, DataError: as `weights_of`.
    """
    asked, output = config.tagger, Path(config.output_dir)
    weights = weights_of(asked.watermark, asked.weights_cache)
    shared = runs_with_clip(config)
    stage = WatermarkStage(
        name="tag/watermark",
        folder=output / "tags" / "watermark",
        settings={
            "sha256": weights.sha256,
            "precision": asked.precision,
            "decode_margin": asked.decode_margin,
            "with_clip": shared,
        },
        raw=output / "raw",
        clip=output / "tags" / "clip" if shared else None,
        weights=weights,
        device=asked.device,
        precision=asked.precision,
        batch_size=asked.image_batch_size,
        decode_margin=asked.decode_margin,
        max_workers=None if shared else max_model_workers(asked.device),
    )
    return [stage]
