"""Class names, prompts and groups of an opened data set, and that they fit its labels."""

from pathlib import Path
from typing import TYPE_CHECKING

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.config import TRAINED_TASKS, DatasetConfig, Task
from evaluate.data.groups import GROUPS_FILE, check_group_field, groups_of_samples, read_groups
from evaluate.data.image_folder import ImageFolderSplit
from evaluate.data.manifest import check_classes
from evaluate.data.opening import AnySplit
from evaluate.data.package_prompts import BABEL, babel_prompts
from evaluate.data.prompts import (
    CLASS_NAMES_FILE,
    TEMPLATES_FILE,
    Templates,
    known_class_names,
    known_templates,
    make_prompts,
    read_class_names,
    read_templates,
)
from evaluate.data.samples import check_classes_have_samples, check_labels
from evaluate.data.subset_split import SubsetSplit
from evaluate.data.tar_split import TarSplit

if TYPE_CHECKING:
    from evaluate.data.datasets import EvaluationDataset


def add_classes(dataset: "EvaluationDataset", folder: Path, config: DatasetConfig) -> None:
    """Fills in class names, prompts, number of classes and groups, and checks labels that are known already.

    Raises:
        ConfigError: no names or prompts are known, or a setting does not fit the classes.
        DataError: names, labels, folders or metadata that do not fit each other.
    """
    where = f"data set {dataset.name!r}"
    class_names = _class_names(dataset.name, dataset.test, folder, config)
    if config.prompts == BABEL and config.builder != BABEL:
        _keep_translated(dataset, config)
    elif class_names is not None:
        check_classes(folder, len(class_names))
    if Task.zero_shot in config.tasks or Task.multi_label in config.tasks:
        if class_names is None:
            raise ConfigError(
                f"{where} has no class names; put {CLASS_NAMES_FILE} into {folder}, or set class_names_file or prompts"
            )
        templates = _templates(dataset.name, dataset.test, folder, config)
        dataset.prompts = make_prompts(class_names, templates, where)
    dataset.class_names = class_names
    dataset.num_classes = _num_classes(dataset, class_names)
    _check_splits(dataset, config)
    if dataset.num_classes is not None:
        _check_metric(dataset, where)
        if (folder / GROUPS_FILE).is_file():
            dataset.groups = read_groups(folder / GROUPS_FILE, dataset.num_classes)


def add_sample_groups(dataset: "EvaluationDataset", config: DatasetConfig) -> None:
    """Notes what groups the samples, and checks that every sample says its group.

    Raises:
        ConfigError: names of groups that do not fit.
        DataError: a sample without the metadata field.
    """
    if config.group_by is None:
        return
    where = f"data set {dataset.name!r}, field {config.group_by!r}"
    check_group_field(getattr(dataset.test, "metadata", []), config.group_by, where)
    dataset.group_by = config.group_by
    dataset.group_names, dataset.ignored_groups = list(config.group_names), list(config.ignored_groups)
    groups_of_samples(
        [found[config.group_by] for found in dataset.test.metadata],  # pyright: ignore[reportAttributeAccessIssue] # checked above
        where,
        names=dataset.group_names,
        ignored=dataset.ignored_groups,
    )


def _class_names(name: str, split: AnySplit, folder: Path, config: DatasetConfig) -> list[str] | None:
    """The names to use, in label order, and that there are as many as the split itself has classes."""
    names: list[str] | dict[str, str] | None
    known_as = config.prompts or config.builder or name
    if config.class_names_file:
        path = Path(config.class_names_file)
        names = read_class_names(path, _names(name, config))
    elif config.class_names_from_folders and isinstance(split, ImageFolderSplit):
        names = [folder_name.replace("_", " ") for folder_name in split.class_folders]
    elif config.prompts == BABEL or config.language != "en":
        own = split.class_names if config.builder == BABEL else None
        # Folders carry English names; taking them would ignore the language that was asked for.
        names = own or known_class_names(known_as, config.language)
        if names is None:
            raise ConfigError(
                f"data set {name!r}: no class names in language {config.language!r} are known for {known_as!r}; give "
                "class_names_file and templates_file, or set language=en"
            )
    elif split.class_names:
        names = split.class_names
    elif (folder / CLASS_NAMES_FILE).is_file():
        names = read_class_names(folder / CLASS_NAMES_FILE)
    else:
        names = known_class_names(known_as, "en")
    return names if config.prompts == BABEL and isinstance(names, list) else _fitted(names, name, split)


