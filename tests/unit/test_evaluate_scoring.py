"""The dispatch: every task is measured on what its data set gives, and says what it lacks."""

import csv
import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest
import torch
from evaluation_sets import PlainEncoder, encoded, picture, write_classification, write_retrieval, write_split

from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.features import ImageFeatures
from evaluate.questions import boards_of, captions_of
from evaluate.run import evaluate
from evaluate.scoring import SCORERS, Material
from evaluate.tasks.few_shot import FewShotConfig
from evaluate.tasks.knn import KnnConfig
from evaluate.tasks.linear_probe import LinearProbeConfig, ProbeFeatures, Solver

WORLD = single_process()
SHOTS = FewShotConfig(shots=[1, 2], seeds=[0, 1, 2], one_shot_l2=1.0)


def run(dataset, encoder=None, **settings):
    return evaluate(encoder or PlainEncoder(), [dataset], world=WORLD, show_progress=False, **settings)


def opened(root, name, tasks, metric, **more):
    return open_dataset(name, DatasetConfig(tasks=tasks, metric=metric, **more), data_root=root)


@pytest.fixture
def things(tmp_path):
    for split, seed in (("test", 0), ("train", 1)):
        write_classification(tmp_path / "things", split=split, seed=seed)
    return tmp_path


def test_every_task_has_a_scorer():
    assert set(SCORERS) == set(Task)


def test_one_encoding_serves_all_tasks_of_a_data_set(things):
    encoder = PlainEncoder()
    tasks = [Task.knn, Task.zero_shot, Task.linear_probe, Task.few_shot]
    knn = KnnConfig(num_neighbors=3, temperature=0.07)
    dataset = opened(things, "things", tasks, "acc1")
    results = run(dataset, encoder, few_shot=SHOTS, knn=knn)
    assert [r.task for r in results] == ["knn", "zero_shot", "linear_probe", "few_shot"]
    assert [r.metric for r in results] == ["acc1", "acc1", "acc1", "acc1@2_shot"]
    assert encoder.images_encoded == 60
    assert len(encoder.texts_encoded) == 18
    assert all((r.num_samples, r.num_classes, r.precision) == (30, 6, "fp32") for r in results)
    assert {r.task for r in results if r.prompts_sha256} == {"zero_shot"}
    assert "ece" in results[1].metrics  # the encoder has a temperature
    assert results[0].headline.value > 0.9  # the pictures of a class differ by noise alone


def test_prompts_of_several_data_sets_are_encoded_together_and_once(things):
    write_classification(things / "others", num_classes=4)
    encoder = PlainEncoder()
    datasets = [opened(things, name, [Task.zero_shot], "acc1") for name in ("things", "others")]
    results = evaluate(encoder, datasets, world=WORLD, show_progress=False)
    assert (
        len(encoder.texts_encoded) == len(set(encoder.texts_encoded)) == 18
    )  # "thing 0" to "thing 3" are in both
    assert [r.dataset for r in results] == ["things", "others"]
    alone = run(datasets[1])
    assert alone[0].metrics == results[1].metrics


def test_the_probe_reads_the_features_that_its_settings_name(things):
    class Twice(PlainEncoder):
        def check_penultimate(self):
            pass

        def encode_images_twice(self, images):
            return self.encode_images(images), images.flatten(1)

    dataset = opened(things, "things", [Task.linear_probe], "acc1")
    probe = LinearProbeConfig(solver=Solver.ridge, features=ProbeFeatures.penultimate)
    (result,) = run(dataset, Twice(), linear_probe=probe)
    assert result.details["features"] == "before projection, not normalised"
    assert result.details["solver"] == "ridge"

    class Once(PlainEncoder):
        def check_penultimate(self):
            raise ConfigError("plain has none")

    encoder = Once()
    with pytest.raises(ConfigError, match="plain has none"):
        run(dataset, encoder, linear_probe=probe)
    assert encoder.images_encoded == 0  # said before any work


