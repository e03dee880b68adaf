"""Data sets to score on, opened: splits with their classes, prompts and groups.

Opening checks everything that can be checked before a model is loaded: shards and their count, samples and
classes against a manifest, labels against class names, prompts, groups. A set is looked for at its path below
the data root, first in CLIP_benchmark's webdataset layout, then in the form that its builder names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crawl2clip.errors import DataError
from evaluate.data.classes import add_classes, add_sample_groups
from evaluate.data.config import METRICS_ALONE, TRAINED_TASKS, DatasetConfig, Task
from evaluate.data.groups import groups_of_samples, read_groups
from evaluate.data.opening import AnySplit, fetch, open_split
from evaluate.data.prompts import Prompts
from evaluate.data.stored import bring_datasets, dataset_folder

__all__ = [
    "DatasetConfig",
    "EvaluationDataset",
    "Task",
    "bring_datasets",
    "fetch_datasets",
    "open_dataset",
    "open_datasets",
    "read_groups",
]


@dataclass(kw_only=True)
class EvaluationDataset:
    """An opened data set; splits are indexed, no image has been decoded."""

    name: str
    tasks: list[Task]
    metric: str
    test: AnySplit
    test_split: str = "test"
    train: AnySplit | None = None  # for linear probe, k-NN and few-shot
    val: AnySplit | None = None
    prompts: Prompts | None = None  # for zero-shot and multi-label
    class_names: list[str] | None = None
    num_classes: int | None = None  # None for retrieval, and until labels of an unnamed set are read
    groups: Mapping[str, list[int]] = field(default_factory=dict)  # of classes
    allow_empty_classes: bool = False
    shared_captions: bool = False  # retrieval: equal captions are one, of all images that have it
    group_by: str | None = None  # metadata field of the samples' groups
    group_names: list[str] = field(default_factory=list)  # what its codes stand for; empty: they are names
    ignored_groups: list[str] = field(default_factory=list)

    def sample_groups(self, metadata: Mapping[str, Sequence[str]]) -> list[str] | None:
        """The group of each encoded sample, "" for one that is left out; None for a set without groups.

        Args:
            metadata: field -> value of each sample.
        """
        if self.group_by is None:
            return None
        where = f"data set {self.name!r}, field {self.group_by!r}"
        values = metadata[self.group_by]
        # A group to ignore may have lost all its samples to bad images; the whole split was checked when opened.
        known = {*values, *self.group_names}
        ignored = [name for name in self.ignored_groups if name in known]
        return groups_of_samples(values, where, names=self.group_names, ignored=ignored)


def fetch_datasets(configs: Mapping[str, DatasetConfig], *, data_root: Path) -> None:
    """Downloads what is missing of a suite; to be called by one process before all of them open it.

    Raises:
        DataError: something cannot be fetched, or is not what was announced.
    """
    for name, config in configs.items():
        open_dataset(name, config, data_root=data_root, download=True)


def open_datasets(
    configs: Mapping[str, DatasetConfig], *, data_root: Path, download: bool = False
) -> list[EvaluationDataset]:
    """Opens every data set of a suite, in its order.

    Args:
        configs: name -> config; results carry the name.
        data_root: folder that relative paths start from.
        download: whether to fetch what is missing, from the hub or through CLIP_benchmark's builders.

    Raises:
        ConfigError: no prompts are known for a data set, or its files are not those of its task.
        DataError: a folder, shard, label or class name is missing or wrong.
    """
    return [
        open_dataset(name, config, data_root=data_root, download=download) for name, config in configs.items()
    ]


def open_dataset(
    name: str, config: DatasetConfig, *, data_root: Path, download: bool = False
) -> EvaluationDataset:
    """Opens one data set; arguments and errors as in `open_datasets`."""
    folder = dataset_folder(name, config, data_root)
    if download:
        fetch(name, config, folder)
    trains = any(task in TRAINED_TASKS for task in config.tasks)

    def opened(split: str) -> AnySplit:
        return open_split(name, config, folder, split, download=download)

    dataset = EvaluationDataset(
        name=name,
        tasks=list(config.tasks),
        metric=config.metric,
        test=opened(config.test_split),
        test_split=config.test_split,
        train=opened(config.train_split) if trains else None,
        val=opened(config.val_split) if trains and config.val_split else None,
        allow_empty_classes=config.allow_empty_classes,
        shared_captions=config.shared_captions,
    )
    if not any(task in METRICS_ALONE and task is not Task.multi_label for task in config.tasks):
        add_classes(dataset, folder, config)
    add_sample_groups(dataset, config)
    if not dataset.test.num_samples:
        raise DataError(
            f"data set {name!r}: split {config.test_split!r} at {folder} holds no sample; put some there, or correct "
            "the data set's path or test_split"
        )
    return dataset
