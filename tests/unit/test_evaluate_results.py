"""Result files, tables, published values."""

import csv
import io
import json

import pytest

from crawl2clip.errors import DataError
from evaluate.intervals import seed_spread, wilson
from evaluate.reports.published import SOURCES, _table, published_values
from evaluate.reports.tables import CSV_COLUMNS, csv_table, markdown_table, write_tables
from evaluate.results import Result, hash_of, read_results, slug, write_result


def result(**changes) -> Result:
    settings = {
        "model": "ViT-B-32",
        "pretrained": "openai",
        "weights_sha256": "ab" * 32,
        "precision": "fp32",
        "dataset": "imagenet1k",
        "split": "test",
        "task": "zero_shot",
        "metric": "acc1",
        "metrics": {"acc1": wilson(31_500, 50_000, 0.001), "acc5": wilson(44_000, 50_000, 0.005)},
        "groups": {"rare": {"acc1": wilson(1, 4, 0.001)}},
        "num_samples": 50_000,
    }
    return Result(**{**settings, **changes})


def test_a_result_comes_back_from_disk_as_it_was(tmp_path):
    one = result(details={"l2": 0.5}, notes=["a note"], provenance={"commit": "c0ffee"})
    two = result(
        dataset="vtab/dtd", task="few_shot", metric="acc1@1_shot", metrics={"acc1@1_shot": seed_spread([0.1])}
    )
    path = write_result(two, tmp_path)
    assert path == tmp_path / "results" / "ViT-B-32-openai-fp32-abababab" / "vtab-dtd.few_shot.json"
    write_result(one, tmp_path)
    assert read_results(tmp_path) == [one, two]
    assert json.loads(path.read_text())["metrics"]["acc1@1_shot"]["interval"] == "seed_spread"


def test_two_exports_of_one_name_do_not_overwrite_each_other(tmp_path):
    for sha in ("aa" * 32, "bb" * 32):
        write_result(result(pretrained="runs/x/export", weights_sha256=sha), tmp_path)
    assert len(read_results(tmp_path)) == 2


def test_a_torn_or_foreign_result_file_is_named(tmp_path):
    path = write_result(result(), tmp_path)
    path.write_text(path.read_text()[:50])
    with pytest.raises(DataError, match=r"imagenet1k.zero_shot.json is not valid JSON"):
        read_results(tmp_path)
    path.write_text('{"metrics": {}, "groups": {}, "unknown": 1}')
    with pytest.raises(DataError, match="is not an evaluation result"):
        read_results(tmp_path)


def test_scalars_are_flat():
    assert result().scalars() == {
        "imagenet1k/zero_shot/acc1": 0.63,
        "imagenet1k/zero_shot/acc5": 0.88,
        "imagenet1k/zero_shot/acc1/rare": 0.25,
    }


def test_the_table_shows_interval_chance_group_and_published_value():
    table = markdown_table([result(num_bad_images=2, notes=["a note"])])
    row = next(line for line in table.splitlines() if line.startswith("| imagenet1k  "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "imagenet1k", "zero_shot", "acc1", "50000", "63.00", "62.58 to 63.42", "0.10", "63.33 (clip_benchmark)", "-0.33"
    ]  # fmt: skip
    assert "| imagenet1k [rare] |" in table
    assert "acc5" not in table
    assert "- imagenet1k zero_shot: a note" in table
    assert "- imagenet1k zero_shot: 2 images could not be decoded and are left out" in table
    assert f"- published, clip_benchmark: {SOURCES['clip_benchmark']}" in table


def test_the_table_names_models_when_there_are_several():
    table = markdown_table([result(), result(pretrained="laion2b_s34b_b79k")])
    assert table.startswith("| model ")
    assert "ViT-B-32 laion2b_s34b_b79k fp32" in table


def test_csv_has_stable_columns_and_full_precision():
    rows = list(csv.DictReader(io.StringIO(csv_table([result()]))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(r["metric"], r["group"]) for r in rows] == [("acc1", ""), ("acc1", "rare"), ("acc5", "")]
    assert float(rows[0]["low"]) == result().metrics["acc1"].low
    assert (rows[0]["published"], rows[0]["published_source"]) == ("63.33", "clip_benchmark")
    assert csv_table([result()]) == csv_table([result()])


def test_tables_are_written_beside_the_results(tmp_path):
    write_tables([result()], tmp_path)
    assert (tmp_path / "results.md").read_text().startswith("| dataset")
    assert (tmp_path / "results.csv").read_text().startswith("model,pretrained")


def test_published_values_are_the_anchors_of_the_literature():
    def percent(*key):
        return [found.percent for found in published_values(*key)]

    assert percent("ViT-B-32", "openai", "vtab_plus", "average", "acc1") == [44.89]
    assert percent("ViT-B-32", "openai", "imagenet1k", "zero_shot", "acc1") == [63.33, 63.32]
    # The wrong activation costs 2.69 points: the best single regression test of a loader.
    assert percent("ViT-B-32-quickgelu", "laion400m_e32", "imagenet1k", "zero_shot", "acc1")[-1] == 62.93
    assert percent("ViT-B-32", "laion400m_e32", "imagenet1k", "zero_shot", "acc1") == [60.24]
    assert percent("ViT-L-14", "openai", "mscoco_captions", "retrieval", "image_retrieval_recall@1") == [
        36.51
    ]
    assert percent("ViT-L-14", None, "imagenet1k", "zero_shot", "acc1") == []


def test_every_published_row_has_a_source_and_a_metric_we_know():
    from evaluate.data.datasets import CLASSIFICATION_METRICS, RETRIEVAL_METRICS

    assert len(_table()) > 1000
    for (_, _, _, task, metric), values in _table().items():
        assert metric in (RETRIEVAL_METRICS if task == "retrieval" else CLASSIFICATION_METRICS)
        assert all(value.source in SOURCES and 0 <= value.percent <= 100 for value in values)


def test_names_become_file_names():
    assert slug("vtab/cifar10") == "vtab-cifar10"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("///") == "unnamed"
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert len(hash_of("\ud800")) == 64
