"""Evaluation, ours against clip_benchmark's: same data, same weights, in turn; CPU seconds, memory, scores.

    python benchmarks/evaluate.py [classes=25] [images=100] [classifier_model=ViT-B-32] [model=ViT-S-32] [shots=1,4]
        [repeats=1] [threads=1] [workers=0] [device=cpu|cuda] [environment=FOLDER] [peer=1] [whole=1]

Two things are measured, both in fp32 and through the commands that users run.
Classifier building: ImageNet's 80 templates for `classes` of its classes with `classifier_model`, as the difference
between a run with so many classes and one with two, on four images; the cost of 1,000 classes is worked out from it
where fewer are run. whole=0 leaves it at that.
The whole, with `model`: five data sets zero-shot (ImageNet's prompts twice, for ImageNet and ImageNetV2; GTSRB,
flowers, EuroSAT) with `images` made pictures in each test split, retrieval with five captions an image, a linear probe
and k-shot with three seeds on GTSRB and EuroSAT. Ours is one process. clip_benchmark's are four, one a task, as its
command line asks; the k-shot runs, for which a user starts a process for each k and seed, share one.

On a GPU the figures are wall seconds; ask there for classes=1000 and model=ViT-B-32. clip_benchmark 1.6.2 fails with
numpy 2.4: the script puts it with an older one into a virtual environment at `environment`, when it is not there yet.
Its linear probe refuses a CPU and is told otherwise (clip_benchmark_peer.py). peer=0 leaves it out. `floor` is the bare
towers (evaluate_floor.py).
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluate_runs import (
    FEW,
    FEW_CLASSES,
    MANY,
    RETRIEVAL,
    ROOT,
    TRAINED,
    ZERO_SHOT,
    Cost,
    our_scores,
    peer_scores,
    prepare_peer,
    run,
    run_ours,
    run_peer,
)

CLASSIFIER_TARGET, WHOLE_TARGET = 7, 5  # issue-level: at least so many times cheaper
SEEDS = (0, 1, 2)
TEMPLATES = 80
PEER_TASKS = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe", "few_shot")


@dataclass(frozen=True)
class Repeat:
    """The costs of one side in one repeat."""

    few: Cost  # two classes
    many: Cost  # all classes
    whole: dict[str, Cost]  # by process: one of ours, one for each of the peer's tasks


def main(words: list[str]) -> None:
    """Makes data and weights, runs both in turn, prints figures and result lines."""
    settings = {
        "classes": "25", "images": "100", "classifier_model": "ViT-B-32", "model": "ViT-S-32", "shots": "1,4",
        "repeats": "1", "threads": "1", "workers": "0", "device": "cpu",
        "environment": str(ROOT / "runs/benchmarks/clip_benchmark"), "peer": "1", "whole": "1",
    }  # fmt: skip
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - settings.keys():
        raise SystemExit(f"unknown settings {', '.join(unknown)}; known are {', '.join(settings)}")
    settings |= given
    python = prepare_peer(Path(settings["environment"])) if settings["peer"] == "1" else None
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(settings, Path(folder), python)
        for number in range(int(settings["repeats"])):
            comparison.repeat(number)
        comparison.print_results()


class Comparison:
    """The runs of both sides, in turn, on the same data and weights."""

    def __init__(self, settings: dict[str, str], folder: Path, python: Path | None) -> None:
        self.settings, self.folder, self.python = settings, folder, python
        self.classes, self.device = int(settings["classes"]), settings["device"]
        self.with_whole = settings["whole"] == "1"
        self.shots = [int(k) for k in settings["shots"].split(",")]
        self.ours: list[Repeat] = []
        self.peer: list[Repeat] = []
        (folder / "settings.json").write_text(
            json.dumps({
                **settings, "classes": self.classes, "images": int(settings["images"]), "shots": self.shots,
            })
        )  # fmt: skip
        self._script("evaluate_sets.py")
        self._write_suites()
        print(
            f"{self.classes} classes x {TEMPLATES} templates with {settings['classifier_model']}; five data sets of "
            f"{settings['images']} test images with {settings['model']}; fp32, {self.device}, {settings['threads']} "
            f"threads, {settings['workers']} loader processes, {settings['repeats']} repeats",
            flush=True,
        )
        self.floor: dict[str, float] = json.loads(self._script("evaluate_floor.py").splitlines()[-1])

    def _script(self, name: str) -> str:
        """Runs a script of this folder on the data, and gives what it said."""
        out = self.folder / f"{name}.out"
        words = [str(Path(__file__).with_name(name)), str(self.folder), str(self.folder / "settings.json")]
        run([sys.executable, *words], out, threads=int(self.settings["threads"]), device=self.device)
        return out.read_text()

    def _write_suites(self) -> None:
        """One suite a run of ours, for `--config-dir`."""
        # Few pictures and many classes: flowers has 102.
        zero_shot = {"tasks": ["zero_shot"], "metric": "acc1", "allow_empty_classes": True}
        whole: dict[str, dict[str, Any]] = dict.fromkeys(ZERO_SHOT, zero_shot)
        for name in TRAINED:
            tasks = ["zero_shot", "linear_probe", "few_shot"]
            whole[name] = {**zero_shot, "tasks": tasks, "val_split": "val"}
        whole[RETRIEVAL] = {"tasks": ["retrieval"], "metric": "image_retrieval_recall@5"}
        (self.folder / "configs" / "suite").mkdir(parents=True)
        for name, datasets in (
            ("whole", whole),
            (FEW, {FEW: zero_shot}),
            (MANY, {MANY: zero_shot}),
        ):
            few_shot = {"shots": self.shots, "seeds": list(SEEDS), "one_shot_l2": 1.0}
            suite = {"name": name, "few_shot": few_shot, "datasets": datasets}
            # JSON is YAML.
            (self.folder / "configs" / "suite" / f"{name}.yaml").write_text(json.dumps(suite))

    def repeat(self, number: int) -> None:
        """One run of each; who goes first changes."""
        sides = [self.run_ours] + ([self.run_peer] if self.python else [])
        for side in sides if number % 2 == 0 else reversed(sides):
            side(number)

    def run_ours(self, number: int) -> None:
        """`python -m evaluate`, three times."""

        def cost(suite: str, model: str, again: str = "") -> Cost:
            output = self.folder / f"ours_{number}" / f"{suite}{again}"
            output.mkdir(parents=True)
            words = [
                "--config-dir", str(self.folder / "configs"), f"suite={suite}", f"model={model}",
                f"pretrained={self.folder / model}.pt", f"data_root={self.folder / 'data'}", f"output_dir={output}",
                f"cache_dir={output.parent / f'{suite}_cache'}", f"num_workers={self.settings['workers']}",
            ]  # fmt: skip
            threads = int(self.settings["threads"])
            return run_ours(words, output / "command.out", threads=threads, device=self.device)

        few, many = (cost(suite, self.settings["classifier_model"]) for suite in (FEW, MANY))
        self.tell_classifiers("ours", few, many)
        whole = {"whole": cost("whole", self.settings["model"])} if self.with_whole else {}
        self.ours.append(Repeat(few, many, whole))
        if not whole:
            return
        self.tell_whole("ours", whole)
        again = cost("whole", self.settings["model"], again="_again")
        print(
            f"ours: the whole again, with the features in the cache: {self.seconds(again):.1f} s", flush=True
        )

    def run_peer(self, number: int) -> None:
        """`clip_benchmark eval`: the two classifiers, then each task."""
        assert self.python is not None
        python, folder = self.python, self.folder / f"peer_{number}"
        folder.mkdir()

        def arguments(task: str, datasets: tuple[str, ...], model: str, *more: str) -> list[str]:
            return [
                "eval", "--task", task, "--dataset", *(f"wds/{name}" for name in datasets),
                "--dataset_root", f"{self.folder}/data/{{dataset}}", "--model", model,
                "--pretrained", f"{self.folder / model}.pt", "--no_amp", "--quiet",
                "--num_workers", self.settings["workers"], "--feature_root", str(folder / "features"),
                "--output", f"{folder}/{{dataset}}.{{task}}.json", *more,
            ]  # fmt: skip

        def cost(name: str, *commands: list[str]) -> Cost:
            threads = int(self.settings["threads"])
            return run_peer(
                list(commands), python, folder / f"{name}.out", threads=threads, device=self.device
            )

        large, model = self.settings["classifier_model"], self.settings["model"]
        trained = ("--train_split", "train", "--val_split", "val")
        few, many = (cost(name, arguments(PEER_TASKS[0], (name,), large)) for name in (FEW, MANY))
        self.tell_classifiers("peer", few, many)
        if not self.with_whole:
            self.peer.append(Repeat(few, many, {}))
            return
        shots = [
            arguments("linear_probe", TRAINED, model, *trained, "--fewshot_k", str(k), "--seed", str(seed))
            for k in self.shots
            for seed in SEEDS
        ]
        for command in shots:
            command[command.index("--output") + 1] = str(folder / "{dataset}.few_shot.json")
        whole = {
            PEER_TASKS[0]: cost(PEER_TASKS[0], arguments(PEER_TASKS[0], ZERO_SHOT, model)),
            PEER_TASKS[1]: cost(
                PEER_TASKS[1], arguments(PEER_TASKS[1], (RETRIEVAL,), model, "--recall_k", "1", "5", "10")
            ),
            PEER_TASKS[2]: cost(PEER_TASKS[2], arguments(PEER_TASKS[2], TRAINED, model, *trained)),
            PEER_TASKS[3]: cost(PEER_TASKS[3], *shots),
        }
        self.peer.append(Repeat(few, many, whole))
        self.tell_whole("peer", whole)

    def seconds(self, cost: Cost) -> float:
        """Of the processor, or on a GPU of the clock."""
        return cost.wall_s if self.device == "cuda" else cost.cpu_s

    def tell_classifiers(self, side: str, few: Cost, many: Cost) -> None:
        """What the two classifiers of one repeat cost."""
        print(
            f"{side}: {FEW_CLASSES} classes {self.seconds(few):.1f} s, {self.classes} classes "
            f"{self.seconds(many):.1f} s, {many.peak_memory_mb:.0f} MB",
            flush=True,
        )

    def tell_whole(self, side: str, whole: dict[str, Cost]) -> None:
        """What each process of the whole cost in one repeat."""
        parts = [
            f"{name} {self.seconds(cost):.1f} s ({cost.wall_s:.1f} s of the clock) {cost.peak_memory_mb:.0f} MB"
            for name, cost in whole.items()
        ]
        print(f"{side}: {', '.join(parts)}", flush=True)

    def print_results(self) -> None:
        """What the scores were, what 1,000 classes would cost, and the result lines."""
        if self.peer and self.with_whole:
            self.print_scores()
        texts = (self.classes - FEW_CLASSES) * TEMPLATES
        for side, repeats in (("ours", self.ours), ("peer", self.peer)):
            if repeats:
                each = statistics.median(map(self.classifier_seconds, repeats)) / texts
                how = "measured" if self.classes >= 1000 else f"extrapolated from {texts:,} prompts"
                print(
                    f"{side}: {1e3 * each:.2f} ms a prompt, 1,000 x {TEMPLATES} in {80_000 * each:.0f} s ({how})"
                )
        unit = "CPU_s" if self.device == "cpu" else "s"
        self.result("classifier", self.classifier_seconds, CLASSIFIER_TARGET, unit, self.floor["classifier"])
        self.result("classifier_peak_memory", lambda repeat: repeat.many.peak_memory_mb, 1, "MB")
        if not self.with_whole:
            return
        self.result("whole", self.whole_seconds, WHOLE_TARGET, unit, self.floor["whole"])
        self.result(
            "whole_peak_memory",
            lambda repeat: max(cost.peak_memory_mb for cost in repeat.whole.values()),
            1,
            "MB",
        )

    def classifier_seconds(self, repeat: Repeat) -> float:
        """What the classes beyond the first two cost."""
        return self.seconds(repeat.many) - self.seconds(repeat.few)

    def whole_seconds(self, repeat: Repeat) -> float:
        """All processes of a side together."""
        return sum(map(self.seconds, repeat.whole.values()))

    def print_scores(self) -> None:
        """Zero-shot and retrieval, which must be equal; probe and k-shot, which are other regressions, side by side."""
        ours = our_scores(self.folder / "ours_0" / "whole")
        pairs = [
            (ours[name, task][metric], value)
            for task, known_as in (("zero_shot", PEER_TASKS[0]), ("retrieval", PEER_TASKS[1]))
            for name, metrics in peer_scores(self.folder / "peer_0", known_as).items()
            if (name, task) in ours
            for metric, value in metrics.items()
        ]
        furthest = max(abs(a - b) for a, b in pairs)
        print(
            f"zero-shot and retrieval: {len(pairs)} scores, ours and the peer's at most {furthest:.1e} apart"
        )
        for name, metrics in peer_scores(self.folder / "peer_0", "linear_probe").items():
            found = ours[name, "linear_probe"]["acc1"]
            print(f"linear probe on {name}, acc1: ours {found:.4f}, peer {metrics['lp_acc1']:.4f}")
        k = max(self.shots)
        for name, metrics in peer_scores(self.folder / "peer_0", "few_shot").items():
            found = ours[name, "few_shot"][f"acc1@{k}_shot"]
            print(
                f"{k}-shot on {name}, acc1: ours {found:.4f} over seeds, peer's last {metrics['lp_acc1']:.4f}"
            )

    def result(
        self, name: str, of: Callable[[Repeat], float], factor: float, unit: str, floor: float | None = None
    ) -> None:
        """One result line: medians over repeats; the target is the peer's divided by `factor`."""
        ours = statistics.median(map(of, self.ours))
        words: list[tuple[str, Any]] = [("ours", ours)]
        if self.peer:
            words.append(("peer", statistics.median(map(of, self.peer))))
        if floor is not None:
            words.append(("floor", floor))
        if self.peer:
            words.append(("target", words[1][1] / factor))
        print(
            f"result name=evaluate_{name} {' '.join(f'{key}={value:.2f}' for key, value in words)} unit={unit}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
