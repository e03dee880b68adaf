"""Workers take the GPUs in turn; on a machine without one they compute on the CPU."""

import pytest
import torch

from crawl2clip.errors import ConfigError
from data_pipeline.worker_device import device_of_worker, max_model_workers


def test_slots_take_the_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    found = []
    for slot in range(5):
        monkeypatch.setenv("CRAWL2CLIP_WORKER_SLOT", str(slot))
        found.append(str(device_of_worker("auto")))
        assert device_of_worker("cpu") == torch.device("cpu")
    assert found == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert (max_model_workers("auto"), max_model_workers("cpu")) == (3, None)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CRAWL2CLIP_WORKER_SLOT", "4")
    assert device_of_worker("auto") == torch.device("cpu")
    assert max_model_workers("auto") is None
    with pytest.raises(ConfigError, match="torch sees 0"):
        device_of_worker("cuda")
    with pytest.raises(ConfigError, match="'tpu' is not known; give auto, cpu or cuda"):
        device_of_worker("tpu")
