"""The settings of `python -m data_pipeline`: one dataclass, made of one for each component.

Each component's dataclass lies beside the component, with the meaning, unit and range of its fields;
values lie in `configs/data_pipeline.yaml` and its groups.
"""

from dataclasses import dataclass

from omegaconf import MISSING

from data_pipeline.deduplicate import DeduplicateConfig
from data_pipeline.download import DownloadConfig
from data_pipeline.executors import ExecutorConfig
from data_pipeline.extract import ExtractConfig
from data_pipeline.index import IndexConfig
from data_pipeline.recipe import RecipeConfig
from data_pipeline.reshard import ReshardConfig
from data_pipeline.select import SelectConfig
from data_pipeline.sources import SourceConfig
from data_pipeline.tag import TagConfig


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """Everything `python -m data_pipeline` can be told."""

    output_dir: str = MISSING  # folder of this run; a rerun with the same folder goes on where it ended
    stage: str | None = None  # one of pipeline.STAGES; null runs all but documents and index, in order
    source: SourceConfig = MISSING
    extract: ExtractConfig = MISSING
    deduplicate: DeduplicateConfig = MISSING
    download: DownloadConfig = MISSING
    tagger: TagConfig = MISSING
    recipe: RecipeConfig = MISSING
    select: SelectConfig = MISSING
    reshard: ReshardConfig = MISSING
    index: IndexConfig = MISSING
    executor: ExecutorConfig = MISSING
