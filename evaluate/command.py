"""What `python -m evaluate` does: open the data, load each model, score, write, print the table."""

import dataclasses
import gc
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from crawl2clip import storage
from crawl2clip.config import save_config
from crawl2clip.distributed import World, distributed
from crawl2clip.encoder import Encoder, encoder_of, load_encoder
from crawl2clip.logs import provenance
from crawl2clip.models import ModelConfig, build_model, read_export
from crawl2clip.store_copies import copy_folder, copy_weights
from crawl2clip.weight_shapes import check_same_shapes
from evaluate.averages import AVERAGE_TASK, averages_of
from evaluate.cache import FeatureCache
from evaluate.config import EvaluateConfig
from evaluate.data.datasets import EvaluationDataset, bring_datasets, fetch_datasets, open_datasets
from evaluate.ranks import main_decides, on_main, once_a_node
from evaluate.reports.html import write_html
from evaluate.reports.tables import markdown_table, write_tables
from evaluate.results import RESULTS_FOLDER, Result, model_slug, read_results, write_result
from evaluate.resume import ResultStore
from evaluate.run import evaluate
from evaluate.sweep import Sweep, num_images_of
from evaluate.traps import activation_note

# Rank 0 solves the regressions while the others wait; ImageNet's takes hours on a CPU.
COLLECTIVE_TIMEOUT_S = 6 * 3600.0
BYTES_PER_GB = 1_000_000_000
logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, composed: DictConfig) -> None:
    """The command, on every rank; rank 0 writes and prints."""
    # torch's default lets a GPU round what convolutions multiply to 10 bits, whatever the precision is called.
    torch.backends.cudnn.allow_tf32 = False
    with distributed(COLLECTIVE_TIMEOUT_S, config.device.value) as world:
        datasets = open_suite(config, world)
        record = {**provenance(), "settings": OmegaConf.to_container(composed, resolve=True)}
        output_dir = storage.local_path(config.output_dir)
        on_main(world, lambda: copy_folder(output_dir))  # what is there already goes on
        if world.is_main:
            save_config(composed, output_dir)
        models = models_of(config)
        sweep = Sweep(len(models) * len(datasets), len(models) * num_images_of(datasets))
        results: list[Result] = []
        for model, pretrained in models:
            results += score_model(config, model, pretrained, datasets, world, sweep, record)
        results += [result for average in config.suite.averages for result in averages_of(average, results)]
        on_main(world, lambda: write(results, output_dir))


def open_suite(config: EvaluateConfig, world: World) -> list[EvaluationDataset]:
    """The suite's data sets, brought from a store, fetched by rank 0 where allowed, and opened by every rank."""
    data_root = storage.local_path(config.data_root)
    bring_datasets(config.suite.datasets, data_root, world)
    if config.download:
        main_decides(world, lambda: fetch_datasets(config.suite.datasets, data_root=data_root))
    return open_datasets(config.suite.datasets, data_root=data_root)


def models_of(config: EvaluateConfig) -> list[tuple[ModelConfig | None, str]]:
    """The models asked for, each with what its weights are called."""
    if config.models:
        return [
            (
                ModelConfig(name=choice.model) if choice.model is not None else None,
                weights_of(choice.pretrained),
            )
            for choice in config.models
        ]
    assert config.pretrained is not None  # EvaluateConfig checks it
    return [(config.model, weights_of(config.pretrained))]


def weights_of(pretrained: str) -> str:
    """What the weights are called; open_clip's "local-dir:<folder>" is that export folder."""
    return pretrained.removeprefix("local-dir:")


def score_model(
    config: EvaluateConfig,
    model: ModelConfig | None,
    pretrained: str,
    datasets: Sequence[EvaluationDataset],
    world: World,
    sweep: Sweep,
    record: dict[str, Any],
) -> list[Result]:
    """Loads a model, scores it on all data sets, and lets it go before the next one comes."""
    once_a_node(world, lambda: copy_weights(pretrained))
    place = str(storage.local_path(pretrained)) if pretrained.startswith(storage.SCHEME) else pretrained
    encoder = make_encoder(model, place, config.precision.name.value, world)
    note = activation_note(encoder, pretrained)
    if note:
        logger.warning(note)
    limit = None if config.cache_limit_gb is None else int(config.cache_limit_gb * BYTES_PER_GB)
    results = evaluate(
        encoder,
        datasets,
        world=world,
        image_batch_size=config.image_batch_size,
        text_batch_size=config.text_batch_size,
        num_workers=config.num_workers,
        max_bad_images=config.max_bad_images,
        few_shot=config.suite.few_shot,
        linear_probe=config.suite.linear_probe,
        knn=config.suite.knn,
        cache=FeatureCache(Path(config.cache_dir), limit) if config.cache_dir else None,
        store=ResultStore(storage.local_path(config.output_dir), save_predictions=config.save_predictions),
        sweep=sweep,
        pretrained=pretrained,
        record={**record, **training_of_export(place)},
        notes=[note] if note else [],
    )
    del encoder
    gc.collect()  # the model and its methods refer to each other
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    return results


def training_of_export(pretrained: str) -> dict[str, Any]:
    """What train's export says of the training, under "training", for the scaling law; nothing for other weights."""
    if not Path(pretrained).is_dir():
        return {}
    origin = read_export(Path(pretrained)).get("provenance")
    return {"training": origin["training"]} if isinstance(origin, dict) and "training" in origin else {}


def make_encoder(model: ModelConfig | None, pretrained: str, precision: str, world: World) -> Encoder:
    """A model with its weights, on this rank's device."""
    if model is not None and model.architecture is not None and not Path(pretrained).is_dir():
        own = dataclasses.replace(model, pretrained=pretrained)  # open_clip has no name for it
        built = build_model(own)
        if Path(pretrained).is_file():
            check_same_shapes(built, own.name, Path(pretrained))
        return encoder_of(built.to(world.device), own, device=world.device, precision=precision)
    name = model.name if model is not None else None
    return load_encoder(name, pretrained, device=world.device, precision=precision)


def write(results: Sequence[Result], output_dir: Path) -> None:
    """Writes the averages, makes the folder's reports anew from all its results, and prints this run's table."""
    models = dict.fromkeys(f"{r.model} {r.pretrained} ({r.precision})" for r in results)
    print(f"\n{', '.join(models)}\n\n{markdown_table(results)}")
    for result in results:
        for average in (output_dir / RESULTS_FOLDER / model_slug(result)).glob(f"*.{AVERAGE_TASK}.json"):
            storage.remove(average)  # of other cells than these, perhaps; today's are written now
    for result in results:
        write_result(result, output_dir)
    everything = read_results(output_dir)
    write_tables(everything, output_dir)
    write_html(everything, output_dir)
    storage.publish(output_dir)
    shown = storage.address_of(output_dir) or output_dir
    print(f"results: {shown}/results.md, {shown}/results.html")
