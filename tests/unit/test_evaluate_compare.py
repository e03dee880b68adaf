"""compare: pairing of runs, the test each metric gets, and what is said when there is none."""

import dataclasses
import json

import numpy as np
import pytest
from report_results import HOSTILE, few_shot, result

from crawl2clip.errors import ConfigError, DataError
from evaluate.intervals import Estimate, wilson
from evaluate.paired import mcnemar_exact, paired_bootstrap
from evaluate.reports.compare import compare, holm
from evaluate.reports.comparison_page import comparison_html, comparison_markdown, write_comparison
from evaluate.reports.per_sample import samples_of
from evaluate.results import save_predictions, write_result

RNG = np.random.default_rng(0)
CORRECT_A = RNG.random(400) < 0.5
CORRECT_B = CORRECT_A | (RNG.random(400) < 0.2)


def made(correct, **changes):
    metrics = {"acc1": wilson(int(correct.sum()), len(correct))}
    return result(**{"metrics": metrics, "groups": {}, "num_samples": len(correct), **changes})


def run(folder, correct, predictions=None, **changes):
    """Writes one zero-shot result with its predictions; returns the folder."""
    one = made(correct, **changes)
    write_result(one, folder)
    save_predictions(one, {"correct": correct} if predictions is None else predictions, folder)
    return folder


def two_runs(tmp_path, **of_b):
    a = run(tmp_path / "a", CORRECT_A, pretrained="a")
    return a, run(tmp_path / "b", CORRECT_B, **{"pretrained": "b", **of_b})


def test_accuracies_get_mcnemar_s_test(tmp_path):
    comparison = compare(*two_runs(tmp_path))
    assert (comparison.name_a, comparison.name_b) == ("ViT-B-32 a fp32", "ViT-B-32 b fp32")
    [row] = comparison.tested
    assert row.test == mcnemar_exact(CORRECT_A, CORRECT_B)
    assert (row.dataset, row.metric, row.better) == ("imagenet1k", "acc1", "b")
    assert row.adjusted_p == row.test.p_value  # one test alone
    assert row.value_b - row.value_a == pytest.approx(row.test.difference)


def test_the_other_way_round_a_is_better(tmp_path):
    a, b = two_runs(tmp_path)
    [row] = compare(b, a).tested
    assert row.better == "a"


def test_equal_predictions_show_no_difference(tmp_path):
    comparison = compare(
        run(tmp_path / "a", CORRECT_A, pretrained="a"), run(tmp_path / "b", CORRECT_A, pretrained="b")
    )
    [row] = comparison.tested
    assert (row.test.difference, row.adjusted_p, row.better) == (0.0, 1.0, "")
    assert "| no difference shown |" in comparison_markdown(comparison)


def test_holm_by_hand():
    # Sorted 0.01, 0.03, 0.04: times 3, 2, 1 and never falling: 0.03, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_tests_are_corrected_together(tmp_path):
    a, b = two_runs(tmp_path)
    weak = CORRECT_A.copy()
    weak[np.flatnonzero(~CORRECT_A)[:6]] = True  # six of six discordant: p = 2/64
    run(a, CORRECT_A, pretrained="a", dataset="cars")
    run(b, weak, pretrained="b", dataset="cars")
    cars, imagenet = compare(a, b).tested
    assert (cars.dataset, cars.test.p_value) == ("cars", pytest.approx(2 / 64))
    assert imagenet.adjusted_p == pytest.approx(2 * imagenet.test.p_value)
    assert cars.adjusted_p == pytest.approx(2 / 64)  # the larger of two p-values is multiplied by one


