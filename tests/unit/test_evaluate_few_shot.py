"""Few-shot: nested subsets, seeds, classes with too few samples, a regulariser chosen within the shots."""

from typing import Any

import pytest
import torch
from evaluation_sets import write_classification

import evaluate.tasks.few_shot as few_shot
from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.run import evaluate
from evaluate.tasks.few_shot import FewShotConfig, choose_l2, nested_subsets, score_few_shot, short_classes
from evaluate.tasks.logistic import LogisticRegression

CONFIG = FewShotConfig(shots=[1, 2, 4], seeds=[0, 1, 2], one_shot_l2=1.0)


def clouds(per_class: int, *, num_classes: int = 6, seed: int = 0, noise: float = 0.7):
    centres = torch.randn(num_classes, 16, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    features = centres[labels] + noise * torch.randn(len(labels), 16, generator=generator)
    return torch.nn.functional.normalize(features, dim=-1), labels


def test_subsets_are_nested_balanced_and_differ_by_seed():
    labels = clouds(8)[1]
    subsets = nested_subsets(labels, [1, 2, 4], seed=0)
    for small, large in ((1, 2), (2, 4)):
        assert set(subsets[small].tolist()) < set(subsets[large].tolist())
    for k, rows in subsets.items():
        assert torch.bincount(labels[rows]).tolist() == [k] * 6
    assert not torch.equal(subsets[4], nested_subsets(labels, [1, 2, 4], seed=1)[4])
    assert torch.equal(subsets[4], nested_subsets(labels, [1, 2, 4], seed=0)[4])


def test_accuracy_grows_with_shots_and_every_seed_is_reported():
    score = score_few_shot(clouds(8), clouds(20, seed=1), 6, CONFIG)
    one, four = score.metrics["acc1@1_shot"], score.metrics["acc1@4_shot"]
    assert list(score.metrics) == ["acc1@1_shot", "acc1@2_shot", "acc1@4_shot"]
    assert 1 / 6 < one.value < four.value
    assert one.num == 3
    assert one.value == pytest.approx(sum(score.details["acc1_by_seed"]["1"]) / 3)
    assert one.chance == pytest.approx(1 / 6)
    assert score.notes == []


def test_classes_with_fewer_samples_are_used_and_named():
    features, labels = clouds(8)
    kept = (labels != 2) | (torch.arange(len(labels)) % 8 < 1)  # class 2 keeps one sample
    score = score_few_shot((features[kept], labels[kept]), clouds(20, seed=1), 6, CONFIG)
    assert score.details["classes_with_fewer_samples"] == {"2": [2], "4": [2]}
    assert "1 of 6 classes have fewer than 4 training samples; all they have are used" in score.notes
    assert short_classes(labels[labels != 5], 6, [1])[1] == [5]


def test_a_k_that_no_class_reaches_repeats_the_last_subset_and_says_so():
    config = FewShotConfig(shots=[4, 100, 128], seeds=[0, 1, 2], one_shot_l2=1.0)
    score = score_few_shot(clouds(4), clouds(20, seed=1), 6, config)
    values = score.details["acc1_by_seed"]
    assert values["4"] == values["100"] == values["128"]
    assert score.details["l2_by_seed"]["4"] == score.details["l2_by_seed"]["128"]
    assert "6 of 6 classes have fewer than 128 training samples; all they have are used" in score.notes


def test_a_class_without_training_samples_is_never_predicted():
    features, labels = clouds(8)
    kept = labels != 2
    score = score_few_shot((features[kept], labels[kept]), clouds(20, seed=1), 6, CONFIG)
    assert score.details["classes_with_fewer_samples"]["1"] == [2]
    assert not (score.predictions["predicted"] == 2).any()


def test_predictions_are_those_of_the_most_shots_and_the_first_seed():
    test = clouds(20, seed=1)
    score = score_few_shot(clouds(8), test, 6, CONFIG)
    assert score.details["predictions_of"] == {"shots": 4, "seed": 0}
    assert score.predictions["correct"].mean() == pytest.approx(score.details["acc1_by_seed"]["4"][0])
    assert (score.predictions["correct"] == (score.predictions["predicted"] == test[1].numpy())).all()
    assert (score.predictions["correct"] == (score.predictions["rank"] == 0)).all()


def test_a_single_class_is_always_right():
    features = torch.nn.functional.normalize(
        torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), dim=1
    )
    samples = features, torch.zeros(9, dtype=torch.int64)
    assert score_few_shot(samples, samples, 1, CONFIG).metrics["acc1@4_shot"].value == 1.0


def test_a_large_subset_is_validated_on_one_fold(monkeypatch):
    fitted = []

    class Spied(LogisticRegression):
        def __init__(self, features, labels, num_classes):
            fitted.append(len(labels))
            super().__init__(features, labels, num_classes)

    monkeypatch.setattr(few_shot, "LogisticRegression", Spied)
    features, labels = clouds(10)
    choose_l2(features, labels, 6, 1.0)
    assert fitted == [48] * 5
    monkeypatch.setattr(few_shot, "CROSS_VALIDATED_SAMPLES", 59)
    monkeypatch.setattr(few_shot, "FOLD_TRAIN_SAMPLES", 24)
    choose_l2(features, labels, 6, 1.0)
    assert fitted[5:] == [24]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((torch.zeros(0, 16), torch.zeros(0, dtype=torch.int64)), "the train split has 0 rows"),
        (
            (torch.full((6, 16), torch.nan), torch.arange(6)),
            "6 of 6 features of the train split are not finite",
        ),
        (
            (torch.zeros(7, 16), torch.arange(7)),
            "labels of the train split run from 0 to 6, but there are 6 classes",
        ),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(train, message):
    with pytest.raises(DataError, match=message):
        score_few_shot(train, clouds(2), 6, CONFIG)


def test_one_sample_a_class_uses_the_given_strength():
    features, labels = clouds(1)
    assert choose_l2(features, labels, 6, one_shot_l2=0.25) == 0.25


def test_the_regulariser_is_chosen_without_the_test_set():
    train, test = clouds(8), clouds(20, seed=1)
    score = score_few_shot(train, test, 6, CONFIG)
    other = score_few_shot(train, (test[0], (test[1] + 1) % 6), 6, CONFIG)
    assert score.details["l2_by_seed"] == other.details["l2_by_seed"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shots": [0]}, r"few_shot.shots is \[0\]; give one or more numbers from 1 on"),
        ({"seeds": [0, 0, 1]}, r"few_shot.seeds is \[0, 0, 1\]; give at least three different seeds"),
        ({"one_shot_l2": 0.0}, "few_shot.one_shot_l2 is 0.0; give a number above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        FewShotConfig(**{"shots": [1], "seeds": [0, 1, 2], "one_shot_l2": 1.0, **settings})


def test_a_few_shot_task_without_settings_is_refused_before_anything_is_encoded(tmp_path):
    for split in ("test", "train"):
        write_classification(tmp_path / "things", split=split)
    config = DatasetConfig(tasks=[Task.few_shot], metric="acc1")
    dataset = open_dataset("things", config, data_root=tmp_path)
    encoder: Any = None  # not asked for anything
    with pytest.raises(
        ConfigError, match="data set 'things' has the few_shot task; pass few_shot with its shots, seeds and"
    ):
        evaluate(encoder, [dataset], world=single_process())