def test_tasks_without_their_settings_are_refused_before_any_work(things):
    for task, message in (
        (
            Task.few_shot,
            "data set 'things' has the few_shot task; pass few_shot with its shots, seeds and one_shot_l2",
        ),
        (Task.knn, "data set 'things' has the knn task; pass knn with its num_neighbors and temperature"),
    ):
        encoder = PlainEncoder()
        with pytest.raises(ConfigError, match=message):
            run(opened(things, "things", [task], "acc1"), encoder)
        assert (encoder.images_encoded, encoder.texts_encoded) == (0, [])


def test_retrieval_and_its_ranks(tmp_path):
    write_retrieval(tmp_path / "told")
    (result,) = run(opened(tmp_path, "told", [Task.retrieval], "mean_retrieval_recall@1"))
    assert result.headline.num > 0
    assert result.metrics["image_retrieval_median_rank"].unit == "rank"
    assert result.num_classes is None


def test_a_caption_that_two_images_share_is_right_for_both(tmp_path):
    captions = ["one thing", "one thing\none thing", *(f"{number} things" for number in range(2, 12))]
    samples = [
        {"png": encoded(picture(index, index)), "txt": text.encode()} for index, text in enumerate(captions)
    ]
    write_split(tmp_path / "told" / "test", samples)
    (tmp_path / "told" / "dataset_type.txt").write_text("retrieval\n")
    found = {}
    for shared in (False, True):
        dataset = opened(
            tmp_path, "told", [Task.retrieval], "image_retrieval_recall@1", shared_captions=shared
        )
        (found[shared],) = run(dataset)
    apart, together = (found[shared].metrics["image_retrieval_recall@1"] for shared in (False, True))
    assert (apart.num, together.num) == (13, 11)
    # By hand: one of 12 images comes first by chance, and two of them are right for the shared caption.
    assert apart.chance == pytest.approx(1 / 12)
    assert together.chance == pytest.approx((2 / 12 + 10 / 12) / 11)
    assert found[True].details["num_captions"] == 11


def test_shared_captions_are_for_retrieval():
    with pytest.raises(
        ConfigError, match="shared_captions is for retrieval, and the tasks are zero_shot; leave"
    ):
        DatasetConfig(tasks=[Task.zero_shot], metric="acc1", shared_captions=True)


def npy(values) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


def test_multi_label(tmp_path):
    samples = [
        {"png": encoded(picture(i % 3, i)), "npy": npy([i % 3 == 0, i % 3 != 1, i % 2])} for i in range(12)
    ]
    write_split(tmp_path / "several" / "test", samples)
    (tmp_path / "several" / "dataset_type.txt").write_text("multilabel\n")
    (tmp_path / "several" / "classnames.txt").write_text("a\nb\nc\n")
    (tmp_path / "several" / "zeroshot_classification_templates.txt").write_text("{c}\n")
    dataset = opened(tmp_path, "several", [Task.multi_label], "mean_average_precision")
    (result,) = run(dataset)
    assert result.num_classes == 3
    assert 0 < result.headline.value <= 1
    material = Material(dataset, {"test": features(4, targets=None)}, PlainEncoder())
    with pytest.raises(DataError, match=r"has no targets .a 0 or 1 for each class.; multi_label needs them"):
        SCORERS[Task.multi_label].score(material, lambda texts: torch.zeros(len(texts), 24))


