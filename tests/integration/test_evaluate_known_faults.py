"""Known faults of CLIP_benchmark 1.6.2, one after another: shown on its own code, and not to be had from ours.

Each test has both halves, so that it says when a fault of theirs is mended and the comparison can become an equality.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import clip_benchmark.cli as reference_cli
import clip_benchmark.metrics.linear_probe as reference_probe
import clip_benchmark.metrics.zeroshot_classification as reference_zero_shot
import numpy as np
import pytest
import torch
from clip_benchmark.datasets import builder
from clip_benchmark_reference import probe_without_cuda, trained_encoder
from evaluation_commands import export, run_suite
from evaluation_sets import PlainEncoder, encoded, picture, write_classification, write_split
from hydra.errors import HydraException
from PIL import Image

from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.tar_split import TarSplit
from evaluate.run import evaluate

ROOT = Path(__file__).resolve().parents[2]
NUM_CLASSES = 6
PROBE = {"tasks": ["linear_probe"], "metric": "acc1"}


@pytest.fixture(scope="module")
def encoder():
    return trained_encoder(num_classes=NUM_CLASSES, steps=10)


@pytest.fixture(scope="module")
def weights(encoder, tmp_path_factory):
    return f"pretrained={export(encoder, tmp_path_factory.mktemp('weights') / 'export')}"


def write_splits(folder, *splits, per_class=10):
    for seed, split in enumerate(splits):
        write_classification(folder, num_classes=NUM_CLASSES, per_class=per_class, split=split, seed=1 + seed)


def batches(images, labels):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=8)


def reference_evaluate(probe, encoder, folder, train, test, *, k=-1, val=None, device="cpu"):
    """The reference's linear probe on (images, labels)."""
    torch.manual_seed(0)  # it draws and shuffles samples before it sets a seed
    return probe.evaluate(
        encoder.model, batches(*train), batches(*test), k, 8, 0, 0.1, 2, "model-weights-set", 0, str(folder), device,
        val_dataloader=batches(*val) if val else None, amp=False,
    )  # fmt: skip


def hard_to_tell(*, count, seed):
    """Pictures that are a third to two thirds another class."""
    rng = np.random.default_rng(seed)
    entries = []
    for i in range(count):
        own, other = i % NUM_CLASSES, (i + 1 + int(rng.integers(NUM_CLASSES - 1))) % NUM_CLASSES
        image = Image.blend(
            picture(own, i + 1000 * seed), picture(other, i), float(rng.uniform(1 / 3, 2 / 3))
        )
        entries.append({"png": encoded(image), "cls": str(own).encode()})
    return entries


def samples(num_per_class=4, seed=0):
    """Preprocessed-looking pictures that a model of 32 px takes, and their classes."""
    labels = torch.arange(NUM_CLASSES).repeat(num_per_class)
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-1, 1, NUM_CLASSES)[labels, None, None, None]
    return means + 0.1 * torch.randn(len(labels), 3, 32, 32, generator=generator), labels


def test_the_probe_runs_on_a_cpu(tmp_path, encoder, weights):
    with pytest.raises(AssertionError):
        reference_evaluate(reference_probe, encoder, tmp_path / "features", samples(), samples())
    write_splits(tmp_path / "things", "train", "test")
    (result,) = run_suite(tmp_path, {"things": PROBE}, weights).values()
    assert result.headline.value > 2 / NUM_CLASSES


