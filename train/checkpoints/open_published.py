"""The beginning of a run in an object store: the local folder gets what the store has of it."""

import os
import uuid
from pathlib import Path

from crawl2clip import storage
from crawl2clip.distributed import World
from crawl2clip.errors import ConfigError
from crawl2clip.store_objects import object_exists, read_object
from evaluate.ranks import main_decides, on_main
from train.checkpoints.published_run import LOG_NAME, PublishedRun
from train.checkpoints.saving import SaveConfig


def bring_log(folder: Path) -> None:
    """Brings the store's log.txt when it is longer than the local one; before anybody writes to that."""
    path = folder / LOG_NAME
    if storage.address_of(path) is None:
        return
    size = os.path.getsize(path) if path.exists() else 0
    if object_exists(path) and len(read_object(path)) > size:
        storage.fetch_newest(path)


def open_published(folder: Path, config: SaveConfig, world: World) -> PublishedRun | None:
    """On rank 0, what publishes a run, after the local folder has what the store has; None elsewhere. Collective.

    A run whose folder is no address has none.

    Raises:
        ConfigError: a rank does not see the folder, or a package is missing.
        DataError: the store cannot be asked.
    """
    if storage.address_of(folder) is None:
        return None
    _check_seen(folder, world)
    published = PublishedRun(folder, config) if world.is_main else None
    on_main(world, lambda: published.bring() if published is not None else None)
    return published


def _check_seen(folder: Path, world: World) -> None:
    """Raises ConfigError on all ranks when one of them does not see what rank 0 writes to the folder."""
    probe = folder / f".seen-{main_decides(world, lambda: uuid.uuid4().hex[:8])}"

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()

    on_main(world, write)
    seen = world.all_gather_object(probe.exists())
    world.barrier()
    if world.is_main:
        probe.unlink()
    if not all(seen):
        raise ConfigError(
            f"rank {seen.index(False)} does not see {folder}, where {storage.address_of(folder)} is worked on; set "
            f"{storage.SCRATCH_VARIABLE} to a folder on a file system that all nodes share"
        )
