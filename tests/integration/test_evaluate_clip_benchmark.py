"""The same model on the same files through CLIP_benchmark: data, zero-shot and retrieval agree to 1e-6."""

import pytest
import torch
from clip_benchmark_reference import random_encoder, retrieval_scores, trained_encoder, zero_shot_scores
from evaluation_sets import encoded, picture, write_classification, write_retrieval, write_split

from crawl2clip.distributed import single_process
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.run import evaluate

ZERO_SHOT = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
RETRIEVAL = DatasetConfig(tasks=[Task.retrieval], metric="image_retrieval_recall@5")
NUM_CLASSES = 12


@pytest.fixture(scope="module")
def trained():
    return trained_encoder(num_classes=NUM_CLASSES)


@pytest.fixture(scope="module", params=["random", "trained"])
def encoder(request, trained):
    return random_encoder() if request.param == "random" else trained


def our_scores(folder, encoder, config):
    opened = open_dataset(folder.name, config, data_root=folder.parent)
    (ours,) = evaluate(encoder, [opened], world=single_process(), show_progress=False)
    return {name: estimate.value for name, estimate in ours.metrics.items()}


def test_zero_shot_equals_clip_benchmark(tmp_path, encoder, monkeypatch):
    folder = write_classification(tmp_path / "things", num_classes=NUM_CLASSES, per_class=20)
    expected = zero_shot_scores(folder, encoder, monkeypatch)
    ours = our_scores(folder, encoder, ZERO_SHOT)
    assert set(expected) == {"acc1", "acc5", "mean_per_class_recall"}
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6)
    assert 0 < expected["acc1"] < expected["acc5"] <= 1


def test_the_trained_model_knows_something(tmp_path, trained):
    """Or the comparison above would be one of two ways to guess."""
    folder = write_classification(tmp_path / "things", num_classes=NUM_CLASSES, per_class=5)
    ours = our_scores(folder, trained, ZERO_SHOT)
    assert 3 / NUM_CLASSES < ours["acc1"] < 1


def test_classes_of_different_size_and_one_without_samples(tmp_path, encoder, monkeypatch):
    folder = write_classification(tmp_path / "things", num_classes=NUM_CLASSES, per_class=1, split="unused")
    labels = [label for label in range(NUM_CLASSES - 1) for _ in range(1 + 3 * label)]
    write_split(
        folder / "test",
        [{"png": encoded(picture(label, i)), "cls": str(label).encode()} for i, label in enumerate(labels)],
    )
    expected = zero_shot_scores(folder, encoder, monkeypatch)
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc1", allow_empty_classes=True)
    ours = our_scores(folder, encoder, config)
    assert expected["mean_per_class_recall"] != pytest.approx(expected["acc1"], abs=1e-3)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6)


def test_retrieval_equals_clip_benchmark(tmp_path, encoder):
    folder = write_retrieval(tmp_path / "told", num_images=30)
    expected = retrieval_scores(folder, encoder)
    ours = our_scores(folder, encoder, RETRIEVAL)
    assert len(expected) == 6
    assert 0 < expected["image_retrieval_recall@5"] < 1
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-6)


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
