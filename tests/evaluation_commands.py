"""`python -m evaluate` in this process, on a suite and a model made for a test."""

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from crawl2clip.config import CONFIG_DIR, register, typed
from crawl2clip.encoder import Encoder
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig
from evaluate.command import run
from evaluate.config import EvaluateConfig
from evaluate.results import Result, read_results


def export(encoder: Encoder, folder: Path) -> Path:
    """The model as a folder that `pretrained=` takes."""
    config = ModelConfig(name=encoder.name, architecture=encoder.architecture)
    export_model(encoder.model, config, folder, provenance={})
    return folder


def run_suite(
    place: Path, datasets: dict[str, dict[str, Any]], *words: str, output: str = "output", **suite: Any
) -> dict[tuple[str, str], Result]:
    """Runs the command's function on data sets in `place`, and gives what is in the output folder then.

    Args:
        place: data sets lie in it; the cache, the output and the suite are written to it.
        datasets: name -> settings, as in configs/suite.
        words: further overrides; `pretrained=` is one.
        output: folder below `place`.
        suite: further settings of the suite, such as few_shot.
    """
    folder = place / "configs" / "suite"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.yaml").write_text(json.dumps({"name": "made", "datasets": datasets, **suite}))
    register("evaluate_schema", EvaluateConfig)
    overrides = [
        f"hydra.searchpath=[file://{folder.parent}]", "suite=made", f"data_root={place}",
        f"output_dir={place / output}", f"cache_dir={place / 'cache'}", "num_workers=0", "device=cpu", *words,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        composed = compose("evaluate", overrides)
    run(typed(composed, EvaluateConfig), composed)
    return {(result.dataset, result.task): result for result in read_results(place / output)}
