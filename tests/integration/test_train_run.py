"""The story of a run in one process, and the command as a user types it."""

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from evaluation_sets import write_classification, write_retrieval
from hydra import compose, initialize_config_dir
from object_server import ObjectServer, s3_environment
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from small_disk import enlarge, small_disk

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import read_json
from crawl2clip.models import ModelConfig, build_model
from crawl2clip.shards import ShardWriter
from evaluate.config import SuiteConfig
from evaluate.data.datasets import DatasetConfig, Task
from evaluate.data.prompts import CLASS_NAMES_FILE, TEMPLATES_FILE
from evaluate.tasks.few_shot import FewShotConfig
from train.checkpoints.checkpoint_folder import find_newest
from train.config import TrainConfig
from train.data.decode import BAD_SAMPLE_REASONS
from train.in_loop import evaluate_live, open_evaluation
from train.monitoring.metrics import read_metrics
from train.run import run, train
from train.stop_signal import STOPPED_EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "yellow")


def square(colour, number=0):
    data = io.BytesIO()
    image = Image.new("RGB", (40, 40), "white")
    image.paste(colour, (number % 8, number % 8, 32, 32))
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """32 squares in four colours, captioned by their colour."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "0.tar") as writer:
        for number in range(32):
            colour = COLOURS[number % 4]
            writer.write(
                f"{number:04d}", {"png": square(colour, number), "txt": f"a {colour} square".encode()}
            )
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A data root with one zero-shot set: the four colours."""
    root = tmp_path_factory.mktemp("evaluation")
    (root / "colours" / "test").mkdir(parents=True)
    with ShardWriter(root / "colours" / "test" / "0.tar") as writer:
        for label, colour in enumerate(COLOURS):
            writer.write(f"{label:04d}", {"png": square(colour, 3), "cls": str(label).encode()})
    (root / "colours" / "test" / "nshards.txt").write_text("1")
    (root / "colours" / CLASS_NAMES_FILE).write_text("\n".join(COLOURS))
    (root / "colours" / TEMPLATES_FILE).write_text("a {c} square")
    return root


def words(shards, folder, *overrides):
    return [
        "model=tiny", "precision=fp32", "augment=none", "device=cpu", "wandb.enabled=false", "run_name=run",
        f"run_folder={folder}", f"data.shards={shards}", "data.decode_size=40", "data.num_workers=0",
        "train.global_batch_size=8", "train.epochs=10", "train.log_every_steps=4", "optimizer.lr=0.003",
        "schedule.warmup_steps=4", "checkpoint.every_steps=1000", *overrides,
    ]  # fmt: skip