def test_the_probe_is_scikit_learns_logistic_regression(tmp_path, encoder, weights):
    """Within 0.2 points at the same penalty: both find the one minimum of the same convex function."""
    from sklearn.linear_model import LogisticRegression

    for seed, split in enumerate(("train", "val", "test")):
        write_split(tmp_path / "things" / split, hard_to_tell(count=150, seed=seed))
    (result,) = run_suite(tmp_path, {"things": {**PROBE, "val_split": "val"}}, weights).values()
    features, labels = {}, {}
    for split in ("train", "val", "test"):
        opened = TarSplit(tmp_path / "things", split, with_labels=True, with_captions=False)
        images = torch.stack([encoder.preprocess(record.image) for record in opened.records()])
        features[split], labels[split] = encoder.encode_images(images), torch.tensor(opened.labels)
    whole = torch.cat([features["train"], features["val"]]), torch.cat([labels["train"], labels["val"]])
    # In float64 and by Newton steps: its L-BFGS stops some samples away from the minimum.
    theirs = LogisticRegression(C=1 / result.details["l2"], solver="newton-cholesky", tol=1e-8)
    theirs.fit(whole[0].double().numpy(), whole[1].numpy())
    expected = theirs.score(features["test"].double().numpy(), labels["test"].numpy())
    assert 2 / NUM_CLASSES < expected < 0.95
    assert result.headline.value == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize(
    ("name", "known_as"), [("sun397", "SUN397"), ("caltech101", None), ("eurosat", "EuroSAT")]
)
def test_a_set_without_splits_is_not_probed_on_its_training_images(monkeypatch, name, known_as):
    class Whole:
        classes = ["a", "b"]

        def __init__(self, root, **settings):
            self.settings = settings

    if known_as:
        monkeypatch.setattr(builder, known_as, Whole)
    else:
        monkeypatch.setattr(builder.caltech101, "Caltech101", Whole)
    with pytest.warns(UserWarning, match="split argument ignored"):
        train, test = (builder.build_dataset(name, root="", split=split) for split in ("train", "test"))
    assert train.settings == test.settings  # the same images twice
    with pytest.raises(ConfigError, match="a probe would be scored on its training images"):
        DatasetConfig(builder=name, tasks=[Task.linear_probe], metric="acc1")


def test_other_images_or_another_precision_are_encoded_again(tmp_path, monkeypatch, encoder, weights, caplog):
    probe = probe_without_cuda(monkeypatch)
    first = reference_evaluate(probe, encoder, tmp_path / "features", samples(), samples(seed=1))
    noise = torch.randn(24, 3, 32, 32), torch.zeros(24, dtype=torch.int64)
    assert reference_evaluate(probe, encoder, tmp_path / "features", noise, noise) == first  # stale

    write_splits(tmp_path / "things", "train", "test")
    caplog.set_level("INFO")
    (before,) = run_suite(tmp_path, {"things": PROBE}, weights).values()
    told = "features of things/test come from the cache"
    assert told not in caplog.text
    (again,) = run_suite(tmp_path, {"things": PROBE}, weights, output="again").values()
    assert told in caplog.text
    assert again.metrics == before.metrics
    caplog.clear()
    for precision in ("bf16", "fp16"):
        (half,) = run_suite(
            tmp_path, {"things": PROBE}, weights, f"precision={precision}", output=precision
        ).values()
        assert told not in caplog.text
        assert half.precision == precision
    noise_test = [{"png": encoded(picture(9, i)), "cls": str(i % NUM_CLASSES).encode()} for i in range(60)]
    write_split(tmp_path / "noise", noise_test)
    (tmp_path / "noise").replace(tmp_path / "things" / "other")
    (other,) = run_suite(
        tmp_path, {"things": {**PROBE, "test_split": "other"}}, weights, output="other"
    ).values()
    assert other.headline.value < before.headline.value
    assert other.data_sha256 != before.data_sha256


def test_a_validation_split_may_be_added_later(tmp_path, monkeypatch, encoder, weights):
    probe = probe_without_cuda(monkeypatch)
    reference_evaluate(probe, encoder, tmp_path / "features", samples(), samples(seed=1))
    with pytest.raises(FileNotFoundError, match=r"features_val\.pt"):
        reference_evaluate(
            probe, encoder, tmp_path / "features", samples(), samples(seed=1), val=samples(seed=2)
        )

    write_splits(tmp_path / "things", "train", "val", "test")
    (without,) = run_suite(tmp_path, {"things": PROBE}, weights).values()
    (with_val,) = run_suite(tmp_path, {"things": {**PROBE, "val_split": "val"}}, weights).values()
    assert without.details["validation"] == "20% of each class of train"
    assert with_val.details["validation"] == "the data set's own split"


def test_a_data_set_nobody_knows_gets_no_prompts_of_imagenet(monkeypatch, tmp_path):
    monkeypatch.setattr(builder, "build_tfds_dataset", lambda *_, **__: SimpleNamespace(classes=["a", "b"]))
    dataset = builder.build_dataset("tfds/x_rays_of_teeth", root="")
    assert len(dataset.templates) == 80  # "a bad photo of a {c}." and so on
    write_classification(tmp_path / "x_rays_of_teeth")
    (tmp_path / "x_rays_of_teeth" / "zeroshot_classification_templates.txt").unlink()
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    with pytest.raises(ConfigError, match=r"x_rays_of_teeth.*No templates are assumed"):
        open_dataset("x_rays_of_teeth", config, data_root=tmp_path)


