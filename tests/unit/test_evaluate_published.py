"""Published tables: the anchors of the literature, their sources, names that mean the same images."""

import csv
from pathlib import Path

import pytest

from evaluate.averages import DECLARED_METRIC
from evaluate.reports import published
from evaluate.reports.published import (
    SOURCES,
    _agreements,
    _table,
    agreement,
    canonical,
    expected_split,
    published_values,
)


def percent(*key: str) -> list[float]:
    return [found.percent for found in published_values(*key)]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        # ImageNet under mixed precision (CLIP_benchmark) and float32 (open_clip's documentation).
        (("ViT-B-32", "openai", "imagenet1k", "zero_shot", "acc1"), [63.33, 63.32]),
        # The wrong activation costs 2.69 points: the best single regression test of a loader.
        (("ViT-B-32", "laion400m_e32", "imagenet1k", "zero_shot", "acc1"), [60.24]),
        (("ViT-L-14", "openai", "mscoco_captions", "retrieval", "image_retrieval_recall@1"), [36.51]),
        (("ViT-B-32", "openai", "wilds/fmow", "zero_shot", "worst_group_acc1"), [16.76]),
        (("ViT-B-32", "datacomp_m_s128m_b4k", "wilds/fmow", "zero_shot", "worst_group_acc1"), [0.0]),
        (("ViT-B-32", "openai", "wilds/iwildcam", "zero_shot", "macro_f1"), [7.32]),
        (("ViT-B-32", "openai", "fairness/dollar_street", "zero_shot", "worst_group_acc5"), [53.86]),
        (("ViT-B-32", "openai", "fairness/geode", "zero_shot", "worst_group_acc1"), [82.17]),
        (("ViT-B-32", "openai", "voc2007_multilabel", "multi_label", "mean_average_precision"), [76.01]),
        (("ViT-B-32", "openai", "winogavil", "winogavil", "jaccard_10_12"), [41.25]),
        (("ViT-H-14-378-quickgelu", "dfn5b", "imagenet1k", "zero_shot", "acc1"), [84.37]),
        (("ViT-B-32", "openai", "vtab_plus", "average", "acc1"), [44.89]),
        (("ViT-B-32", "openai", "imagenet_robustness", "average", "acc1"), [48.63]),
        (("ViT-B-32", "openai", "datacomp38", "average", DECLARED_METRIC), [52.45]),
        (("ViT-L-14", "datacomp_xl_s13b_b90k", "datacomp38", "average", DECLARED_METRIC), [66.27]),
        # Probes: best of a grid on the test set.
        (("ViT-B-32", "openai", "imagenet1k", "linear_probe", "acc1"), [75.61]),
        (("ViT-B-32", "openai", "imagenet1k", "few_shot", "acc1@10_shot"), [59.16]),
        (("ViT-H-14", "laion2b_s32b_b79k", "cifar100", "few_shot", "acc1@25_shot"), [87.82]),
        (("ViT-B-32-quickgelu", "laion400m_e32", "vtab_linear_probe", "average", "acc1"), [71.84]),
        (("ViT-L-14", "a_checkpoint_of_ours", "imagenet1k", "zero_shot", "acc1"), []),
    ],
)
def test_the_anchors_of_the_literature(key, values):
    assert percent(*key) == values


def test_a_live_model_has_no_published_value():
    assert published_values("ViT-B-32", None, "imagenet1k", "zero_shot", "acc1") == []


def test_every_row_has_a_source_and_is_a_percentage():
    assert sum(map(len, _table().values())) > 7000
    assert len({key[:2] for key in _table()}) > 120  # models with weights
    for (_, _, _, task, _), values in _table().items():
        assert task in (
            "zero_shot",
            "multi_label",
            "retrieval",
            "winogavil",
            "linear_probe",
            "few_shot",
            "average",
        )
        assert all(value.source in SOURCES and 0 <= value.percent <= 100 for value in values)


def test_the_mean_of_both_directions_is_the_mean():
    """open_clip's column for DataComp's mean R@1 and its retrieval table are two files that must agree."""
    for model, pretrained in (("ViT-B-32", "openai"), ("ViT-H-14", "laion2b_s32b_b79k")):
        for dataset in ("flickr30k", "mscoco_captions"):
            (mean,) = percent(model, pretrained, dataset, "retrieval", "mean_retrieval_recall@1")
            sides = [
                percent(model, pretrained, dataset, "retrieval", f"{side}_retrieval_recall@1")[0]
                for side in ("image", "text")
            ]
            assert mean == pytest.approx(sum(sides) / 2, abs=0.01)  # three roundings to two decimals


