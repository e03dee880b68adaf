"""Result files and the predictions beside them."""

import json

import numpy as np
import pytest
from report_results import result

from crawl2clip.errors import DataError
from evaluate.intervals import seed_spread
from evaluate.results import (
    hash_of,
    load_predictions,
    read_results,
    save_predictions,
    slug,
    write_result,
)


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
        "imagenet1k/zero_shot/acc1": 0.6333,
        "imagenet1k/zero_shot/acc5": 0.88,
        "imagenet1k/zero_shot/acc1/rare": 0.25,
    }


def test_predictions_lie_beside_their_result(tmp_path):
    predictions = {"correct": np.array([True, False]), "keys": np.array(["a", "ü"])}
    path = save_predictions(result(), predictions, tmp_path)
    assert path == write_result(result(), tmp_path).with_suffix(".npz")
    found = load_predictions(path)
    assert {name: values.tolist() for name, values in found.items()} == {
        "correct": [True, False],
        "keys": ["a", "ü"],
    }
    assert read_results(tmp_path) == [result()]


def test_names_become_file_names():
    assert slug("vtab/cifar10") == "vtab-cifar10"
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("///") == "unnamed"
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    assert len(hash_of("\ud800")) == 64
