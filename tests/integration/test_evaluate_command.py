"""`python -m evaluate` as a user runs it, from the cache, on several ranks, and with things missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate_ranks as ranks
import pytest
import torch
from evaluation_sets import ARCHITECTURE, write_classification, write_retrieval
from gloo_ranks import on_ranks
from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.errors import DataError
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model
from evaluate.command import run
from evaluate.config import EvaluateConfig
from evaluate.data.datasets import DatasetConfig, Task, open_datasets
from evaluate.results import load_predictions, read_results
from evaluate.subcommands import main

ROOT = Path(__file__).resolve().parents[2]


TRAINING = {"samples_seen": 1000, "gmacs_per_sample": 0.5}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The emoji suite's three data sets and an exported model, all tiny."""
    root = tmp_path_factory.mktemp("evaluate")
    write_classification(root / "data" / "emoji_concepts", num_classes=7, per_class=8)
    (root / "data" / "emoji_concepts" / "groups.json").write_text('{"unseen": [1, 5]}')
    write_retrieval(root / "data" / "emoji_retrieval", num_images=30)
    for split, seed in (("test", 0), ("train", 1)):
        write_classification(
            root / "data" / "emoji_subgroups", num_classes=5, per_class=5, split=split, seed=seed
        )
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, root / "export", provenance={"training": TRAINING})
    return root