def test_sugar_crepe_and_winoground(tmp_path):
    crepe, ground = tmp_path / "crepe", tmp_path / "winoground" / "data"
    (crepe / "val2017").mkdir(parents=True)
    ground.mkdir(parents=True)
    examples = {}
    for i in range(4):
        (crepe / "val2017" / f"{i}.jpg").write_bytes(encoded(picture(i, i), "jpeg"))
        examples[str(i)] = {
            "filename": f"{i}.jpg",
            "caption": f"right {i}",
            "negative_caption": f"wrong {i} {i}",
        }
    (crepe / "add_att.json").write_text(json.dumps(examples))
    (result,) = run(opened(tmp_path, "crepe", [Task.selection], "acc1", builder="sugar_crepe/add_att"))
    assert result.headline.num == 4

    lines = []
    with zipfile.ZipFile(ground / "images.zip", "w") as archive:
        for i in range(3):
            for side in (0, 1):
                data = b"broken" if (i, side) == (1, 0) else encoded(picture(2 * i + side, i))
                archive.writestr(f"ex_{i}_img_{side}.png", data)
            lines.append({
                "id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1",
                "caption_0": f"the cat {i} sees", "caption_1": f"sees {i} the cat",
            })  # fmt: skip
    (ground / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    dataset = opened(tmp_path, "winoground", [Task.selection], "group_score", builder="winoground")
    (result,) = run(dataset, max_bad_images=1)
    assert (result.headline.num, result.num_samples, result.num_bad_images) == (2, 5, 1)
    assert result.notes == ["1 questions are left out because an image of theirs could not be decoded"]


def features(num, **changes) -> ImageFeatures:
    found = ImageFeatures(
        features=torch.eye(max(num, 4))[:num],
        labels=None,
        captions=None,
        faults=[],
        indices=torch.arange(num),
    )
    return dataclasses.replace(found, **changes)


def test_the_captions_of_a_pair_are_each_others_wrong_ones():
    of_pairs = features(
        5, captions=[["a"], ["b"], ["d"], ["e"], ["f"]], indices=torch.tensor([0, 1, 3, 4, 5])
    )
    of_pairs = dataclasses.replace(of_pairs, faults=[None])
    found = captions_of(of_pairs, "it", images_per_example=2)
    assert found.texts == ["a", "b", "b", "a", "e", "f", "f", "e"]
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert (found.instances, found.left_out) == (["0", "0", "1", "1"], 1)
    with pytest.raises(
        DataError, match="it has class labels and no captions; retrieval and selection need captions"
    ):
        captions_of(features(2), "it")


def test_boards_that_lost_an_image_are_left_out():
    @dataclasses.dataclass
    class Board:
        prompt: str
        candidates: list[int]
        associations: list[int]

    class Split:
        boards = [Board("A cat", [0, 2], [2]), Board("An owl", [1, 2], [1])]

    found = boards_of(features(2, indices=torch.tensor([0, 2])), Split(), "it")
    assert (found.prompts, found.candidates, found.associations) == (["A cat"], [[0, 1]], [[1]])
    assert found.left_out == 1
    with pytest.raises(DataError, match="it has no boards of images; the task winogavil needs"):
        boards_of(features(2), object(), "it")


def test_winogavil(tmp_path):
    folder = tmp_path / "wino" / "winogavil_images"
    folder.mkdir(parents=True)
    names = [f"n{i}" for i in range(6)]
    for i, name in enumerate(names):
        (folder / f"{name}.jpg").write_bytes(encoded(picture(i, i), "jpeg"))
    with (folder.parent / "winogavil_dataset.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["candidates", "cue", "associations"])
        rows.writerow([json.dumps(names[:5]), "owl", json.dumps(names[:2])])
    (result,) = run(opened(tmp_path, "wino", [Task.winogavil], "jaccard", builder="winogavil"))
    assert 0 <= result.headline.value <= 1


def test_labels_that_are_not_there_or_fit_no_class(things):
    dataset = opened(things, "things", [Task.zero_shot], "acc1")
    without = Material(dataset, {"test": features(4)}, PlainEncoder())
    with pytest.raises(
        DataError, match="data set 'things', test split: no class labels, which its tasks need"
    ):
        without.labelled("test")
    wrong = Material(dataset, {"test": features(4, labels=torch.tensor([0, 1, 2, 6]))}, PlainEncoder())
    with pytest.raises(DataError, match="labels run from 0 to 6, but there are 6 class names"):
        wrong.labelled("test")
    dataset.test.labels = None  # as in a split that only reading it tells
    few = Material(dataset, {"test": features(4, labels=torch.tensor([0, 1, 2, 3]))}, PlainEncoder())
    with pytest.raises(DataError, match=r"2 of 6 classes have no sample: 'thing 4' .4., 'thing 5' .5."):
        few.labelled("test")


def test_a_set_that_nobody_named_counts_its_classes_over_all_splits(things):
    dataset = dataclasses.replace(opened(things, "things", [Task.zero_shot], "acc1"), num_classes=None)
    parts = {
        "test": features(2, labels=torch.tensor([0, 1])),
        "train": features(2, labels=torch.tensor([2, 4])),
    }
    assert Material(dataset, parts, PlainEncoder()).num_classes == 5
