"""Suites: the sets, the metric of each and the averages are those of the papers; their prompts are at hand."""

from collections import Counter
from pathlib import Path

import pytest
from evaluation_suites import suite_of

from crawl2clip.config import CONFIG_DIR
from evaluate.averages import check_averages
from evaluate.data.prompts import read_class_names, read_templates
from evaluate.reports.published import _table, canonical

SHIFTS = ["imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet"]
MEAN_PER_CLASS = {"caltech101", "fgvc_aircraft", "flowers", "pets"}  # OpenAI's and DataComp's four


def names() -> list[str]:
    return sorted(path.stem for path in (Path(CONFIG_DIR) / "suite").glob("*.yaml"))


def short(dataset: str) -> str:
    return dataset.removeprefix("vtab/")


@pytest.mark.parametrize("name", names())
def test_averages_fit_their_suite(name):
    suite = suite_of(name)
    assert suite.name == name
    check_averages(suite.averages, suite.datasets, suite.name)


@pytest.mark.parametrize(
    "name", ["datacomp38", "imagenet_robustness", "openai27", "retrieval", "sugar_crepe", "vtab_plus"]
)
def test_every_public_suite_has_an_average_of_its_own(name):
    assert suite_of(name).averages


def test_vtab_plus_is_35_sets_by_acc1():
    suite = suite_of("vtab_plus")
    assert len(suite.datasets) == 35
    assert {entry.metric for entry in suite.datasets.values()} == {"acc1"}
    assert "voc2007_multilabel" not in suite.datasets
    (average,) = suite.averages
    assert (average.name, average.metric, average.datasets) == ("vtab_plus", "acc1", None)
    # Every set of the average has a published acc1 for OpenAI's ViT-B-32, from the table the 44.89 is made of.
    for dataset in suite.datasets:
        values = _table()["ViT-B-32", "openai", canonical(dataset), "zero_shot", "acc1"]
        assert "clip_benchmark" in [value.source for value in values]


def test_datacomp38_has_datacomps_metric_for_each_set():
    suite = suite_of("datacomp38")
    assert len(suite.datasets) == 38
    special = {name: entry.metric for name, entry in suite.datasets.items() if entry.metric != "acc1"}
    assert special == {
        "vtab/caltech101": "mean_per_class_recall",
        "fgvc_aircraft": "mean_per_class_recall",
        "vtab/flowers": "mean_per_class_recall",
        "vtab/pets": "mean_per_class_recall",
        "flickr30k": "mean_retrieval_recall@1",
        "mscoco_captions": "mean_retrieval_recall@1",
        "winogavil": "jaccard_10_12",
        "wilds/iwildcam": "macro_f1",
        "wilds/fmow": "worst_group_acc1",
        "fairness/dollar_street": "worst_group_acc5",
        "fairness/geode": "worst_group_acc1",
    }
    for name, entry in suite.datasets.items():
        key = ("ViT-B-32", "openai", canonical(name), entry.tasks[0].value, entry.metric)
        assert "open_clip" in [value.source for value in _table()[key]]
    assert {a.name: (a.metric, len(a.datasets or suite.datasets)) for a in suite.averages} == {
        "datacomp38": ("declared", 38),
        "datacomp_shifts": ("acc1", 6),
        "datacomp_vtab": ("declared", 13),
        "datacomp_retrieval": ("declared", 3),
    }


def test_openai27_has_the_clip_papers_metrics():
    suite = suite_of("openai27")
    assert len(suite.datasets) == 27
    assert Counter(entry.metric for entry in suite.datasets.values()) == {
        "acc1": 21, "mean_per_class_recall": 4, "mean_average_precision_11_point": 1, "roc_auc": 1
    }  # fmt: skip
    per_class = {short(n) for n, entry in suite.datasets.items() if entry.metric == "mean_per_class_recall"}
    assert per_class == MEAN_PER_CLASS
    assert suite.datasets["voc2007_multilabel"].metric == "mean_average_precision_11_point"
    assert suite.datasets["hateful_memes"].metric == "roc_auc"
    assert [a.metric for a in suite.averages] == ["declared"]


def test_imagenet_robustness_averages_the_shifts_alone():
    suite = suite_of("imagenet_robustness")
    assert list(suite.datasets) == ["imagenet1k", *SHIFTS]
    (average,) = suite.averages
    assert (average.name, average.metric, average.datasets) == ("imagenet_robustness", "acc1", SHIFTS)
    assert all(suite.datasets[name].prompts == "imagenet1k" for name in SHIFTS)


def test_sugar_crepe_is_seven_kinds_of_change():
    suite = suite_of("sugar_crepe")
    kinds = {"add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj"}
    assert {name.removeprefix("sugar_crepe/") for name in suite.datasets} == kinds
    assert {entry.metric for entry in suite.datasets.values()} == {"acc1"}
    assert {entry.path for entry in suite.datasets.values()} == {"sugar_crepe"}  # one copy of COCO's images


@pytest.mark.parametrize(
    ("name", "classes", "templates", "first", "last"),
    [
        ("birdsnap", 500, 1, "Acadian Flycatcher", "Zone tailed Hawk"),
        ("kinetics700", 700, 28, "abseiling", "zumba"),
        ("ucf101", 101, 48, "Apply Eye Makeup", "Yo Yo"),
        ("hateful_memes", 2, 1, "meme", "hatespeech meme"),
        ("clevr_counts", 8, 1, "3", "10"),
    ],
)
def test_openais_own_names_and_templates(name, classes, templates, first, last):
    folder = Path(CONFIG_DIR) / "prompts" / "openai"
    listed = read_class_names(folder / f"{name}.classnames.txt")
    assert isinstance(listed, list)
    assert (len(listed), len(set(listed)), listed[0], listed[-1]) == (classes, classes, first, last)
    found = read_templates(folder / f"{name}.templates.txt")
    assert isinstance(found, list)
    assert len(found) == templates
    assert all(template.count("{c}") == 1 for template in found)


@pytest.mark.parametrize("name", names())
def test_every_prompt_file_is_there_and_from_the_checkout_root(name):
    root = Path(CONFIG_DIR).parent
    for entry in suite_of(name).datasets.values():
        for file in (entry.class_names_file, entry.templates_file):
            assert file is None or (root / file).is_file()


def test_a_set_that_no_builder_knows_says_where_to_get_it():
    """Without builder and hub a user must have the folder; with a builder or hub it can be fetched or built."""
    without = {
        f"{name}: {dataset}"
        for name in names()
        for dataset, entry in suite_of(name).datasets.items()
        if not entry.builder and not entry.hub and name != "emoji"
    }
    assert without == {f"openai27: {d}" for d in ("birdsnap", "ucf101", "kinetics700", "hateful_memes")}
