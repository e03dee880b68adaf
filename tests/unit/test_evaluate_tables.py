"""Markdown and CSV tables: order, verdicts, hostile names, values that are not numbers."""

import csv
import io
import math

import pytest
from report_results import HOSTILE, few_shot, result, retrieval

from evaluate.intervals import Estimate, wilson
from evaluate.reports.names import Models, model_names, natural
from evaluate.reports.published import SOURCES
from evaluate.reports.tables import CSV_COLUMNS, csv_table, csv_text, markdown_table, write_tables


def cells(table: str, start: str) -> list[str]:
    row = next(line for line in table.splitlines() if line.startswith(start))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_a_row_has_interval_chance_published_value_and_verdict():
    table = markdown_table([result(num_bad_images=2, notes=["a note"])])
    assert cells(table, "| imagenet1k  ") == [
        "imagenet1k", "zero_shot", "acc1", "50000", "63.33", "62.91 to 63.75", "0.10", "63.33 (clip_benchmark)",
        "+0.00", "PASS",
    ]  # fmt: skip
    assert "| imagenet1k [rare] |" in table
    assert "- imagenet1k zero_shot: a note" in table
    assert "- imagenet1k zero_shot: 2 images could not be decoded and are left out" in table
    assert f"- published, clip_benchmark: {SOURCES['clip_benchmark']}" in table


def test_what_is_off_says_what_to_check():
    table = markdown_table([result(metrics={"acc1": wilson(30_000, 50_000, 0.001)})])
    assert cells(table, "| imagenet1k  ")[-2:] == ["-3.33", "FAIL"]
    assert "- FAIL imagenet1k zero_shot acc1: 60.00 against 63.33" in table
    assert "Check: (1)" in table


def test_a_row_that_nobody_published_has_no_verdict():
    assert cells(markdown_table([result(pretrained="runs/x/export")]), "| imagenet1k  ")[-3:] == ["", "", ""]


def test_models_are_named_when_there_are_several():
    table = markdown_table([result(), result(pretrained="laion2b_s34b_b79k", weights_sha256="c" * 64)])
    assert table.startswith("| model ")
    assert "ViT-B-32 laion2b_s34b_b79k fp32" in table


def test_metrics_are_in_the_order_of_their_numbers_however_they_were_stored():
    lines = markdown_table([few_shot()]).splitlines()
    assert [line.split("|")[3].strip() for line in lines[2:5]] == [
        "acc1@1_shot",
        "acc1@2_shot",
        "acc1@16_shot",
    ]
    assert "+-10.00 sd" in lines[2]
    assert natural("epoch_10") > natural("epoch_9")
    assert natural("²") != natural("2")


def test_ranks_are_not_percent():
    table = markdown_table([retrieval()])
    row = cells(table, "| flickr8k | retrieval | image_retrieval_mean_rank")
    assert row[4:7] == ["3.4", "2.9 to 4.0", "50.5"]
    assert "Ranks count from 1, lower is better." in table


def test_a_value_that_is_not_a_number_is_shown_as_that():
    broken = result(metrics={"acc1": Estimate(math.nan, 0.0, 1.0, "wilson_95", 0, 0.001)}, groups={})
    assert cells(markdown_table([broken]), "| imagenet1k ")[4:6] == ["nan", "0.00 to 100.00"]
    assert next(csv.DictReader(io.StringIO(csv_table([broken]))))["value"] == "nan"


def test_hostile_names_stay_in_their_markdown_cell():
    table = markdown_table(
        [result(dataset=HOSTILE, notes=[HOSTILE], groups={HOSTILE: {"acc1": wilson(1, 2)}})]
    )
    assert "<script>" not in table
    assert "\x1b" not in table
    assert "\u202e" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    # A backslash keeps a bar in its cell; without those every row has as many cells as the header.
    assert {line.replace("\\|", "").count("|") for line in rows} == {rows[0].count("|")}
    table.encode()


@pytest.mark.parametrize("name", ["=1+1", "+1", "-2", "@sum(a1)", "\t=1", " =1"])
def test_a_name_is_no_formula(name):
    assert (csv_text(name) or "").startswith("'")


def test_hostile_names_stay_in_their_csv_cell():
    [row, *_] = csv.DictReader(io.StringIO(csv_table([result(dataset=HOSTILE, model="=cmd|' /C calc'!A0")])))
    assert row["model"] == "'=cmd|' /C calc'!A0"
    assert "\n" not in row["dataset"]
    assert csv_text(None) is None


def test_csv_has_fixed_columns_and_full_precision():
    rows = list(csv.DictReader(io.StringIO(csv_table([result()]))))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(r["metric"], r["group"]) for r in rows] == [("acc1", ""), ("acc1", "rare"), ("acc5", "")]
    assert float(rows[0]["low"]) == result().metrics["acc1"].low
    assert (rows[0]["published"], rows[0]["published_source"], rows[0]["verdict"]) == (
        "63.33", "clip_benchmark", "PASS",
    )  # fmt: skip
    assert (rows[1]["published"], rows[1]["verdict"]) == ("", "")


def test_csv_is_the_same_in_whatever_order_results_come():
    results = [
        result(),
        few_shot(),
        retrieval(),
        result(pretrained="runs/epoch_10/export"),
        result(dataset="cars"),
    ]
    assert csv_table(results) == csv_table(results[::-1])


def test_tables_of_no_results_have_their_headings(tmp_path):
    write_tables([], tmp_path)
    assert (tmp_path / "results.md").read_text().startswith("| dataset")
    assert (tmp_path / "results.csv").read_text() == ",".join(CSV_COLUMNS) + "\n"


def test_models_are_told_apart_by_as_little_as_it_takes():
    one = result(pretrained="runs/x/epoch_2/export")
    assert list(model_names([one]).values()) == ["ViT-B-32 epoch_2/export"]
    other = result(pretrained="runs/y/epoch_2/export")
    assert list(model_names([one, other]).values()) == [
        "ViT-B-32 runs/x/epoch_2/export", "ViT-B-32 runs/y/epoch_2/export",
    ]  # fmt: skip
    again = result(pretrained="runs/x/epoch_2/export", weights_sha256="cd" * 32)
    assert list(model_names([one, again]).values()) == [
        "ViT-B-32 runs/x/epoch_2/export abababab", "ViT-B-32 runs/x/epoch_2/export cdcdcdcd",
    ]  # fmt: skip
    half = result(precision="bf16")
    assert list(model_names([half, result()]).values()) == ["ViT-B-32 openai bf16", "ViT-B-32 openai fp32"]


def test_marks_are_numbered_from_seven_models_on():
    few = Models.of([result(pretrained=f"e{n}") for n in range(6)])
    many = Models.of([result(pretrained=f"e{n}") for n in range(7)])
    key = next(iter(many.names))
    assert (few.tag(next(iter(few.names))), many.tag(key), many.legend_name(key)) == (
        "",
        "1",
        "1 ViT-B-32 e0",
    )


def test_checkpoints_are_in_the_order_of_their_numbers():
    results = [result(pretrained=f"epoch_{n}", weights_sha256=f"{n:02d}" * 32) for n in (10, 9, 1)]
    assert [key[1] for key in model_names(results)] == ["epoch_1", "epoch_9", "epoch_10"]
