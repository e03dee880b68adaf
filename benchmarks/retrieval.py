"""Retrieval scored from features, ours against clip_benchmark's, in turn: CPU seconds and peak memory of the process.

    python benchmarks/retrieval.py [images=5000] [captions=5] [width=512] [repeats=3] [threads=1]

COCO's test set has 5,000 images with five captions each; the features are synthetic. Each side is a process that loads
the features from a file and gives recall at 1, 5 and 10 in both directions, ours with mean and median ranks and
intervals too. clip_benchmark's is its own `evaluate`, with a model that looks the features up. The floor is a process
that loads torch and the features and does nothing else.
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from evaluate_runs import Cost, run

RECALL_AT = (1, 5, 10)
MEMORY_TARGET_MB = 1000
SIDES = ("ours", "peer", "floor")


def main(words: list[str]) -> None:
    """Makes the features, runs the sides in turn, compares the recalls and prints result lines."""
    settings = {"images": "5000", "captions": "5", "width": "512", "repeats": "3", "threads": "1"}
    given = dict(word.split("=", 1) for word in words)
    if unknown := given.keys() - settings.keys():
        raise SystemExit(f"unknown settings {', '.join(unknown)}; known are {', '.join(settings)}")
    settings |= given
    threads, sizes = int(settings["threads"]), [settings[key] for key in ("images", "captions", "width")]
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    said: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as place:
        features = Path(place) / "features.pt"

        def process(side: str, *more: str) -> Cost:
            out = Path(place) / f"{side}.out"
            command = [sys.executable, __file__, f"side={side}", str(features), *more]
            cost = run(command, out, threads=threads, device="cpu")
            said[side] = json.loads(out.read_text().splitlines()[-1])
            return cost

        process("features", *sizes)
        for number in range(int(settings["repeats"])):
            for side in SIDES if number % 2 == 0 else reversed(SIDES):
                costs[side].append(process(side))
    furthest = max(abs(said["ours"][name] - value) for name, value in said["peer"].items())
    print(
        f"{sizes[0]} images with {sizes[1]} captions each, {sizes[2]} wide, {threads} threads: "
        f"{len(said['peer'])} recalls, ours and the peer's at most {furthest:.1e} apart"
    )
    for name, unit, value, target in (
        ("cpu", "CPU_s", lambda cost: cost.cpu_s, None),
        ("peak_memory", "MB", lambda cost: cost.peak_memory_mb, MEMORY_TARGET_MB),
    ):
        medians = {side: statistics.median(map(value, costs[side])) for side in SIDES}
        text = " ".join(f"{side}={median:.2f}" for side, median in medians.items())
        print(f"result name=retrieval_{name} {text}{f' target={target}' if target else ''} unit={unit}")


def write_features(file: Path, images: int, captions: int, width: int) -> dict[str, float]:
    """Unit features, a caption's near its image's."""
    import torch

    generator = torch.Generator().manual_seed(0)
    of_images = torch.nn.functional.normalize(torch.randn(images, width, generator=generator), dim=-1)
    owner = torch.arange(images).repeat_interleave(captions)
    # As far off that about half of the captions find their image first.
    noise = torch.randn(len(owner), width, generator=generator) * (4.0 / width**0.5)
    torch.save((of_images, torch.nn.functional.normalize(of_images[owner] + noise, dim=-1), owner), file)
    return {}


def ours(features: Any, texts: Any, owner: Any) -> dict[str, float]:
    """The task as the command runs it."""
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # this folder has an evaluate.py
    from evaluate.tasks.retrieval import score_retrieval

    score = score_retrieval(features, texts, owner)
    return {name: estimate.value for name, estimate in score.metrics.items()}


def peer(features: Any, texts: Any, owner: Any) -> dict[str, float]:
    """clip_benchmark's `evaluate`; its images and captions are their own row numbers."""
    sys.path.pop(0)
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import evaluate

    class Lookup:
        """Its model: features by row number."""

        def encode_image(self, rows: torch.Tensor) -> torch.Tensor:
            return features[rows]

        def encode_text(self, rows: torch.Tensor) -> torch.Tensor:
            return texts[rows]

    rows_of = torch.arange(len(texts)).split(torch.bincount(owner).tolist())
    batches = [
        (rows, [[str(int(text)) for text in rows_of[int(row)]] for row in rows])
        for rows in torch.arange(len(features)).split(64)  # its command's batch
    ]

    def tokenizer(numbers: list[str]) -> torch.Tensor:
        return torch.tensor([int(number) for number in numbers])

    return evaluate(Lookup(), batches, tokenizer, "cpu", amp=False, recall_k_list=list(RECALL_AT))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("side="):
        side, file = sys.argv[1].removeprefix("side="), Path(sys.argv[2])
        if side == "features":
            found = write_features(file, *map(int, sys.argv[3:]))
        else:
            import torch

            loaded = torch.load(file)
            found = {"ours": ours, "peer": peer, "floor": lambda *_: {}}[side](*loaded)
        print(json.dumps(found))
    else:
        main(sys.argv[1:])