def in_processes(code, *seeds):
    """What a program prints under each hash seed."""
    said = []
    for seed in seeds:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            cwd=ROOT,
        )
        said.append(done.stdout)
    return said


def test_columns_keep_their_order_from_run_to_run(tmp_path, weights):
    (tmp_path / "their.json").write_text(
        '{"metrics": {"acc1": 1, "acc5": 1}, "model": "m", "pretrained": "p"}'
    )
    theirs = (
        f"import csv, json, os\nfrom types import SimpleNamespace\n{inspect.getsource(reference_cli.main_build)}\n"
        f"main_build(SimpleNamespace(files=[{str(tmp_path / 'their.json')!r}], output={str(tmp_path / 'out')!r}))\n"
        f"print(open({str(tmp_path / 'out')!r}).readline())"
    )
    assert len(set(in_processes(theirs, "1", "2", "3", "4"))) > 1
    write_splits(tmp_path / "things", "test")
    run_suite(tmp_path, {"things": {"tasks": ["zero_shot"], "metric": "acc1"}}, weights)
    ours = (
        "from pathlib import Path\nfrom evaluate.results import read_results\n"
        f"from evaluate.reports.tables import write_tables\nfolder = Path({str(tmp_path / 'output')!r})\n"
        "write_tables(read_results(folder), folder)\nprint((folder / 'results.csv').read_text())"
    )
    first, second = in_processes(ours, "1", "2")
    assert first == second
    assert "acc1" in first


def test_a_class_with_fewer_samples_than_shots_is_used_and_reported(tmp_path, monkeypatch, encoder, weights):
    probe = probe_without_cuda(monkeypatch)
    images, labels = samples()
    short = images[:-1], labels[:-1]  # the last class has three
    assert reference_evaluate(probe, encoder, tmp_path / "features", short, samples(seed=1), k=4) is None

    write_splits(tmp_path / "things", "train", "test", per_class=4)
    entries = [
        {"png": encoded(picture(c, c)), "cls": str(c).encode()} for c in [*range(6), *range(6), *range(5)]
    ]
    write_split(tmp_path / "things" / "short", entries)
    settings = {"tasks": ["few_shot"], "metric": "acc1", "train_split": "short"}
    few_shot = {"shots": [1, 3], "seeds": [0, 1, 2], "one_shot_l2": 1.0}
    (result,) = run_suite(tmp_path, {"things": settings}, weights, few_shot=few_shot).values()
    assert 0 < result.metrics["acc1@3_shot"].value <= 1
    assert any("1 of 6 classes have fewer than 3 training samples" in note for note in result.notes)


def test_no_means_no(monkeypatch, tmp_path, weights):
    monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--normalize", "False"])
    _, arguments = reference_cli.get_parser_args()
    assert arguments.normalize is True
    write_splits(tmp_path / "things", "test")
    zero_shot = {"things": {"tasks": ["zero_shot"], "metric": "acc1"}}
    run_suite(tmp_path, zero_shot, weights, "save_predictions=False")
    assert not list(tmp_path.glob("output/**/*.npz"))
    run_suite(tmp_path, zero_shot, weights, "save_predictions=True", output="kept")
    assert len(list(tmp_path.glob("kept/**/*.npz"))) == 1
    with pytest.raises(HydraException, match="save_predictions"):
        run_suite(tmp_path, zero_shot, weights, "save_predictions=perhaps")


def test_shards_that_nobody_counts_are_not_left_out(tmp_path):
    folder = write_classification(tmp_path / "things", num_classes=NUM_CLASSES, per_class=4)
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    (folder / "test" / "nshards.txt").write_text("1\n")  # of two
    half = builder.build_dataset("wds/things", root=str(folder), split="test", transform=None)
    assert sum(1 for _ in half) == 12  # of 24, and not a word
    with pytest.raises(DataError, match=r"nshards.txt says 1 shards, 2 found \(not counted: 1.tar\)"):
        open_dataset("things", config, data_root=tmp_path)
    (folder / "test" / "nshards.txt").unlink()
    with pytest.raises(DataError, match=r"(nshards\.txt).*(manifest\.json)"):
        open_dataset("things", config, data_root=tmp_path)


