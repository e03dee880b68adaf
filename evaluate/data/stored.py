"""Data sets in an object store: the files that a suite reads of them are copied to each node, once."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from crawl2clip import storage
from crawl2clip.distributed import World
from crawl2clip.shards import MANIFEST_NAME
from crawl2clip.store_copies import copy_folder
from evaluate.data.config import DatasetConfig
from evaluate.data.opening import splits_of
from evaluate.data.tar_folder import COUNT_FILE
from evaluate.ranks import once_a_node


def dataset_folder(name: str, config: DatasetConfig, data_root: Path) -> Path:
    """Where a data set is on this machine: below the data root, or where its own path or address says."""
    path = config.path or name
    return storage.local_path(path) if path.startswith(storage.SCHEME) else data_root / path


def bring_datasets(configs: Mapping[str, DatasetConfig], data_root: Path, world: World) -> None:
    """Copies what lies in a store to its local place; nothing for the others. Collective.

    Args:
        configs: the suite's.
        data_root: a local path, perhaps that of an address.
        world: the ranks; one of each node copies.

    Raises:
        DataError: an object cannot be had.
    """
    stored = {
        name: config
        for name, config in configs.items()
        if storage.address_of(dataset_folder(name, config, data_root)) is not None
    }
    if not stored:
        return

    def bring() -> None:
        for name, config in stored.items():
            copy_folder(dataset_folder(name, config, data_root), lambda names, c=config: _read_by(c, names))

    once_a_node(world, bring)


def _read_by(config: DatasetConfig, names: Iterable[str]) -> list[str]:
    """Of a webdataset folder the splits that the tasks read, and what is not in a split; all of any other form."""
    names = list(names)
    if not any(f"{config.test_split}/{mark}" in names for mark in (COUNT_FILE, MANIFEST_NAME)):
        return names
    splits = splits_of(config)
    return [
        name for name in names if "/" not in name or any(name.startswith(f"{split}/") for split in splits)
    ]
