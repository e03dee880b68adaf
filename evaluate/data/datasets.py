"""Data sets to score on: what a suite says about one, and the opened thing with its classes and prompts.

Opening checks everything that can be checked before a model is loaded: shards and their count, labels
against class names, prompts, groups. A set is looked for at its path below the data root, first in
CLIP_benchmark's webdataset layout, then through its CLIP_benchmark builder when one is named.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from omegaconf import MISSING

from crawl2clip.errors import ConfigError, DataError, unknown_name
from crawl2clip.files import read_json
from evaluate.data.benchmark_split import SPLIT_IGNORED, BenchmarkSplit
from evaluate.data.prompts import (
    CLASS_NAMES_FILE,
    TEMPLATES_FILE,
    Prompts,
    Templates,
    known_class_names,
    known_templates,
    make_prompts,
    read_class_names,
    read_templates,
)
from evaluate.data.samples import check_labels
from evaluate.data.tar_split import TarSplit, dataset_type, is_tar_folder

GROUPS_FILE = "groups.json"


class Task(str, Enum):
    """What to measure."""

    zero_shot = "zero_shot"
    retrieval = "retrieval"
    linear_probe = "linear_probe"
    few_shot = "few_shot"
    multi_label = "multi_label"  # zero-shot, several classes an image
    knn = "knn"
    selection = "selection"  # the right caption of several (SugarCrepe), or both pairings of two (Winoground)
    winogavil = "winogavil"  # the k images of a board that go with a word


TRAINED_TASKS = (Task.linear_probe, Task.few_shot)
CLASSIFICATION_METRICS = ("acc1", "acc5", "mean_per_class_recall")
RETRIEVAL_METRICS = tuple(f"{side}_retrieval_recall@{k}" for side in ("image", "text") for k in (1, 5, 10))


@dataclass(kw_only=True)
class DatasetConfig:
    """One data set of a suite."""

    tasks: list[Task] = MISSING
    metric: str = MISSING  # the headline; few_shot always shows acc1 for its largest k
    path: str | None = None  # folder, relative to data_root; null: the data set's name
    builder: str | None = None  # CLIP_benchmark's name, used when the folder is not in webdataset layout
    test_split: str = "test"  # the split that is scored
    train_split: str = "train"  # linear probe and few-shot learn from this one
    val_split: str | None = None  # linear probe chooses its L2 strength here; null: a fifth of train
    prompts: str | None = (
        None  # use the templates (and class names, if it has none) of this CLIP_benchmark set
    )
    language: str = "en"  # of CLIP_benchmark's class names, templates and captions
    class_names_file: str | None = None  # own class names, .txt or .json
    templates_file: str | None = None  # own templates, .txt or .json

    def __post_init__(self) -> None:
        if self.tasks == MISSING or self.metric == MISSING:
            return  # an incomplete config names its missing settings elsewhere
        if not self.tasks:
            raise ConfigError(
                f"a data set has no tasks; give some of {', '.join(task.value for task in Task)}"
            )
        retrieval = Task.retrieval in self.tasks
        if retrieval and len(self.tasks) > 1:
            raise ConfigError(
                "retrieval and classification need different headlines; make two entries of this data set"
            )
        allowed = RETRIEVAL_METRICS if retrieval else CLASSIFICATION_METRICS
        if self.metric not in allowed:
            raise ConfigError(
                unknown_name(f"metric for {', '.join(t.value for t in self.tasks)}", self.metric, allowed)
            )
        if self.builder in SPLIT_IGNORED and any(task in TRAINED_TASKS for task in self.tasks):
            raise ConfigError(
                f"{self.builder!r} has no train and test split in torchvision: a probe would be scored on its training "
                "images. Use its VTAB form (vtab/...), or a webdataset folder with real splits and builder=null"
            )


@dataclass(kw_only=True)
class EvaluationDataset:
    """An opened data set; splits are indexed, no image has been decoded."""

    name: str
    tasks: list[Task]
    metric: str
    test: TarSplit | BenchmarkSplit
    test_split: str = "test"
    train: TarSplit | BenchmarkSplit | None = None  # for linear probe and few-shot
    val: TarSplit | BenchmarkSplit | None = None
    prompts: Prompts | None = None  # for zero-shot
    num_classes: int | None = None  # None for retrieval, and until labels of an unnamed set are read
    groups: Mapping[str, list[int]] = field(default_factory=dict)


def open_datasets(
    configs: Mapping[str, DatasetConfig], *, data_root: Path, download: bool = False
) -> list[EvaluationDataset]:
    """Opens every data set of a suite, in its order.

    Args:
        configs: name -> config; results carry the name.
        data_root: folder that relative paths start from.
        download: whether CLIP_benchmark's builders may fetch what is missing.

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
    folder = data_root / (config.path or name)
    in_tars = is_tar_folder(folder, config.test_split)
    if not in_tars and config.builder is None:
        state = "exists without it" if folder.is_dir() else "does not exist"
        raise DataError(
            f"data set {name!r}: no split {config.test_split!r} at {folder} (the folder {state}); expected "
            f"{folder / config.test_split}/nshards.txt (or manifest.json) with its tars. Set data_root or the data "
            "set's path"
        )
    if in_tars:
        _check_type(name, folder, config)
    trains = any(task in TRAINED_TASKS for task in config.tasks)

    def opened(split: str) -> TarSplit | BenchmarkSplit:
        if in_tars:
            retrieval = Task.retrieval in config.tasks
            return TarSplit(folder, split, with_labels=not retrieval, with_captions=retrieval)
        assert config.builder is not None
        return BenchmarkSplit(config.builder, folder, split, download=download, language=config.language)

    dataset = EvaluationDataset(
        name=name,
        tasks=list(config.tasks),
        metric=config.metric,
        test=opened(config.test_split),
        test_split=config.test_split,
        train=opened(config.train_split) if trains else None,
        val=opened(config.val_split) if trains and config.val_split else None,
    )
    if Task.retrieval not in config.tasks:
        _add_classes(dataset, folder, config)
    if not dataset.test.num_samples:
        raise DataError(
            f"data set {name!r}: split {config.test_split!r} at {folder} holds no sample; put some there, or correct "
            "the data set's path or test_split"
        )
    return dataset


