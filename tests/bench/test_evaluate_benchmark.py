"""benchmarks/evaluate.py runs at its smallest and ends with its results; what it measures is not judged here."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / "runs" / "benchmarks" / "clip_benchmark"
SMALL = ["classes=4", "images=6", "classifier_model=ViT-S-32-alt", "model=ViT-S-32-alt", "shots=1"]


def benchmark(*words):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evaluate.py"), *SMALL, *words],
        capture_output=True, text=True, timeout=1800, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.slow
def test_ours_alone():
    lines = benchmark("peer=0")
    assert any(
        re.match(r"ours: [\d.-]+ ms a prompt, 1,000 x 80 in .* \(extrapolated from 160 prompts\)", line)
        for line in lines
    )
    # A difference between two runs; at this size noise can make it negative.
    assert re.fullmatch(r"result name=evaluate_classifier ours=[\d.-]+ floor=[\d.-]+ unit=CPU_s", lines[-4])
    assert re.fullmatch(r"result name=evaluate_whole_peak_memory ours=[\d.]+ unit=MB", lines[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    not list(ENVIRONMENT.glob("lib/*/site-packages/clip_benchmark")),
    reason=f"run benchmarks/evaluate.py once: it makes the peer's environment in {ENVIRONMENT}",
)
def test_both_end_with_their_results():
    lines = benchmark()
    compared = next(line for line in lines if line.startswith("zero-shot and retrieval: "))
    found = re.fullmatch(
        r"zero-shot and retrieval: (\d+) scores, ours and the peer's at most (\S+) apart", compared
    )
    assert found is not None
    assert int(found[1]) == 21  # three of each of five sets, six of retrieval
    assert float(found[2]) < 1e-6
    for name, unit in (("classifier", "CPU_s"), ("whole", "CPU_s")):
        pattern = (
            rf"result name=evaluate_{name} ours=[\d.]+ peer=[\d.]+ floor=[\d.]+ target=[\d.]+ unit={unit}"
        )
        assert any(re.fullmatch(pattern, line) for line in lines)


def test_an_unknown_setting_is_named():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "evaluate.py"), "class=8"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "unknown settings class; known are classes, images, classifier_model" in done.stderr


@pytest.fixture(scope="module")
def runs():
    """benchmarks/evaluate_runs.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("evaluate_runs", ROOT / "benchmarks" / "evaluate_runs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["evaluate_runs"] = module
    spec.loader.exec_module(module)
    return module


def test_the_cost_of_a_process_is_its_own(tmp_path):
    # From a small process, as the benchmark is: this one's own memory would be counted into that of its children.
    lines = [
        "import sys; from pathlib import Path; from evaluate_runs import run",
        "work = 'b = bytearray(150_000_000)\\nfor i in range(0, len(b), 4096): b[i] = 1\\nsum(range(5_000_000))'",
        "for code in (work, ''):",
        "    cost = run([sys.executable, '-c', code], Path(sys.argv[1]), threads=1, device='cpu')",
        "    print(cost.cpu_s, cost.peak_memory_mb)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), str(tmp_path / "out")],
        capture_output=True, text=True, check=True, cwd=ROOT / "benchmarks",
    )  # fmt: skip
    (cpu_s, memory_mb), (idle_s, idle_mb) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert cpu_s > idle_s
    assert memory_mb - idle_mb == pytest.approx(150e6 / 2**20, rel=0.1)


def test_a_process_that_fails_is_told_with_what_it_said(tmp_path, runs):
    with pytest.raises(SystemExit, match=r"(?s)ended with 3:.*out of cheese"):
        runs.run(
            [sys.executable, "-c", "print('out of cheese'); raise SystemExit(3)"], tmp_path / "out", threads=1,
            device="cpu",
        )  # fmt: skip


def test_scores_of_both_sides_are_read(tmp_path, runs):
    folder = tmp_path / "results" / "model"
    folder.mkdir(parents=True)
    result = {"dataset": "vtab/a", "task": "zero_shot", "metrics": {"acc1": {"value": 0.5, "low": 0.4}}}
    (folder / "vtab-a.zero_shot.json").write_text(json.dumps(result))
    assert runs.our_scores(tmp_path) == {("vtab/a", "zero_shot"): {"acc1": 0.5}}
    (tmp_path / "a.linear_probe.json").write_text('{"metrics": {"lp_acc1": 0.25}}')
    (tmp_path / "a.few_shot.json").write_text('{"metrics": {"lp_acc1": 0.125}}')
    assert runs.peer_scores(tmp_path, "linear_probe") == {"a": {"lp_acc1": 0.25}}
