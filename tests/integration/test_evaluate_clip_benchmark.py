"""The same model on the same files through CLIP_benchmark: data, zero-shot and retrieval agree to 1e-6."""

from types import SimpleNamespace

import clip_benchmark.metrics.zeroshot_classification as reference_zero_shot
import clip_benchmark.metrics.zeroshot_retrieval as reference_retrieval
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset, image_captions_collate_fn
from evaluation_sets import ARCHITECTURE, picture, write_classification, write_retrieval

from crawl2clip.distributed import single_process
from crawl2clip.encoder import encoder_of
from crawl2clip.models import ModelConfig, build_model
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.run import evaluate
from evaluate.traps import activation_note

ZERO_SHOT = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
RETRIEVAL = DatasetConfig(tasks=[Task.retrieval], metric="image_retrieval_recall@5")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    model = build_model(config)
    with torch.no_grad():
        # Freshly made, the towers give nearly one direction for everything; spread them so that ranks mean something.
        model.visual.proj.mul_(50)
        model.text_projection.mul_(50)
    return encoder_of(model, config)


def reference_loader(folder, encoder, task, collate=None):
    dataset = build_dataset("wds/it", root=str(folder), transform=encoder.preprocess, split="test", task=task)
    loader = torch.utils.data.DataLoader(dataset, batch_size=7, collate_fn=collate)
    return dataset, loader


def test_zero_shot_equals_clip_benchmark(tmp_path, encoder, monkeypatch):
    folder = write_classification(tmp_path / "things", num_classes=7, per_class=6)
    dataset, loader = reference_loader(folder, encoder, "zeroshot_classification")
    # clip_benchmark 1.6.2 calls float() on an array of one element, which numpy 2.4 refuses; the same formula:
    monkeypatch.setattr(reference_zero_shot, "accuracy", accuracy_with_item)
    expected = reference_zero_shot.evaluate(
        encoder.model, loader, encoder.tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
    )
    opened = open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    (ours,) = evaluate(encoder, [opened], world=single_process(), show_progress=False)
    assert 0 < expected["acc1"] < 1
    for name, value in expected.items():
        assert ours.metrics[name].value == pytest.approx(value, abs=1e-6)


def accuracy_with_item(output, target, topk=(1,)):
    predicted = output.topk(max(topk), 1, True, True)[1].t()
    correct = predicted.eq(target.view(1, -1).expand_as(predicted))
    return [correct[:k].reshape(-1).float().sum(0).item() / len(target) for k in topk]


def test_retrieval_equals_clip_benchmark(tmp_path, encoder):
    folder = write_retrieval(tmp_path / "told", num_images=30)
    _, loader = reference_loader(folder, encoder, "zeroshot_retrieval", image_captions_collate_fn)
    expected = reference_retrieval.evaluate(
        encoder.model, loader, encoder.tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    opened = open_dataset("told", RETRIEVAL, data_root=tmp_path)
    (ours,) = evaluate(encoder, [opened], world=single_process(), show_progress=False)
    assert 0 < expected["image_retrieval_recall@5"] < 1
    assert ours.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert ours.metrics[name].value == pytest.approx(value, abs=1e-6)


def test_what_clip_benchmark_exports_opens_and_reads_the_same(tmp_path, monkeypatch):
    from clip_benchmark.webdataset_builder import PIL_to_bytes, convert_dataset, convert_retrieval_dataset

    # It starts eight worker processes; none is enough here.
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(
        torch.utils.data, "DataLoader", lambda *args, num_workers=0, **kwargs: loader(*args, **kwargs)
    )

    class Pictures(list):
        classes = ["a", "b", "c"]
        templates = ["one {c}"]

    to_bytes = PIL_to_bytes("webp")
    images = [picture(i % 3, i) for i in range(7)]
    convert_dataset(
        Pictures((to_bytes(image), i % 3) for i, image in enumerate(images)), "test", str(tmp_path / "things"),
        max_count=3, verbose=False,
    )  # fmt: skip
    dataset = open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    assert dataset.prompts.per_class() == [["one a"], ["one b"], ["one c"]]
    assert [r.label for r in dataset.test.records()] == [i % 3 for i in range(7)]
    assert list(dataset.test.record(4).image.getdata()) == list(images[4].getdata())
    convert_retrieval_dataset(
        [(to_bytes(image), [f"{i}", f"again {i}"]) for i, image in enumerate(images)], "test", str(tmp_path / "told"),
        verbose=False,
    )  # fmt: skip
    told = open_dataset("told", RETRIEVAL, data_root=tmp_path)
    assert told.test.record(5).captions == ["5", "again 5"]


def test_the_wrong_activation_is_named():
    """OpenAI's and LAION-400M's ViT-B-32 were trained with QuickGELU; loading them without it raises nothing."""

    class QuickGELU(torch.nn.Module):
        pass

    def model(name, *modules):
        return SimpleNamespace(name=name, model=torch.nn.Sequential(*modules))

    without = activation_note(model("ViT-B-32", torch.nn.GELU()), "laion400m_e32")
    assert without == (
        "laion400m_e32 was trained with QuickGELU and ViT-B-32 runs without it, which costs points; "
        "use model=ViT-B-32-quickgelu"
    )
    assert activation_note(model("ViT-B-32-quickgelu", QuickGELU()), "laion400m_e32") is None
    assert activation_note(model("ViT-B-32", torch.nn.GELU()), "laion2b_s34b_b79k") is None
    assert activation_note(model("ViT-B-32", torch.nn.GELU()), "weights.pt") is None