def settings(shards, folder, *overrides):
    register("train_schema", TrainConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return typed(compose("train", words(shards, folder, *overrides)), TrainConfig)


def suite_of(name):
    return SuiteConfig(name="loop", datasets={name: DatasetConfig(tasks=[Task.zero_shot], metric="acc1")})


def hand_counted_macs():
    """configs/model/tiny.yaml: a block of width w on n tokens has 12 w^2 a token, and 2 n w for attention's scores."""
    patches, width = 16, 32
    image = patches * 8 * 8 * 3 * width + 2 * (patches + 1) * (12 * width**2 + 2 * (patches + 1) * width)
    text = 16 * (12 * width**2 + 2 * 16 * width)
    return image + text + 2 * width * 32


def test_a_run_learns_is_scored_and_exported_for_open_clip(shards, scored, tmp_path, caplog):
    """Four colours, four captions: the loss falls towards what repeated captions in a batch leave."""
    config = settings(
        shards, tmp_path, "data.cache_decoded=true", "data.random_crop=null", "evaluation.every_steps=20",
        f"evaluation.data_root={scored}",
        "evaluation.num_workers=0",
    )  # fmt: skip
    config.evaluation.suite = suite_of("colours")
    with caplog.at_level(logging.INFO):
        assert train(config, single_process()) == 0

    for words_of_the_start in (
        "8 global = 8 x 1 rank, in 1 part",
        "32 samples",
        "40 steps, 320 samples seen, 10.00 epochs",
    ):
        assert words_of_the_start in caplog.text
    records = read_metrics(tmp_path / "metrics.jsonl")
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[0] > 1.1
    assert losses[-1] < 1.0
    assert [record["step"] for record in records if "loss" in record] == list(range(4, 41, 4))
    assert list(next(iter(records))) == [
        "step", "samples_seen", "epoch", "stage", "loss", "logit_scale", "lr", "grad_norm", "samples_per_s",
        "samples_per_s_per_gpu", "mfu", "data_wait_fraction", "gpu_hours", "hours_left", "peak_memory_gb",
        "bad_draws", *(f"bad_draws/{reason}" for reason in BAD_SAMPLE_REASONS), "skipped_steps", "roll_backs",
    ]  # fmt: skip
    scores = {r["step"]: r["evaluation/colours/zero_shot/acc1"] for r in records if "loss" not in r}
    assert list(scores) == [20, 40]
    assert scores[40] == 1.0

    exported, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'export'}")
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'export'}")(
        [f"a {colour} square" for colour in COLOURS]
    )
    images = torch.stack([preprocess(Image.open(io.BytesIO(square(colour, 3)))) for colour in COLOURS])
    trained = build_model(ModelConfig(name="tiny", architecture=config.model.architecture))
    state = find_newest(tmp_path / "checkpoints", repair=False)
    assert state is not None
    trained.load_state_dict({name: state.read(f"model/{name}") for name in trained.state_dict()})
    with torch.no_grad():
        for theirs, ours in zip(exported.eval()(images, tokens), trained.eval()(images, tokens), strict=True):
            assert torch.equal(theirs, ours)
        image_features, text_features, _ = exported(images, tokens)
    assert (image_features @ text_features.T).argmax(1).tolist() == [0, 1, 2, 3]
    card = (tmp_path / "export" / "README.md").read_text()
    assert "colours" in card
    assert "320" in card
    written = read_json(tmp_path / "export" / "open_clip_config.json")["provenance"]["training"]
    assert written["samples_seen"] == 320
    assert written["gmacs_per_sample"] == pytest.approx(1e-9 * hand_counted_macs(), rel=0.02)


def test_retrieval_and_few_shot_while_training_are_what_evaluation_gives_the_exported_model(shards, tmp_path):
    data_root = tmp_path / "evaluation"
    for split in ("train", "test"):
        write_classification(data_root / "things", split=split, seed=len(split))
    write_retrieval(data_root / "pictures")
    config = settings(
        shards, tmp_path / "run", "evaluation.every_steps=2", f"evaluation.data_root={data_root}",
        "evaluation.num_workers=0", "train.epochs=1", "schedule.warmup_steps=1",
    )  # fmt: skip
    suite = SuiteConfig(
        name="loop",
        datasets={
            "things": DatasetConfig(tasks=[Task.few_shot], metric="acc1"),
            "pictures": DatasetConfig(tasks=[Task.retrieval], metric="image_retrieval_recall@5"),
        },
        few_shot=FewShotConfig(shots=[2], seeds=[0, 1, 2], one_shot_l2=1.0),
    )
    config.evaluation.suite = suite
    assert train(config, single_process()) == 0
    records = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" not in record]
    assert [record["step"] for record in records] == [2, 4]
    exported = replace(config.model, pretrained=str(tmp_path / "run" / "export"))
    after = evaluate_live(
        build_model(exported),
        exported,
        open_evaluation(config.evaluation, single_process()),
        config.evaluation,
        config.precision,
        single_process(),
    )
    assert {name.split("/")[2] for name in after} == {"few_shot", "retrieval"}
    assert {name: records[1][name] for name in after} == pytest.approx(after)


def test_bfloat16_follows_float32(shards, tmp_path):
    """The curves stay together to the three digits that bfloat16 towers keep; the loss itself is float32."""
    curves = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        train(settings(shards, folder, f"precision={precision}", "train.epochs=2"), single_process())
        curves.append([record["loss"] for record in read_metrics(folder / "metrics.jsonl")])
    assert curves[1] == pytest.approx(curves[0], rel=2e-2)
    assert curves[1] != curves[0]


