"""Copies on this machine of what lies in an object store, for readers who need files: brought once, and again when
an object has changed.

What version of each object is here is noted beside the copy, so that a look at the store is one request for a whole
folder. `CRAWL2CLIP_SCRATCH` says where copies lie (crawl2clip/storage.py); nothing removes them but their owner.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.models import CONFIG_NAME
from crawl2clip.store_objects import get_object, object_exists, object_versions

_THREADS = 8  # objects that are brought at once


def copy_folder(folder: Path, choose: Callable[[Iterable[str]], Iterable[str]] = lambda names: names) -> None:
    """Makes the files of a local folder what the store has of it; a path that stands for no address stays as it is.

    Files that did not come from the store are let be, unless it has one of the same name.

    Args:
        folder: the local path of an address.
        choose: of the names of all objects, those that are wanted.

    Raises:
        DataError: an object cannot be had.
    """
    if storage.address_of(folder) is None:
        return
    note = folder.with_name(f".{folder.name}.versions.json")
    have = _versions(note)
    there = object_versions(folder)
    wanted = list(choose(there))
    for name in have.keys() - there.keys():
        (folder / name).unlink(missing_ok=True)
    missing = [name for name in wanted if have.get(name) != there[name] or not (folder / name).exists()]
    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(lambda name: get_object(folder / name), missing))
    kept = {name: version for name, version in have.items() if there.get(name) == version}
    kept |= {name: there[name] for name in wanted}
    if kept != have:
        write_json(note, kept)


def copy_weights(pretrained: str) -> str:
    """The local path of weights at an address: a file or an export folder. Anything else is given back as it is.

    Raises:
        DataError: there are no weights at the address.
    """
    if not pretrained.startswith(storage.SCHEME):
        return pretrained
    path = storage.local_path(pretrained)
    if object_exists(path / CONFIG_NAME):
        copy_folder(path)
    elif object_exists(path):
        storage.fetch(path)
    else:
        raise DataError(
            f"{pretrained} is neither a file nor an export folder (which has {CONFIG_NAME}); give the address of a .pt "
            "or .safetensors file, or of the export folder of a run"
        )
    return str(path)


def _versions(note: Path) -> dict[str, str]:
    try:
        found = read_json(note)
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}