def _check_type(name: str, folder: Path, config: DatasetConfig) -> None:
    found = dataset_type(folder)
    wanted = "retrieval" if Task.retrieval in config.tasks else "classification"
    if found != wanted:
        raise ConfigError(
            f"data set {name!r} at {folder} is a {found} set (dataset_type.txt), but its tasks "
            f"({', '.join(task.value for task in config.tasks)}) need a {wanted} set; correct the tasks or the file"
        )


def _add_classes(dataset: EvaluationDataset, folder: Path, config: DatasetConfig) -> None:
    """Fills in class names, prompts, number of classes and groups, and checks labels that are known already."""
    where = f"data set {dataset.name!r}"
    class_names = _class_names(dataset, folder, config)
    if Task.zero_shot in config.tasks:
        if class_names is None:
            raise ConfigError(
                f"{where} has no class names; put {CLASS_NAMES_FILE} into {folder}, or set class_names_file or prompts"
            )
        dataset.prompts = make_prompts(class_names, _templates(dataset.name, folder, config), where)
    if class_names is not None:
        dataset.num_classes = len(class_names)
    elif isinstance(dataset.test, TarSplit) and isinstance(dataset.train, TarSplit):
        dataset.num_classes = 1 + max((*(dataset.train.labels or ()), *(dataset.test.labels or (0,))))
    if dataset.num_classes is not None:
        for split in (dataset.test, dataset.train, dataset.val):
            if isinstance(split, TarSplit):
                check_labels(split.labels or [], dataset.num_classes, split.name)
        if dataset.metric == "acc5" and dataset.num_classes < 5:
            raise ConfigError(
                f"{where}: acc5 says nothing over {dataset.num_classes} classes; use metric=acc1"
            )
        if (folder / GROUPS_FILE).is_file():
            dataset.groups = read_groups(folder / GROUPS_FILE, dataset.num_classes)


def _class_names(dataset: EvaluationDataset, folder: Path, config: DatasetConfig) -> list[str] | None:
    if config.class_names_file:
        return read_class_names(Path(config.class_names_file))
    if isinstance(dataset.test, BenchmarkSplit) and dataset.test.class_names:
        return dataset.test.class_names
    if (folder / CLASS_NAMES_FILE).is_file():
        return read_class_names(folder / CLASS_NAMES_FILE)
    return known_class_names(config.prompts or config.builder or dataset.name, config.language)


def _templates(name: str, folder: Path, config: DatasetConfig) -> Templates:
    if config.templates_file:
        return read_templates(Path(config.templates_file))
    if config.prompts:
        return known_templates(config.prompts, config.language)
    if (folder / TEMPLATES_FILE).is_file():
        return read_templates(folder / TEMPLATES_FILE)
    return known_templates(config.builder or name, config.language)


def read_groups(path: Path, num_classes: int) -> dict[str, list[int]]:
    """Named groups of classes: a JSON object of name -> class indices.

    Raises:
        DataError: another form, an empty group, or an index that no class has.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(entry, list) and entry for entry in value.values()):
        raise DataError(f"{path} must be a JSON object of group name -> non-empty list of class indices")
    for name, classes in value.items():
        bad = [c for c in classes if type(c) is not int or not 0 <= c < num_classes]
        if bad:
            raise DataError(
                f"{path}: group {name!r} holds {bad[0]!r}, which is no class index; allowed are 0 to {num_classes - 1}"
            )
    return value