def retrieval_run(folder, image_ranks, text_ranks, **changes):
    images, texts = len(text_ranks), len(image_ranks)
    metrics = {
        "image_retrieval_recall@1": wilson(int((image_ranks < 1).sum()), texts),
        "text_retrieval_recall@1": wilson(int((text_ranks < 1).sum()), images),
        "image_retrieval_mean_rank": Estimate(
            float(image_ranks.mean()) + 1, 1, 9, "bootstrap_95", texts, 5, "rank"
        ),
    }
    mean = (metrics["image_retrieval_recall@1"].value + metrics["text_retrieval_recall@1"].value) / 2
    metrics["mean_retrieval_recall@1"] = Estimate(mean, 0, 1, "bootstrap_95", texts)
    settings = {
        "task": "retrieval",
        "metric": "mean_retrieval_recall@1",
        "metrics": metrics,
        "num_samples": images,
    }
    one = made(text_ranks < 1, **{**settings, **changes})
    write_result(one, folder)
    ranks = {"image_retrieval_rank": image_ranks, "text_retrieval_rank": text_ranks}
    save_predictions(one, {**ranks, "image_of_text": np.repeat(np.arange(images), texts // images)}, folder)
    return folder


def test_retrieval_is_tested_in_clusters_of_images(tmp_path):
    clusters = np.repeat(np.arange(60), 5)
    image_a, text_a = RNG.integers(0, 3, 300), RNG.integers(0, 3, 60)
    image_b, text_b = np.maximum(0, image_a - 1), np.maximum(0, text_a - 1)
    comparison = compare(
        retrieval_run(tmp_path / "a", image_a, text_a, pretrained="a"),
        retrieval_run(tmp_path / "b", image_b, text_b, pretrained="b"),
    )
    mean, image, text = comparison.tested
    assert [r.metric for r in comparison.tested] == [
        "mean_retrieval_recall@1", "image_retrieval_recall@1", "text_retrieval_recall@1",
    ]  # fmt: skip
    assert image.test == paired_bootstrap((image_a < 1).astype(float), (image_b < 1).astype(float), clusters)
    assert text.test == mcnemar_exact(text_a < 1, text_b < 1)
    assert mean.test.num == 60
    assert mean.test.difference == pytest.approx((image.test.difference + text.test.difference) / 2)


def test_a_lower_rank_is_better(tmp_path):
    image_a, text = RNG.integers(0, 3, 300), RNG.integers(0, 3, 60)
    headline = {"metric": "image_retrieval_mean_rank"}
    comparison = compare(
        retrieval_run(tmp_path / "a", image_a + 2, text, pretrained="a", **headline),
        retrieval_run(tmp_path / "b", image_a, text, pretrained="b", **headline),
    )
    assert comparison.tested[0].test.difference == pytest.approx(-2.0)
    assert comparison.tested[0].better == "b"


@pytest.mark.parametrize(
    ("metric", "predictions", "values"),
    [
        ("acc5", {"rank": np.array([0, 4, 5])}, [1, 1, 0]),
        ("jaccard", {"jaccard": np.array([0.5, 0.25])}, [0.5, 0.25]),
        ("group_score", {"group_score": np.array([True, False])}, [1, 0]),
        ("text_retrieval_mean_rank", {"text_retrieval_rank": np.array([0, 3])}, [1, 4]),
        # Two classes of 3 and 1 samples: recalls 2/3 and 1, mean 5/6.
        (
            "mean_per_class_recall",
            {"correct": np.array([True, True, False, True]), "label": np.array([7, 7, 7, 9])},
            [2 / 3, 2 / 3, 0, 2],
        ),
    ],
)
def test_a_metric_is_the_mean_of_its_samples(metric, predictions, values):
    samples = samples_of(metric, predictions)
    assert not isinstance(samples, str)
    assert samples.values.tolist() == pytest.approx(values)
    assert samples.clusters is None


@pytest.mark.parametrize(
    ("metric", "predictions", "said"),
    [
        ("roc_auc", {}, "roc_auc is no mean over samples, so no paired test of it is made"),
        ("acc1", {}, "the saved predictions hold no 'correct'"),
        ("mean_per_class_recall", {"correct": np.ones(2, bool)}, "hold no 'label'"),
        ("image_retrieval_recall@1", {}, "hold no 'image_retrieval_rank'"),
        ("mean_retrieval_recall@1", {"image_retrieval_rank": np.zeros(4)}, "hold no 'text_retrieval_rank'"),
        (
            "image_retrieval_recall@1",
            {"image_retrieval_rank": np.zeros(4), "text_retrieval_rank": np.zeros(2)},
            "hold no 'image_of_text'",
        ),
        (
            "mean_retrieval_recall@1",
            {
                "image_retrieval_rank": np.zeros(2),
                "text_retrieval_rank": np.zeros(2),
                "image_of_text": np.array([0, 9]),
            },
            "names images that are not there",
        ),
    ],
)
def test_a_metric_without_samples_says_why(metric, predictions, said):
    found = samples_of(metric, predictions)
    assert isinstance(found, str)
    assert said in found


def test_an_untestable_headline_is_named_and_accuracy_tested_in_its_place(tmp_path):
    folders = []
    for name, correct in (("a", CORRECT_A), ("b", CORRECT_B)):
        metrics = {
            "acc1": wilson(int(correct.sum()), 400),
            "macro_f1": Estimate(0.5, 0.4, 0.6, "bootstrap_95", 400),
        }
        folders.append(run(tmp_path / name, correct, pretrained=name, metrics=metrics, metric="macro_f1"))
    comparison = compare(*folders)
    assert [row.metric for row in comparison.tested] == ["acc1"]
    assert comparison.untested == [
        ("imagenet1k zero_shot macro_f1", "macro_f1 is no mean over samples, so no paired test of it is made")
    ]


def test_few_shot_is_not_asked_for_predictions_that_it_never_has(tmp_path):
    a, b = two_runs(tmp_path)
    write_result(few_shot(pretrained="a"), a)
    write_result(few_shot(pretrained="b"), b)
    [(what, why)] = compare(a, b).untested
    assert what == "imagenet1k few_shot acc1@16_shot"
    assert why == "acc1@16_shot is a mean over draws of training samples; compare the spread over the seeds"


@pytest.mark.parametrize(
    ("of_b", "said"),
    [
        (
            {"data_sha256": "e" * 64},
            "the data differs: dddddddddddd in a, eeeeeeeeeeee in b; score both on the same",
        ),
        ({"split": "val"}, "the split differs: test in a, val in b"),
        ({"num_bad_images": 1}, "the number of bad images differs: 0 in a, 1 in b"),
        ({"data_sha256": None}, "b has no fingerprint of its data"),
        ({"dataset": "cars"}, "only a has it"),
        ({"predictions": {"keys": np.array(["x"])}}, "hold no 'correct'"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused_with_the_reason(tmp_path, of_b, said):
    with pytest.raises(DataError, match="have nothing to compare") as error:
        compare(*two_runs(tmp_path, **of_b))
    assert said in str(error.value)
    assert "with save_predictions=true" in str(error.value)


def test_missing_predictions_say_what_to_do(tmp_path):
    a, b = two_runs(tmp_path)
    next(b.rglob("*.npz")).unlink()
    said = (
        r"no predictions were saved in b \(imagenet1k.zero_shot.npz\); run again with save_predictions=true"
    )
    with pytest.raises(DataError, match=said):
        compare(a, b)


def test_what_cannot_be_paired_does_not_stop_the_rest(tmp_path):
    a, b = two_runs(tmp_path)
    run(a, CORRECT_A, pretrained="a", dataset="cars")
    write_result(made(CORRECT_A, pretrained="a", dataset="vtab_plus", task="average"), a)
    write_result(made(CORRECT_A, pretrained="b", dataset="vtab_plus", task="average"), b)
    comparison = compare(a, b)
    assert [row.dataset for row in comparison.tested] == ["imagenet1k"]
    assert comparison.untested == [
        ("cars zero_shot", "only a has it"),
        ("vtab_plus average", "a mean over data sets; see the tests of its members"),
    ]
    assert "- not tested, cars zero_shot: only a has it" in comparison_markdown(comparison)


def test_samples_of_other_names_are_not_paired(tmp_path):
    keys = np.arange(400).astype(str)
    a = run(tmp_path / "a", CORRECT_A, {"correct": CORRECT_A, "keys": keys}, pretrained="a")
    b = run(tmp_path / "b", CORRECT_B, {"correct": CORRECT_B, "keys": keys[::-1]}, pretrained="b")
    with pytest.raises(DataError, match="the samples are called differently in a and b"):
        compare(a, b)


def test_other_prompts_and_precision_are_noted(tmp_path):
    comparison = compare(*two_runs(tmp_path, prompts_sha256="f" * 64, precision="bf16"))
    assert comparison.tested[0].notes == ("the prompts differ", "precision is fp32 in a and bf16 in b")
    assert "- imagenet1k zero_shot: the prompts differ" in comparison_markdown(comparison)


def test_predictions_of_another_run_are_refused(tmp_path):
    a, b = two_runs(tmp_path)
    one = made(CORRECT_B, pretrained="b")
    save_predictions(one, {"correct": ~CORRECT_B}, b)
    with pytest.raises(
        DataError, match=r"does not belong to the result beside it: its acc1 is .* the result says"
    ):
        compare(a, b)


def test_torn_files_are_named(tmp_path):
    a, b = two_runs(tmp_path)
    npz = next(b.rglob("*.npz"))
    npz.write_bytes(npz.read_bytes()[:100])
    with pytest.raises(DataError, match=r"imagenet1k.zero_shot.npz is no file of predictions"):
        compare(a, b)
    file = next(b.rglob("*.json"))
    file.write_text(file.read_text()[:80])
    with pytest.raises(DataError, match=r"imagenet1k.zero_shot.json is not valid JSON"):
        compare(a, b)
    file.write_text(json.dumps([]))
    with pytest.raises(DataError, match="is not an evaluation result"):
        compare(a, b)


def test_a_folder_of_several_models_names_them(tmp_path):
    a, b = two_runs(tmp_path)
    run(b, CORRECT_B, pretrained="c")
    with pytest.raises(
        ConfigError, match=r"holds several models; give the folder of one of them: .*ViT-B-32-b-fp32"
    ):
        compare(a, b)
    one = next(folder for folder in (b / "results").iterdir() if "-c-" in folder.name)
    assert compare(a, one).name_b == "ViT-B-32 c fp32"


def test_empty_and_equal_folders_are_refused(tmp_path):
    a, _ = two_runs(tmp_path)
    with pytest.raises(DataError, match="holds no results; give an output_dir of python -m evaluate"):
        compare(a, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="twice; give the folders of two runs"):
        compare(a, a)


def test_the_report_says_what_was_corrected_and_escapes_names(tmp_path):
    comparison = dataclasses.replace(
        compare(*two_runs(tmp_path)), name_a=HOSTILE, untested=[(HOSTILE, HOSTILE)]
    )
    assert write_comparison(comparison, tmp_path) == [
        tmp_path / "comparison.md",
        tmp_path / "comparison.html",
    ]
    page, table = comparison_html(comparison), comparison_markdown(comparison)
    assert "after Holm's correction over all of them" in table
    assert "<script>" not in page + table
    assert "\x1b" not in page + table
    assert page == (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_of_many_reasons_the_first_four_are_shown(tmp_path):
    a, b = two_runs(tmp_path, dataset="cars")
    for number in range(5):
        write_result(few_shot(pretrained="a", dataset=f"set_{number}"), a)
    with pytest.raises(
        DataError, match=r"cars zero_shot: only b has it; .*; and 3 more\)\. Score both models"
    ) as error:
        compare(a, b)
    assert str(error.value).count("only ") == 4