def words(place: Path, output: str, *more: str) -> list[str]:
    return [
        "suite=emoji", f"data_root={place / 'data'}", f"output_dir={place / output}", f"pretrained={place / 'export'}",
        "image_batch_size=8", "text_batch_size=8", "num_workers=0", f"cache_dir={place / 'cache'}", "device=cpu", *more,
    ]  # fmt: skip


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, without the settings of this one's environment."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    return subprocess.run(
        [sys.executable, "-m", "evaluate", *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def run_here(*arguments: str) -> None:
    """The command's function on the composed settings, in this process."""
    register("evaluate_schema", EvaluateConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("evaluate", list(arguments))
    run(typed(composed, EvaluateConfig), composed)


@pytest.fixture(scope="module")
def first(place):
    done = command(*words(place, "first"))
    assert done.returncode == 0, done.stderr
    return done


def numbers(place: Path, output: str) -> dict:
    """Everything that was measured, without where and when."""
    return {
        (r.dataset, r.task): (r.metrics, r.groups, r.details, r.num_samples)
        for r in read_results(place / output)
    }


def test_the_command_writes_results_and_prints_the_table(place, first):
    results = read_results(place / "first")
    assert [(r.dataset, r.task) for r in results] == [
        ("emoji_concepts", "zero_shot"),
        ("emoji_retrieval", "retrieval"),
        ("emoji_subgroups", "few_shot"),
        ("emoji_subgroups", "linear_probe"),
    ]
    for result in results:
        assert result.model == "tiny"
        assert len(result.weights_sha256 or "") == len(result.data_sha256 or "") == 64
        assert {"commit", "packages", "settings"} <= result.provenance.keys()
    zero_shot = results[0]
    assert (zero_shot.num_samples, zero_shot.num_classes, len(zero_shot.prompts_sha256 or "")) == (56, 7, 64)
    assert zero_shot.groups["unseen"]["acc1"].num == 16
    assert results[3].headline.value > 0.5  # the pictures of a class differ by noise alone
    assert "| emoji_concepts [unseen] " in first.stdout
    assert "acc1@4_shot" in first.stdout
    for name in ("results.md", "results.csv", "results.html", "config.yaml"):
        assert (place / "first" / name).is_file()


def test_results_are_json_that_anyone_can_read(place, first):
    (path,) = (place / "first" / "results").glob("*/emoji_concepts.zero_shot.json")
    assert json.loads(path.read_text())["metrics"]["acc1"]["interval"] == "wilson_95"
    assert path.parent.name.startswith("tiny-export-fp32-")


def test_a_second_run_takes_features_from_the_cache(place, first, caplog):
    caplog.set_level("INFO")
    # Other batch sizes would give other bits if anything were encoded again.
    run_here(*words(place, "again", "image_batch_size=5", "text_batch_size=3"))
    assert "features of emoji_concepts/test come from the cache" in caplog.text
    assert numbers(place, "again") == numbers(place, "first")


def emoji_suite():
    register("evaluate_schema", EvaluateConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("evaluate", ["suite=emoji", "pretrained=x"]), EvaluateConfig).suite


def test_any_number_of_ranks_gives_the_same_bits(place):
    one, two, three = (
        on_ranks(ranks.scores, size, emoji_suite(), place / "data", place / "export") for size in (1, 2, 3)
    )
    assert len(one[0]) == 4
    assert two == one * 2
    assert three == one * 3


def test_a_corrupt_image_stops_every_rank_unless_it_is_allowed(place, tmp_path, capsys):
    write_classification(tmp_path / "data" / "emoji_concepts", num_classes=7, per_class=8)
    shard = tmp_path / "data" / "emoji_concepts" / "test" / "1.tar"
    data = bytearray(shard.read_bytes())
    start = data.rindex(b"\x89PNG")
    data[start : start + 200] = bytes(200)
    shard.write_bytes(data)
    suite = emoji_suite()
    suite.datasets = {"emoji_concepts": suite.datasets["emoji_concepts"]}
    outcomes = on_ranks(ranks.scores, 2, suite, tmp_path / "data", place / "export")
    assert [type(outcome) for outcome in outcomes] == [DataError] * 2
    for outcome in outcomes:
        assert "at least 1 of 56 images cannot be decoded, 0 are allowed" in str(outcome)
        assert "1.tar, sample s0000055" in str(outcome)
    only = "~suite.datasets.emoji_retrieval", "~suite.datasets.emoji_subgroups", "max_bad_images=1"
    run_here(*words(place, "allowed", f"data_root={tmp_path / 'data'}", *only))
    (result,) = read_results(place / "allowed")
    assert (result.num_samples, result.num_bad_images) == (55, 1)
    assert "1 images could not be decoded and are left out" in capsys.readouterr().out


def test_weights_that_are_not_here_end_with_status_2_and_what_to_do(place):
    done = command(*words(place, "wrong", "model=ViT-B-32", "pretrained=laion2b_s34b_b79k"))
    assert done.returncode == 2, done.stderr
    assert "error: the weights 'laion2b_s34b_b79k' of ViT-B-32 are not in the local cache" in done.stderr
    assert "set HF_HUB_OFFLINE=0 on a machine with internet, or give pretrained=<path" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (place / "wrong" / "results.md").exists()


def test_data_that_is_not_there_is_found_before_the_model_is_loaded(place):
    with pytest.raises(DataError, match="'emoji_concepts': no split 'test' at nowhere/emoji_concepts"):
        run_here(*words(place, "wrong", "data_root=nowhere", "pretrained=not_looked_for"))


def test_averages_are_results_of_their_own(place):
    run_here(
        *words(
            place, "average", "~suite.datasets.emoji_retrieval", "suite.averages=[{name: mean, metric: acc1}]"
        ),
        "suite.datasets.emoji_subgroups.tasks=[zero_shot]",
    )
    results = read_results(place / "average")
    mean = next(r for r in results if r.task == "average")
    parts = [r.headline.value for r in results if r.task != "average"]
    assert (mean.dataset, mean.headline.num) == ("mean", 2)
    assert mean.headline.value == pytest.approx(sum(parts) / 2)
    assert not torch.backends.cudnn.allow_tf32
    # An average that a later run does not make is not left beside its cells.
    run_here(*words(place, "average", "~suite.datasets.emoji_retrieval", "~suite.datasets.emoji_subgroups"))
    assert "average" not in {r.task for r in read_results(place / "average")}


def test_several_models_in_one_run(place, capsys):
    torch.manual_seed(1)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, place / "other", provenance={})
    only = "~suite.datasets.emoji_retrieval", "~suite.datasets.emoji_subgroups"
    both = f"models=[{{pretrained: {place / 'export'}}},{{pretrained: {place / 'other'}}}]"
    run_here(*words(place, "several", *only, "pretrained=null", both))
    assert len({r.weights_sha256 for r in read_results(place / "several")}) == 2
    shown = capsys.readouterr().out
    assert "| model " in shown
    run_here(*words(place, "alone", *only, f"pretrained=local-dir:{place / 'other'}"))
    (alone,) = read_results(place / "alone")
    same = next(r for r in read_results(place / "several") if r.weights_sha256 == alone.weights_sha256)
    assert (same.metrics, same.groups) == (alone.metrics, alone.groups)


def test_two_runs_are_compared_sample_by_sample(place, capsys):
    torch.manual_seed(2)
    config = ModelConfig(name="tiny", architecture=ARCHITECTURE)
    export_model(build_model(config), config, place / "third", provenance={})
    for output, export in (("with_a", "export"), ("with_b", "third")):
        more = "save_predictions=true", "~suite.datasets.emoji_subgroups"
        run_here(*words(place, output, *more, f"pretrained={place / export}"))
    (path,) = (place / "with_a" / "results").glob("*/emoji_retrieval.retrieval.npz")
    predictions = load_predictions(path)
    assert len(predictions["keys"]) == 30
    assert len(predictions["image_of_text"]) == len(predictions["image_retrieval_rank"]) == 60
    (path,) = (place / "with_a" / "results").glob("*/emoji_concepts.zero_shot.npz")
    assert load_predictions(path)["label"].tolist() == [i % 7 for i in range(56)]
    capsys.readouterr()
    assert (
        main(["compare", str(place / "with_a"), str(place / "with_b"), "--output", str(place / "compared")])
        == 0
    )
    shown = capsys.readouterr().out
    assert "emoji_concepts" in shown
    assert "emoji_retrieval" in shown
    assert [file.suffix for file in sorted((place / "compared").iterdir())] == [".html", ".md"]
    assert main(["compare", str(place / "with_a"), str(place / "with_a")]) == 2
    assert "error: " in capsys.readouterr().err


def test_results_say_what_the_training_of_an_export_cost(place, first):
    assert all(result.provenance["training"] == TRAINING for result in read_results(place / "first"))


def test_a_manifest_is_written_and_then_held_against_the_data(place, tmp_path, capsys):
    folder = tmp_path / "colours"
    write_classification(folder, num_classes=3, per_class=2)
    assert main(["manifest", str(folder)]) == 0
    assert Path(capsys.readouterr().out.strip()) == folder / "dataset_manifest.json"
    shutil.rmtree(folder / "test")
    write_classification(folder, num_classes=3, per_class=1)
    settings = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    with pytest.raises(DataError, match=r"is not what dataset_manifest\.json says \(0\.tar has 20480 bytes"):
        open_datasets({"colours": settings}, data_root=tmp_path)
    assert main(["manifest", str(tmp_path / "missing")]) == 2
    assert "error: " in capsys.readouterr().err
    assert main(["manifest", str(folder), "--builder", "cifar10"]) == 2
    assert "--builder cifar10 needs --splits" in capsys.readouterr().err


def test_compare_is_a_command(place, first):
    done = command("compare", str(place / "first"), str(place / "nothing"))
    assert done.returncode == 2, done.stderr
    assert "nothing holds no results; give an output_dir of python -m evaluate" in done.stderr


def test_features_before_the_projection_serve_the_probe(place):
    only = "~suite.datasets.emoji_retrieval", "~suite.datasets.emoji_concepts"
    run_here(*words(place, "penultimate", *only, "suite.linear_probe.features=penultimate"))
    found = {r.task: r for r in read_results(place / "penultimate")}
    assert found["linear_probe"].details["features"] == "before projection, not normalised"
    assert found["few_shot"].details["features"] == "after projection, L2-normalised"
    assert found["linear_probe"].headline.value > 0.5


def test_weights_of_a_model_of_ones_own_need_its_architecture(place):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        own = typed(compose("evaluate", ["model=tiny", "pretrained=x"]), EvaluateConfig).model
    assert own is not None
    export_model(build_model(own), own, place / "tiny", provenance={})
    only = "~suite.datasets.emoji_retrieval", "~suite.datasets.emoji_subgroups"
    weights = place / "tiny" / "open_clip_model.safetensors"
    run_here(*words(place, "by_file", *only, "model=tiny", f"pretrained={weights}"))
    run_here(*words(place, "by_folder", *only, f"pretrained={place / 'tiny'}"))
    assert numbers(place, "by_file") == numbers(place, "by_folder")
    assert read_results(place / "by_file")[0].model == "tiny"
