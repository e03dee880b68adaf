"""What `python -m evaluate` does: open the data, load the model, score, write, print the table."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from crawl2clip.config import save_config
from crawl2clip.distributed import World, distributed
from crawl2clip.encoder import Encoder, encoder_of, load_encoder
from crawl2clip.logs import provenance
from crawl2clip.models import build_model
from evaluate.cache import FeatureCache
from evaluate.config import EvaluateConfig
from evaluate.data.datasets import open_datasets
from evaluate.intervals import combined_mean
from evaluate.reports.tables import markdown_table, write_tables
from evaluate.results import Result, read_results, write_result
from evaluate.run import evaluate
from evaluate.traps import activation_note

# Rank 0 solves the regressions while the others wait; ImageNet's takes hours on a CPU.
COLLECTIVE_TIMEOUT_S = 6 * 3600.0
logger = logging.getLogger(__name__)


def run(config: EvaluateConfig, composed: DictConfig) -> None:
    """The command, on every rank; rank 0 writes and prints."""
    with distributed(COLLECTIVE_TIMEOUT_S, config.device.value) as world:
        datasets = open_datasets(
            config.suite.datasets, data_root=Path(config.data_root), download=config.download
        )
        encoder = make_encoder(config, world)
        note = activation_note(encoder, config.pretrained)
        if note:
            logger.warning(note)
        results = evaluate(
            encoder,
            datasets,
            world=world,
            image_batch_size=config.image_batch_size,
            text_batch_size=config.text_batch_size,
            num_workers=config.num_workers,
            max_bad_images=config.max_bad_images,
            few_shot=config.suite.few_shot,
            cache=FeatureCache(Path(config.cache_dir)) if config.cache_dir else None,
            pretrained=config.pretrained,
            record={**provenance(), "settings": OmegaConf.to_container(composed, resolve=True)},
        )
        for result in results:
            result.notes += [note] if note else []
        if config.suite.average:
            results.append(average_of(config.suite.name, results))
        if world.is_main:
            write(results, composed, Path(config.output_dir))


def make_encoder(config: EvaluateConfig, world: World) -> Encoder:
    """The model asked for, on this rank's device."""
    precision = config.precision.name.value
    if (
        config.model is not None
        and config.model.architecture is not None
        and not Path(config.pretrained).is_dir()
    ):
        own = dataclasses.replace(config.model, pretrained=config.pretrained)  # open_clip has no name for it
        return encoder_of(build_model(own).to(world.device), own, device=world.device, precision=precision)
    name = config.model.name if config.model is not None else None
    return load_encoder(name, config.pretrained, device=world.device, precision=precision)


def average_of(name: str, results: Sequence[Result]) -> Result:
    """The plain mean of the headlines of a suite's results, as a result of its own (task "average")."""
    first = results[0]
    return Result(
        model=first.model,
        pretrained=first.pretrained,
        precision=first.precision,
        weights_sha256=first.weights_sha256,
        dataset=name,
        split=first.split,
        task="average",
        metric=first.metric,
        metrics={first.metric: combined_mean([result.headline for result in results])},
        num_samples=sum(result.num_samples for result in results),
        num_bad_images=sum(result.num_bad_images for result in results),
        details={"datasets": [result.dataset for result in results]},
        provenance=first.provenance,
    )


def write(results: Sequence[Result], composed: DictConfig, output_dir: Path) -> None:
    """Writes a JSON file a result, makes the folder's tables anew from all its results, and prints this run's."""
    save_config(composed, output_dir)
    for result in results:
        write_result(result, output_dir)
    write_tables(read_results(output_dir), output_dir)
    first = results[0]
    print(f"\n{first.model} {first.pretrained} ({first.precision})\n\n{markdown_table(results)}")
    print(f"results: {output_dir / 'results.md'}")