def test_dry_run_shows_the_run_of_many_nodes_and_writes_nothing(shards, tmp_path, capsys):
    words = (
        "dry_run=true", "train.epochs=null", "train.samples_seen=3200", "train.global_batch_size=64",
        "strategy=fsdp2", "preflight.num_nodes=4", "preflight.gpus_per_node=8", "preflight.device_memory_gb=80",
    )  # fmt: skip
    assert run(settings(shards, tmp_path / "run", *words), OmegaConf.create()) == 0
    shown = capsys.readouterr().out
    for words_of_the_report in (
        "32, strategy fsdp2",
        "1 shard; 0.tar has 32 samples",
        "1.6 M parameters, 1.6 M trained",
        "images [2, 3, 32, 32] and texts [2, 16] to features [2, 32], [2, 32]",
        "of 80.0 GB, an estimate",
        "50 steps, 3200 samples seen",
    ):
        assert words_of_the_report in shown
    assert not (tmp_path / "run").exists()


def test_dry_run_reads_shards_of_a_store(shards, tmp_path, monkeypatch, capsys):
    pytest.importorskip("s3fs", reason="object stores need s3fs: pip install 's3fs>=2024.2'")
    bucket = tmp_path / "store" / "bucket"
    shutil.copytree(shards, bucket / "shards")
    with ObjectServer(bucket.parent) as server:
        s3_environment(monkeypatch, server, tmp_path)
        words = (
            "dry_run=true",
            "train.epochs=null",
            "train.samples_seen=3200",
            "data.shards=s3://bucket/shards",
        )
        assert run(settings(shards, tmp_path / "run", *words), OmegaConf.create()) == 0
        assert "1 shard; 0.tar answers" in capsys.readouterr().out
        with pytest.raises(DataError, match=r"no shard at 's3://bucket/none'; give a \.tar"):
            run(
                settings(shards, tmp_path / "run", *words[:-1], "data.shards=s3://bucket/none"),
                OmegaConf.create(),
            )


def test_dry_run_names_what_will_fail(shards, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "0.tar").write_bytes(b"no tar")
    words = ("dry_run=true", "train.epochs=null", "train.samples_seen=3200", f"data.shards={broken}")
    with pytest.raises(DataError, match=r"shard .*0\.tar cannot be read .*check data.shards"):
        run(settings(shards, tmp_path / "run", *words), OmegaConf.create())


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (
            ["train.global_batch_size=64"],
            ConfigError,
            "global batch 64 in stage 0 is more than the 32 usable samples",
        ),
        (["data.shards=missing"], DataError, "no shard at 'missing'|missing"),
        (["data.caption=json:caption"], DataError, "and no usable sample .*missing_caption 32"),
        (["evaluation.every_steps=0"], ConfigError, "evaluation.every_steps is 0; give 1 or more"),
        (["evaluation.num_workers=-1"], ConfigError, "evaluation.num_workers is -1; give 0 or more"),
        (["model=vit_b_32", "model.name=ViT-B-23"], ConfigError, "unknown model 'ViT-B-23'; did you mean"),
    ],
)
def test_what_cannot_be_trained_is_said_before_training(shards, tmp_path, overrides, error, message):
    with pytest.raises(error, match=message):
        train(settings(shards, tmp_path, *overrides), single_process())
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_data_set_to_score_on_that_is_not_there(shards, tmp_path):
    config = settings(shards, tmp_path, f"evaluation.data_root={tmp_path}")
    config.evaluation.suite = suite_of("colors")
    with pytest.raises(DataError, match="data set 'colors': no split 'test'"):
        train(config, single_process())


