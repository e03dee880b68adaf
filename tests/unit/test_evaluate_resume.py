"""What a result depends on, and results that are found again by it."""

import dataclasses
import logging

import numpy as np
import pytest
from evaluation_sets import PlainEncoder, write_classification

from crawl2clip.distributed import single_process
from crawl2clip.errors import DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.results import load_predictions, read_results, result_path
from evaluate.resume import ResultStore, identity_of
from evaluate.run import evaluate
from evaluate.tasks.few_shot import FewShotConfig


@pytest.fixture
def dataset(tmp_path):
    return opened(tmp_path)


def opened(tmp_path, **changes):
    if not (tmp_path / "things").exists():
        for split, seed in (("test", 0), ("train", 1)):
            write_classification(tmp_path / "things", split=split, seed=seed)
    settings = {"tasks": [Task.zero_shot, Task.few_shot], "metric": "acc1", **changes}
    return open_dataset("things", DatasetConfig(**settings), data_root=tmp_path)


def identity(encoder, dataset, task=Task.zero_shot, settings=None, pretrained="tag", max_bad_images=0):
    return identity_of(
        encoder, dataset, task, settings, pretrained=pretrained, max_bad_images=max_bad_images
    ).sha256


def shots(*ks):
    return FewShotConfig(shots=list(ks), seeds=[0, 1, 2], one_shot_l2=1.0)


def run(encoder, dataset, output, **settings):
    defaults = {
        "pretrained": "tag", "few_shot": shots(1), "show_progress": False, "store": ResultStore(output),
    }  # fmt: skip
    return evaluate(encoder, [dataset], world=single_process(), **{**defaults, **settings})


def test_everything_that_a_number_depends_on_is_part_of_its_identity(tmp_path, dataset):
    encoder, base = PlainEncoder(), identity(PlainEncoder(), dataset)
    assert identity(encoder, opened(tmp_path)) == base
    half, darker = PlainEncoder(), PlainEncoder()
    half.precision = "bf16"
    darker.preprocess = lambda image: PlainEncoder.preprocess(darker, image) - 0.01
    templates = tmp_path / "templates.txt"
    templates.write_text("the {c}.\n")
    others = {
        "weights": identity(PlainEncoder(weights=1), dataset),
        "precision": identity(half, dataset),
        "preprocessing": identity(darker, dataset),
        "task": identity(encoder, dataset, Task.few_shot, shots(1)),
        "settings": identity(encoder, dataset, Task.few_shot, shots(1, 2)),
        "name of the weights": identity(encoder, dataset, pretrained="other"),
        "bad images": identity(encoder, dataset, max_bad_images=1),
        "headline": identity(encoder, opened(tmp_path, metric="mean_per_class_recall")),
        "prompts": identity(encoder, opened(tmp_path, templates_file=str(templates))),
        "classes": identity(encoder, dataclasses.replace(dataset, groups={"few": [0]})),
    }
    write_classification(tmp_path / "other" / "things", seed=5)
    write_classification(tmp_path / "other" / "things2", split="train", seed=6)
    (tmp_path / "other" / "things2" / "train").rename(tmp_path / "other" / "things" / "train")
    others["data"] = identity(encoder, opened(tmp_path / "other"))
    assert len({base, *others.values()}) == 1 + len(others)
    # Prompts say nothing about a probe, so other prompts leave its results as they are.
    changed = opened(tmp_path, templates_file=str(templates))
    assert identity(encoder, changed, Task.few_shot, shots(1)) == others["task"]


def test_results_of_the_same_identity_are_not_scored_again(tmp_path, dataset, caplog):
    caplog.set_level(logging.INFO)
    first = run(PlainEncoder(), dataset, tmp_path / "out")
    again = PlainEncoder()
    assert run(again, dataset, tmp_path / "out") == first
    assert (again.images_encoded, again.texts_encoded) == (0, [])
    assert "zero_shot of things is taken from" in caplog.text
    # Other shots leave the zero-shot result, which needs no image, and replace the other.
    changed = run(again, dataset, tmp_path / "out", few_shot=shots(1, 2))
    assert changed[0] == first[0]
    assert list(changed[1].metrics) == ["acc1@1_shot", "acc1@2_shot"]
    assert again.images_encoded == 60
    assert again.texts_encoded == []
    assert "is of other weights, data or settings, and will be replaced" in caplog.text
    assert read_results(tmp_path / "out")[0].metrics == changed[1].metrics


def test_a_live_model_is_never_looked_up(tmp_path, dataset):
    class Live(PlainEncoder):
        @property
        def weights_sha256(self):
            raise AssertionError("hashing a model in training takes seconds")

        @weights_sha256.setter
        def weights_sha256(self, value):
            pass

    dataset.test.fingerprint = dataset.train.fingerprint = None  # not called either
    for _ in range(2):
        encoder = Live()
        (result, _) = evaluate(
            encoder, [dataset], world=single_process(), few_shot=shots(1), show_progress=False
        )
        assert encoder.images_encoded == 60
        assert (result.identity_sha256, result.weights_sha256, result.data_sha256) == (None, None, None)


def test_a_torn_result_and_missing_predictions_are_scored_again(tmp_path, dataset, caplog):
    caplog.set_level(logging.INFO)
    first = run(PlainEncoder(), dataset, tmp_path / "out")
    path = result_path(first[0], tmp_path / "out")
    path.write_text(path.read_text()[:100])
    assert run(PlainEncoder(), dataset, tmp_path / "out") == first
    assert "is not valid JSON" in caplog.text
    encoder = PlainEncoder()
    run(encoder, dataset, tmp_path / "out", store=ResultStore(tmp_path / "out", save_predictions=True))
    assert encoder.images_encoded > 0
    assert "has no predictions by sample; scoring it again" in caplog.text
    saved = load_predictions(path.with_suffix(".npz"))
    assert saved["keys"][:2].tolist() == ["s0000000", "s0000001"]
    assert saved["label"].tolist() == [i % 6 for i in range(30)]
    assert np.mean(saved["correct"]) == pytest.approx(first[0].metrics["acc1"].value)


def test_predictions_that_cannot_be_read(tmp_path, dataset):
    (result, _) = run(PlainEncoder(), dataset, tmp_path / "out")
    path = result_path(result, tmp_path / "out").with_suffix(".npz")
    with pytest.raises(
        DataError, match="no predictions by sample; evaluate again with save_predictions=true"
    ):
        load_predictions(path)
    for content in (b"", b"PK\x03\x04 torn", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="is no file of predictions"):
            load_predictions(path)


def test_notes_and_record_are_stored(tmp_path, dataset):
    results = run(PlainEncoder(), dataset, tmp_path / "out", notes=["mind this"], record={"commit": "c0ffee"})
    assert all(r.notes[-1] == "mind this" and r.provenance == {"commit": "c0ffee"} for r in results)