def test_vtab_and_torchvision_names_of_the_same_images_are_one():
    assert canonical("cifar100") == canonical("wds/cifar100") == canonical("vtab/cifar100") == "vtab/cifar100"
    assert canonical("caltech101") == "caltech101"  # torchvision's holds all images, VTAB's 6,085 of them
    assert percent("ViT-B-32", "openai", "cifar100", "zero_shot", "acc1") == percent(
        "ViT-B-32", "openai", "vtab/cifar100", "zero_shot", "acc1"
    )


def test_agreement_of_two_suites():
    imagenet = agreement("imagenet1k", "zero_shot", "acc1")
    assert imagenet is not None
    assert (imagenet.checkpoints, imagenet.median_points, imagenet.max_points) == (13, 0.036, 0.122)
    assert imagenet.same_protocol
    svhn = agreement("svhn", "zero_shot", "acc1")
    assert svhn is not None
    assert svhn.max_points == 21.418
    assert not svhn.same_protocol
    differing = {name for (name, _), entries in _agreements().items() for e in entries if not e.same_protocol}
    assert differing == {"vtab/svhn", "vtab/clevr_closest_object_distance"}


def test_agreement_of_a_sister_metric():
    def points(*key: str) -> float | None:
        found = agreement(*key)
        return None if found is None else found.max_points

    assert (
        points("pets", "zero_shot", "acc1") == points("pets", "zero_shot", "mean_per_class_recall") == 0.409
    )
    assert points("flickr30k", "retrieval", "image_retrieval_recall@1") == 0.18
    assert points("flickr30k", "retrieval", "text_retrieval_recall@10") == 0.4
    assert points("flickr30k", "retrieval", "mean_retrieval_recall@1") == 0.4  # the wider direction
    assert points("imagenet1k", "zero_shot", "ece") is None
    assert points("imagenet1k", "linear_probe", "acc1") is None
    assert points("fer2013", "zero_shot", "acc1") is None


def test_agreement_is_what_the_published_values_say():
    """The file of tolerances is recomputed from the values of both suites; both are rounded to two decimals."""
    for (dataset, task), entries in _agreements().items():
        for entry in entries:
            both = [
                (by["clip_benchmark"], by["open_clip"])
                for (_, _, name, of, metric), values in _table().items()
                if (name, of, metric) == (dataset, task, entry.metric)
                and len(by := {v.source: v.percent for v in values}) == 2
            ]
            assert len(both) == entry.checkpoints
            assert max(abs(a - b) for a, b in both) == pytest.approx(entry.max_points, abs=0.011)


def test_sizes_of_the_published_test_splits():
    imagenet, flickr = expected_split("imagenet1k"), expected_split("flickr30k")
    assert imagenet is not None
    assert (imagenet.num_samples, imagenet.num_classes) == (50_000, 1000)
    assert flickr is not None
    assert (flickr.num_samples, flickr.num_classes) == (1000, None)
    assert expected_split("pets") == expected_split("vtab/pets") is not None
    assert expected_split("our_own_set") is None


def test_the_scaling_grid():
    """The 29 checkpoints of Cherti et al. 2023, read as the file stands; evaluate/reports fits laws to it."""
    path = Path(published.__file__).with_name("scaling.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 29
    acc1 = {(r["model"], r["data"], r["samples_seen_rounded"]): float(r["imagenet1k_acc1"]) for r in rows}
    assert [acc1["ViT-B-32", "LAION-80M", seen] for seen in ("3B", "13B", "34B")] == [51.94, 56.46, 56.43]
    assert [acc1["ViT-L-14", "LAION-2B", seen] for seen in ("3B", "13B", "34B")] == [68.93, 73.10, 75.20]
    assert acc1["ViT-H-14", "LAION-2B", "34B"] == 77.97
    assert acc1["ViT-g-14", "LAION-2B", "13B"] == 76.66
    (small,) = (r for r in rows if r["checkpoint"] == "Model-B-32_Data-80M_Samples-3B_lr-5e-4_bs-32k.pt")
    assert (small["samples_seen"], small["gmacs"], small["mparams"]) == ("2560013280", "7.4", "151.28")