def command(*arguments, ranks=None):
    # --local-addr: the ranks meet on loopback, whatever the machine's own name resolves to.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    launcher = [*torchrun, f"--nproc_per_node={ranks}"] if ranks else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "train", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def finish(process):
    """Exit status and output."""
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def wait_for_records(process, folder, count):
    deadline = time.monotonic() + 120
    while len(read_metrics(folder / "metrics.jsonl")) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_sigterm_saves_and_the_same_command_goes_on(shards, tmp_path):
    long = words(shards, tmp_path, "train.epochs=100000", "train.log_every_steps=1", "data.num_workers=1")
    process = command(*long)
    try:
        wait_for_records(process, tmp_path, 5)
        process.send_signal(signal.SIGTERM)
        status, output = finish(process)
    finally:
        process.kill()
    assert status == STOPPED_EXIT_CODE
    assert "saved and stopped by SIGTERM; the same command goes on (exit status 75)" in output
    saved = find_newest(tmp_path / "checkpoints", repair=False)
    assert saved is not None
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert saved.step == records[-1]["step"]
    for name in ("config.yaml", "provenance.json", "log.txt"):
        assert (tmp_path / name).is_file()


def test_a_disk_full_during_a_save_ends_the_command_and_with_room_it_goes_on(shards, tmp_path):
    """20 MB a checkpoint on 50 MB: the third does not fit. What was trained in all equals an unbroken run."""
    often = ("train.epochs=4", "checkpoint.every_steps=4", "checkpoint.keep_last=3")
    with small_disk(tmp_path / "small", 50) as disk:
        broken = words(shards, disk / "run", *often)
        status, output = finish(command(*broken))
        assert status == 2, output
        assert (
            "error: the checkpoint of step 12 could not be written: rank 0: No space left on device" in output
        )
        assert "Traceback" not in output
        saved = find_newest(disk / "run" / "checkpoints", repair=False)
        assert saved is not None
        assert saved.step == 8
        enlarge(disk, 200)
        status, output = finish(command(*broken))
        assert status == 0, output
        resumed = load_file(disk / "run" / "export" / "open_clip_model.safetensors")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command has
    try:
        assert train(settings(shards, tmp_path / "whole", *often), single_process()) == 0
    finally:
        torch.set_num_threads(threads)
    whole = load_file(tmp_path / "whole" / "export" / "open_clip_model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_torchrun_smoke_on_two_ranks_from_the_shell(shards, tmp_path):
    arguments = ["debug=smoke", f"data.shards={shards}", "run_name=smoke", f"run_folder={tmp_path}"]
    status, output = finish(command(*arguments, ranks=2))
    assert status == 0, output
    assert "4 global = 2 x 2 ranks, in 1 part" in output
    assert (tmp_path / "export" / "open_clip_model.safetensors").is_file()


def test_a_run_without_a_name(shards):
    status, output = finish(command(f"data.shards={shards}"))
    assert status == 2
    assert (
        "error: setting without a value: run_name; give it on the command line, for example run_name="
        in output
    )


def test_a_run_that_ends_by_an_error_takes_its_workers_along(shards, tmp_path):
    """They ignore the signal by which Python ends them, and it would wait for them for ever."""
    status, output = finish(
        command(*words(shards, tmp_path, "safety=stop", "data.num_workers=2", "optimizer.lr=1e30"))
    )
    assert status == 2
    assert "loss is nan" in output


def test_a_rank_that_is_killed_ends_the_others_and_their_workers(shards, tmp_path, monkeypatch):
    # Or torchrun would kill what does not end by itself, and the test would show nothing.
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
    long = words(shards, tmp_path, "train.epochs=100000", "train.log_every_steps=1", "data.num_workers=1")
    process = command(*long, ranks=2)
    try:
        wait_for_records(process, tmp_path, 5)
        os.kill(read_json(tmp_path / "heartbeat" / "rank_00001.json")["pid"], signal.SIGKILL)
        status, output = finish(process)
    finally:
        process.kill()
    assert status == 1
    assert "SIGKILL" in output


def test_a_wrong_word_on_the_command_line(shards, tmp_path):
    status, output = finish(command("optimizer.learning_rate=1", *words(shards, tmp_path)))
    assert status == 2
    assert "error: unknown setting 'learning_rate'" in output
    assert "Known: betas, eps, layer_decay, lr" in output
    assert not list(tmp_path.iterdir())