def reference_run(monkeypatch, tmp_path, *commands):
    """The reference's command line with model, data and tasks stood in for; how often it loaded a model."""
    loads = []
    dataset = SimpleNamespace(classes=["a"], templates=["{c}"], batched=lambda _: [])
    monkeypatch.setattr(
        reference_cli, "load_clip", lambda **_: (loads.append(1), *[torch.nn.Identity()] * 2, None)[1:]
    )
    monkeypatch.setattr(reference_cli, "build_dataset", lambda **_: dataset)
    monkeypatch.setattr(reference_zero_shot, "evaluate", lambda *_, **__: {"acc1": len(loads)})
    monkeypatch.setattr(reference_probe, "evaluate", lambda *_, **__: {"lp_acc1": len(loads)})
    monkeypatch.chdir(tmp_path)
    for words in commands:
        monkeypatch.setattr(sys, "argv", ["clip_benchmark", "eval", "--model", "tiny", "--quiet", *words])
        reference_cli.main()
    return len(loads)


def test_a_result_is_not_written_over_by_another(monkeypatch, tmp_path, encoder, weights):
    (tmp_path / "theirs").mkdir()
    common = ["--pretrained", "weights", "--dataset", "wds/things", "--task", "linear_probe"]
    reference_run(
        monkeypatch, tmp_path / "theirs", [*common, "--fewshot_k", "1"], [*common, "--fewshot_k", "2"]
    )
    assert len(list((tmp_path / "theirs").glob("*.json"))) == 1

    write_splits(tmp_path / "things", "train", "test")
    settings = {"things": {"tasks": ["few_shot"], "metric": "acc1"}}
    few_shot = {"shots": [1, 2], "seeds": [0, 1, 2], "one_shot_l2": 1.0}
    (result,) = run_suite(tmp_path, settings, weights, few_shot=few_shot).values()
    assert {"acc1@1_shot", "acc1@2_shot"} <= result.metrics.keys()
    other = trained_encoder(num_classes=NUM_CLASSES, steps=1)
    again = export(other, tmp_path / "elsewhere" / "export")  # the same name of another checkpoint
    run_suite(tmp_path, settings, f"pretrained={again}", few_shot=few_shot)
    assert len(list(tmp_path.glob("output/results/*/things.few_shot.json"))) == 2


def test_a_result_is_taken_as_done_for_what_it_is_of_and_not_for_its_name(
    monkeypatch, tmp_path, weights, caplog
):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights.pt").write_text("first")
    common = ["--pretrained", "weights.pt", "--dataset", "wds/things", "--task", "zeroshot_classification"]
    assert reference_run(monkeypatch, tmp_path / "theirs", common) == 1
    (tmp_path / "theirs" / "weights.pt").write_text("second")
    assert reference_run(monkeypatch, tmp_path / "theirs", [*common, "--skip_existing"]) == 0

    caplog.set_level("INFO")
    write_splits(tmp_path / "things", "test")
    zero_shot = {"things": {"tasks": ["zero_shot"], "metric": "acc1"}}
    run_suite(tmp_path, zero_shot, weights)
    run_suite(tmp_path, zero_shot, weights)
    assert "zero_shot of things is taken from" in caplog.text
    caplog.clear()
    (tmp_path / "things" / "zeroshot_classification_templates.txt").write_text("another {c}\n")
    run_suite(tmp_path, zero_shot, weights)
    assert "zero_shot of things is taken from" not in caplog.text


def test_the_model_is_loaded_once_and_a_prompt_encoded_once(monkeypatch, tmp_path):
    (tmp_path / "theirs").mkdir()
    words = ["--pretrained", "weights", "--dataset", "wds/a", "wds/b", "--task", "zeroshot_classification"]
    assert reference_run(monkeypatch, tmp_path / "theirs", words) == 2
    counted = PlainEncoder()
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
    opened = []
    for seed, name in enumerate(("a", "b")):
        write_classification(tmp_path / name, num_classes=NUM_CLASSES, seed=seed)
        opened.append(open_dataset(name, config, data_root=tmp_path))
    evaluate(counted, opened, world=single_process(), show_progress=False)
    assert len(counted.texts_encoded) == len(set(counted.texts_encoded)) == 3 * NUM_CLASSES
