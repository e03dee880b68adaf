"""A split of a data set, in whichever form its folder has: found, fetched where that is allowed, and opened."""

from pathlib import Path

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.benchmark_builder import RETRIEVAL_SETS, build_benchmark
from evaluate.data.benchmark_split import BenchmarkSplit
from evaluate.data.config import IMAGE_FOLDER, TRAINED_TASKS, DatasetConfig, Task
from evaluate.data.hub import by_hand, fetch_files_from_hub, fetch_from_hub, parse_reference
from evaluate.data.image_folder import ImageFolderSplit, has_class_folders
from evaluate.data.manifest_writer import write_dataset_manifest
from evaluate.data.selection_split import SUGAR_CREPE, WINOGROUND, SelectionSplit
from evaluate.data.subset_split import SubsetSplit
from evaluate.data.tar_folder import dataset_type, is_tar_folder, lacks_shards
from evaluate.data.tar_split import TarSplit
from evaluate.data.web_folder import fetch_from_web
from evaluate.data.winogavil_split import WINOGAVIL, WinogavilSplit

AnySplit = TarSplit | BenchmarkSplit | ImageFolderSplit | SelectionSplit | WinogavilSplit | SubsetSplit

PUBLISHED = {
    WINOGROUND: ("facebook/winoground", ("data/examples.jsonl", "data/images.zip")),
    WINOGAVIL: ("nlphuji/winogavil", ("winogavil_dataset.csv", "winogavil_images.zip")),
}
"""Hub data set and files of the readers that are neither in webdataset layout nor CLIP_benchmark's."""

KINDS = {
    Task.retrieval: "retrieval",
    Task.multi_label: "multilabel",
    Task.selection: "selection",
    Task.winogavil: "winogavil",
}
"""What dataset_type.txt must say for a task; "classification" for the others."""


def splits_of(config: DatasetConfig) -> list[str]:
    """Names of the splits that a data set's tasks read, the scored one first."""
    trains = any(task in TRAINED_TASKS for task in config.tasks)
    others = [config.train_split, config.val_split] if trains else []
    return list(dict.fromkeys([config.test_split, *(split for split in others if split)]))


def fetch(name: str, config: DatasetConfig, folder: Path) -> None:
    """Downloads what is missing of a data set that names a hub data set or an address; nothing for any other.

    What was fetched gets a manifest, so that from then on a lost or changed shard is noticed.

    Raises:
        DataError: no network, no such data set, or a file that arrived damaged.
    """
    splits = splits_of(config)
    if config.builder in PUBLISHED and not config.hub:
        repo, files = PUBLISHED[config.builder]
        if not all((folder / file).exists() or (folder / file).with_suffix("").is_dir() for file in files):
            fetch_files_from_hub(repo, folder, files)
    if not (config.hub or config.url) or not any(lacks_shards(folder, split) for split in splits):
        return
    begun = any(folder.glob("*/nshards.txt")) or (folder / ".cache" / "huggingface").is_dir()
    if config.builder and folder.is_dir() and not begun:
        return  # the builder's own files
    if config.hub:
        source = fetch_from_hub(config.hub, folder, splits)
    else:
        assert config.url is not None
        source = fetch_from_web(config.url, folder, splits)
    write_dataset_manifest(folder, source=source)


def open_split(name: str, config: DatasetConfig, folder: Path, split: str, *, download: bool) -> AnySplit:
    """Opens a split: in webdataset layout where the scored split is, else as the builder says.

    Args:
        name: of the data set, for messages.
        config: what the suite says about it.
        folder: of the data set.
        split: its name.
        download: whether a builder of CLIP_benchmark may fetch what is missing.

    Raises:
        ConfigError: the files are not those of the tasks.
        DataError: a folder, file, shard or field is missing or wrong.
    """
    if is_tar_folder(folder, config.test_split):
        return _open_tars(name, config, folder, split)
    if config.builder is None or (config.hub and not folder.exists()):
        raise DataError(_nothing_there(name, config, folder))
    if config.builder == IMAGE_FOLDER:
        return ImageFolderSplit(folder, split)
    if config.builder == WINOGAVIL:
        return WinogavilSplit(folder, split)
    if config.builder == WINOGROUND or config.builder.startswith(SUGAR_CREPE):
        if download and config.builder.startswith(SUGAR_CREPE):
            build_benchmark(config.builder, folder, split, download=True)  # fetches what is missing
        return SelectionSplit(config.builder, folder, split)
    if Task.retrieval in config.tasks and config.builder not in RETRIEVAL_SETS:
        raise ConfigError(
            f"data set {name!r}: {config.builder!r} has no captions; sets of CLIP_benchmark with captions are "
            f"{', '.join(RETRIEVAL_SETS)}. Correct the builder or the tasks"
        )
    return BenchmarkSplit(config.builder, folder, split, download=download, language=config.language)


def _open_tars(name: str, config: DatasetConfig, folder: Path, split: str) -> TarSplit:
    found = dataset_type(folder)
    wanted = next((kind for task, kind in KINDS.items() if task in config.tasks), "classification")
    if found != wanted:
        raise ConfigError(
            f"data set {name!r} at {folder} is a {found} set (dataset_type.txt), but its tasks "
            f"({', '.join(task.value for task in config.tasks)}) need a {wanted} set; correct the tasks or the file"
        )
    return TarSplit(
        folder,
        split,
        with_labels=wanted == "classification",
        with_captions=wanted == "retrieval",
        with_targets=wanted == "multilabel",
        metadata_columns=config.metadata_fields if config.group_by or config.metadata_fields else None,
        language=config.language,
    )


def _nothing_there(name: str, config: DatasetConfig, folder: Path) -> str:
    state = "exists without it" if folder.is_dir() else "does not exist"
    message = (
        f"data set {name!r}: no split {config.test_split!r} at {folder} (the folder {state}); expected "
        f"{folder / config.test_split}/nshards.txt (or manifest.json) with its tars. Set data_root or the data "
        "set's path"
    )
    if config.hub:
        repo, _ = parse_reference(config.hub)
        return f"{message}; or fetch it with download=true and HF_HUB_OFFLINE=0, or {by_hand(repo, folder)}"
    if config.url:
        return f"{message}; or fetch it from {config.url} with download=true"
    if has_class_folders(folder / config.test_split):
        return f"{message}. There are class folders with images: for those set builder={IMAGE_FOLDER}"
    return message
