"""CLIP_benchmark's own functions, called in this process, and models to compare on.

Two of its faults are mended here so that the rest of it can be compared with on any machine: `accuracy` calls float()
on an array of one element, which numpy 2.4 refuses, and its linear probe asserts that the device is "cuda" and calls
.cuda().
"""

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from clip_benchmark.datasets.builder import build_dataset, image_captions_collate_fn
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from evaluation_sets import ARCHITECTURE, picture

from crawl2clip.encoder import Encoder, encoder_of
from crawl2clip.models import ModelConfig, build_model


def accuracy(output, target, topk=(1,)):
    """clip_benchmark.metrics.zeroshot_classification.accuracy, with .item() in the place of float(array)."""
    predicted = output.topk(max(topk), 1, True, True)[1].t()
    correct = predicted.eq(target.view(1, -1).expand_as(predicted))
    return [correct[:k].reshape(-1).float().sum(0).item() / len(target) for k in topk]


def loader_of(folder: Path, encoder: Any, task: str, collate: Any = None) -> Any:
    """CLIP_benchmark's data set of a webdataset folder and its loader."""
    dataset = build_dataset("wds/it", root=str(folder), transform=encoder.preprocess, split="test", task=task)
    return dataset, torch.utils.data.DataLoader(dataset, batch_size=7, collate_fn=collate)


def zero_shot_scores(folder: Path, encoder: Any, monkeypatch: Any) -> dict[str, float]:
    """CLIP_benchmark's acc1, acc5 and mean_per_class_recall.

    Args:
        folder: a classification set in webdataset layout.
        encoder: has model, preprocess and tokenizer.
        monkeypatch: of the test.
    """
    dataset, loader = loader_of(folder, encoder, "zeroshot_classification")
    monkeypatch.setattr(zeroshot_classification, "accuracy", accuracy)
    return zeroshot_classification.evaluate(
        encoder.model, loader, encoder.tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )


def retrieval_scores(folder: Path, encoder: Any) -> dict[str, float]:
    """CLIP_benchmark's recall at 1, 5 and 10 in both directions; arguments as `zero_shot_scores`."""
    _, loader = loader_of(folder, encoder, "zeroshot_retrieval", image_captions_collate_fn)
    return zeroshot_retrieval.evaluate(
        encoder.model, loader, encoder.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )


def probe_without_cuda(monkeypatch: Any) -> ModuleType:
    """clip_benchmark.metrics.linear_probe as it runs where there is no GPU: asserts left out, .cuda() a no-op."""
    name = "clip_benchmark.metrics.linear_probe"
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    module = ModuleType(name)
    module.__package__ = "clip_benchmark.metrics"
    exec(compile(Path(spec.origin).read_text(), spec.origin, "exec", optimize=1), module.__dict__)
    monkeypatch.setattr(module, "accuracy", accuracy)
    for thing in (torch.nn.Module, torch.Tensor):
        monkeypatch.setattr(thing, "cuda", lambda self, *_, **__: self)
    return module


def random_encoder() -> Encoder:
    """open_clip's fresh weights, matrices tripled: as made, both towers give nearly one direction for everything."""
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)
    return encoder_of(model, config)


def trained_encoder(*, num_classes: int, steps: int = 60) -> Encoder:
    """The same model, trained for some steps by open_clip's loss to tell the classes of `picture` by their names.

    It knows some of them afterwards and not all, so that scores lie between chance and 1.
    """
    import open_clip

    encoder = random_encoder()
    model: Any = encoder.model
    with torch.no_grad():
        model.load_state_dict(build_model(ModelConfig(name="tiny", architecture=ARCHITECTURE)).state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    loss = open_clip.ClipLoss()
    tokens = encoder.tokenizer([f"a photo of a thing {c}." for c in range(num_classes)])
    seeds = itertools.count(1_000_000)
    for _ in range(steps):
        images = torch.stack([encoder.preprocess(picture(c, next(seeds))) for c in range(num_classes)])
        image_features, text_features, scale = model(images, tokens)
        optimizer.zero_grad()
        loss(image_features, text_features, scale).backward()
        optimizer.step()
    model.eval()
    return encoder