def _fitted(names: list[str] | dict[str, str] | None, name: str, split: AnySplit) -> list[str] | None:
    folders = split.class_folders if isinstance(split, ImageFolderSplit) else None
    if isinstance(names, dict):
        if folders is None:
            raise DataError(
                f"data set {name!r}: class names by class folder fit folders of images only; give a list in label order"
            )
        without = [folder for folder in folders if folder not in names]
        if without:
            raise DataError(
                f"data set {name!r}: {len(without)} of {len(folders)} class folders have no name, the first is "
                f"{without[0]!r}; give each of them one"
            )
        return [names[folder] for folder in folders]
    expected = len(folders or split.class_names or ()) or split.num_targets
    if names is not None and expected and len(names) != expected:
        raise DataError(
            f"data set {name!r}: {len(names)} class names for {expected} classes of {split.name}; give one "
            "name for each class, in label order"
        )
    return names


def _templates(name: str, split: AnySplit, folder: Path, config: DatasetConfig) -> Templates:
    if config.templates_file:
        return read_templates(Path(config.templates_file), _names(name, config))
    if split.templates:
        return list(split.templates)
    if config.prompts:
        return known_templates(config.prompts, config.language)
    if config.language == "en" and (folder / TEMPLATES_FILE).is_file():
        return read_templates(folder / TEMPLATES_FILE)
    return known_templates(config.builder or name, config.language)


def _names(name: str, config: DatasetConfig) -> list[str]:
    return [entry for entry in (name, config.prompts, config.builder) if entry]


def _keep_translated(dataset: "EvaluationDataset", config: DatasetConfig) -> None:
    """Leaves the samples of the ImageNet classes that Babel-ImageNet has names for in the language."""
    kept = babel_prompts(config.language).indices
    for role in ("test", "train", "val"):
        split = getattr(dataset, role)
        if split is None:
            continue
        if split.labels is None:
            raise ConfigError(
                f"data set {dataset.name!r}: prompts={BABEL} needs ImageNet in webdataset layout or as folders of "
                f"images; for torchvision's files set builder={BABEL}"
            )
        setattr(dataset, role, SubsetSplit(split, split.labels, kept, f"classes of {config.language}"))


def _num_classes(dataset: "EvaluationDataset", class_names: list[str] | None) -> int | None:
    if class_names is not None:
        return len(class_names)
    labels = [split.labels for split in (dataset.test, dataset.train, dataset.val) if split is not None]
    if dataset.train is None or any(found is None for found in labels):
        return None  # known when the samples have been read
    return 1 + max((label for found in labels for label in found or ()), default=0)


def _check_splits(dataset: "EvaluationDataset", config: DatasetConfig) -> None:
    """Labels against classes; nothing for splits whose labels are not known before they are read."""
    for split in (dataset.test, dataset.train, dataset.val):
        if split is None or dataset.num_classes is None:
            continue
        if isinstance(split, ImageFolderSplit) and isinstance(dataset.test, ImageFolderSplit):
            _check_folders(dataset.test, split)
        labels = split.labels if split.labels is not None else _targets(split)
        if labels is None or not split.num_samples:
            continue
        check_labels(labels, dataset.num_classes, split.name)
        learns = split is not dataset.val and (split is dataset.test or _trains(config))
        if learns and not config.allow_empty_classes:
            check_classes_have_samples(labels, dataset.num_classes, split.name, dataset.class_names)


def _targets(split: AnySplit) -> list[int] | None:
    found = split.targets if isinstance(split, TarSplit) else None
    return [label for entry in found for label in entry] if found is not None else None


def _trains(config: DatasetConfig) -> bool:
    return any(task in TRAINED_TASKS for task in config.tasks)


def _check_folders(test: ImageFolderSplit, other: ImageFolderSplit) -> None:
    different = sorted(set(test.class_folders) ^ set(other.class_folders))
    if different:
        raise DataError(
            f"{test.name} and {other.name} have different class folders, the first that only one has is "
            f"{different[0]!r}; labels are counted over the folders, so both splits need the same ones"
        )


def _check_metric(dataset: "EvaluationDataset", where: str) -> None:
    classes = dataset.num_classes or 0
    if dataset.metric in ("acc5", "worst_group_acc5") and classes < 5:
        raise ConfigError(f"{where}: {dataset.metric} says nothing over {classes} classes; use metric=acc1")
    if dataset.metric == "roc_auc" and classes != 2:
        raise ConfigError(f"{where}: roc_auc is for two classes, this set has {classes}; use metric=acc1")
