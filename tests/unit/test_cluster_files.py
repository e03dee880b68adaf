"""The cluster's file, what is made of it for sbatch, and what a node that is not fit says."""

import json
import shlex
import socket
import threading
from pathlib import Path

import pytest

from crawl2clip import node_check
from crawl2clip.cluster import CLUSTER_DIR, explain_refusal, job_environment, load_cluster, sbatch_options
from crawl2clip.errors import ConfigError
from crawl2clip.node_check import gather, problems_of_node, report
from crawl2clip.submit import CHECKOUT, main, submission

MINIMAL = """\
account: mine
gpu: {partition: gpu, time: 24:00:00, gres: "gpu:a100:8", cpus: 96, mem: 480G}
cpu: {partition: cpu, time: 60, gres: null, cpus: 32, mem: null}
"""


@pytest.fixture
def file(tmp_path):
    def write(text=MINIMAL, **more):
        path = tmp_path / "here.yaml"
        path.write_text(text + "".join(f"{key}: {json.dumps(value)}\n" for key, value in more.items()))
        return str(path)

    return write


@pytest.mark.parametrize("name", sorted(path.stem for path in CLUSTER_DIR.glob("*.yaml")))
def test_every_example_is_read(name):
    cluster = load_cluster(name)
    assert cluster.gpu.gpus == 8
    assert cluster.cpu.gpus == 0
    assert all(option.startswith("--") for option in sbatch_options(cluster, cluster.gpu))


