"""Settings of a training run as the command composes them."""

from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from train.config import TrainConfig

TWO_EPOCHS = (
    "model=tiny", "precision=fp32", "device=cpu", "run_name=x", "data.shards=shards", "train.global_batch_size=8",
    "train.epochs=2", "schedule.warmup_steps=2",
)  # fmt: skip
"""Two epochs of a tiny model in batches of 8."""


def train_settings(*overrides: str) -> TrainConfig:
    """Those of configs/train.yaml with overrides."""
    register("train_schema", TrainConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("train", list(overrides)), TrainConfig)