def test_options_are_those_of_the_file_and_null_is_left_to_slurm(file):
    cluster = load_cluster(file(options=["--exclusive"], qos="long"))
    assert sbatch_options(cluster, cluster.gpu) == [
        "--account=mine", "--qos=long", "--partition=gpu", "--time=24:00:00", "--gres=gpu:a100:8", "--cpus-per-task=96",
        "--mem=480G", "--exclusive",
    ]  # fmt: skip
    assert sbatch_options(cluster, cluster.cpu)[-2:] == ["--cpus-per-task=32", "--exclusive"]


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("account: mine\n", {}, r"lacks cpu\.cpus, .*give each a value, or null"),
        ("- a\n", {}, "holds list, not settings"),
        ("a: [\n", {}, "is not YAML"),
        (MINIMAL, {"acount": "x"}, r"here\.yaml: unknown setting 'acount'; did you mean 'account'"),
        (MINIMAL.replace("cpus: 96", "cpus: 0"), {}, "cpus is 0; give 1 or more cores"),
        (MINIMAL.replace("gpu:a100:8", "a100"), {}, "gres is 'a100'; give gpu:NUMBER or gpu:TYPE:NUMBER"),
        (
            MINIMAL,
            {"container": {"kind": "apptainer"}},
            r"container\.image is empty; give an image, or kind: none",
        ),
        (MINIMAL, {"container": {"kind": "docker", "image": "x"}}, "docker"),
        (MINIMAL, {"container": {"kind": "pyxis", "image": "a b"}}, "'a b' has a space"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(file, text, more, message):
    with pytest.raises(ConfigError, match=message):
        load_cluster(file(text, **more))


def test_a_cluster_that_is_not_there_lists_those_that_are():
    with pytest.raises(
        ConfigError, match=r"unknown cluster 'h10'; did you mean 'h100'.*Known: a100, h100.*a100\.yaml"
    ):
        load_cluster("h10")


def test_containers_stand_before_the_program_or_are_options_of_srun(file):
    mounts = {"image": "/i.sif", "mounts": ["/data", "/a:/b"]}
    apptainer = load_cluster(file(container={"kind": "apptainer", **mounts}))
    told = job_environment(apptainer, Path("/work/c"), "/py")
    assert (
        told["CRAWL2CLIP_CONTAINER"] == "apptainer exec --nv --bind /work/c --bind /data --bind /a:/b /i.sif"
    )
    assert told["CRAWL2CLIP_SRUN"] == ""
    pyxis = load_cluster(file(container={"kind": "pyxis", **mounts}, environment={"NCCL_DEBUG": "INFO"}))
    told = job_environment(pyxis, Path("/work/c"), "/py")
    assert told["CRAWL2CLIP_SRUN"] == (
        "--container-image=/i.sif --container-mounts=/work/c:/work/c,/data:/data,/a:/b --container-workdir=/work/c"
    )
    assert (told["CRAWL2CLIP_CONTAINER"], told["NCCL_DEBUG"]) == ("", "INFO")


def test_own_words_are_taken_and_the_others_go_to_the_command(file):
    words = ["train", f"cluster={file()}", "nodes=4", "time=5", "experiment=x", "run_name=b 32"]
    line, environment, source, dry_run = submission(words)
    assert line[-3:] == [str(CHECKOUT / "slurm" / "train.sbatch"), "experiment=x", "run_name=b 32"]
    for option in ("--nodes=4", "--time=5", "--gres=gpu:a100:8", f"--chdir={CHECKOUT}"):
        assert option in line
    assert environment["CRAWL2CLIP_CHECKOUT"] == str(CHECKOUT)
    assert (source, dry_run) == (words[1].partition("=")[2], False)
    line, *_ = submission(["pipeline", words[1], "executor=slurm", "kind=gpu"])
    assert "--gres=gpu:a100:8" in line
    assert line[-1] == f"executor.cluster={source}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian", "cluster=a100"], "unknown command 'trian'; did you mean 'train'"),
        (["train"], "cluster=NAME is missing; give a name in configs/cluster"),
        (["train", "cluster=a100", "nodes=none"], "nodes is 'none'; give a whole number from 1 on"),
        (["train", "cluster=a100", "kind=tpu"], "kind is 'tpu'; give gpu or cpu"),
    ],
)
def test_a_submission_that_cannot_be_made_says_why(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_prints_a_line_that_can_be_copied(file, capsys):
    assert main(["evaluate", f"cluster={file()}", "dry_run=true", "suite=quick"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("sbatch") + 1] == "--parsable"
    assert words[-2:] == [str(CHECKOUT / "slurm" / "evaluate.sbatch"), "suite=quick"]


def test_without_sbatch_it_says_where_to_go(file, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["train", f"cluster={file()}", "run_name=x"]) == 2
    assert "sbatch is not found; call this on a login node" in capsys.readouterr().err


def test_what_sbatch_said_is_passed_on():
    said = "sbatch: error: invalid partition specified: gold\nsbatch: error: Batch job submission failed\n"
    assert explain_refusal(said, "cluster=here", ["main"]) == (
        "sbatch refused the job: invalid partition specified: gold; Batch job submission failed. Partitions here: "
        "main. The settings are those of cluster=here; correct them there"
    )


def test_a_node_without_gpus_or_a_writable_folder_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    assert problems_of_node(False, [str(tmp_path / "new" / "folder")]) == []
    assert (tmp_path / "new" / "folder").is_dir()
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (none,) = problems_of_node(True, [])
    assert none.startswith("no GPU was granted: the cluster file's gres asks for none")
    (tmp_path / "file").write_text("")
    (unwritable,) = problems_of_node(False, [str(tmp_path / "file" / "run")])
    assert unwritable.startswith(
        f"cannot write to {tmp_path}/file/run (Not a directory): give a folder that every node"
    )


def test_nodes_report_to_the_first_and_the_silent_are_missed(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    found = {}
    listening = threading.Thread(target=lambda: found.update(gather("", port, 3, [], 4.0)))
    listening.start()
    with socket.create_connection(("127.0.0.1", port)) if _listens(port) else socket.socket() as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert report("127.0.0.1", port, ["no disk"], 4.0) is None
    monkeypatch.setenv("SLURMD_NODENAME", "head")
    listening.join()
    assert found.pop("n7") == ["no disk"]
    assert len(found) == 1  # the third never came
    assert "Connection refused" in str(report("127.0.0.1", port, [], 0.6))
    assert "the name no-such-host.invalid is not known here" in str(
        report("no-such-host.invalid", port, [], 5.0)
    )


def _listens(port):
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        except OSError:
            threading.Event().wait(0.05)
    return False


def test_half_the_nodes_failing_ends_the_job_and_names_them(capsys, monkeypatch):
    assert node_check._summary({"n1": [], "n2": ["no disk"], "n3": [], "n4": ["no GPU"]}, 4, "n1:20000") == 1
    said = capsys.readouterr().err
    assert "preflight: n1: ok" in said
    assert "preflight: n4: no GPU" in said
    assert "preflight: 2 of 4 nodes failed; to go on without them: --exclude=n2,n4" in said
    assert node_check._summary({"n1": []}, 2, "n1:20000") == 1
    assert "1 of 2 nodes did not report to n1:20000" in capsys.readouterr().err
    assert node_check._summary({"n1": [], "n2": []}, 2, "n1:20000") == 0
