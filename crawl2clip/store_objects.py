"""Objects of a store by themselves, whatever lies at their local paths (storage.py has what the two are to each other).

For who has to know what the store has, and not what is here: a training run that publishes its folder there, and
readers of a folder that is known to be whole by one of its objects.
"""

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import TEMPORARY_MARK, atomic_path


def objects_below(folder: Path) -> list[str]:
    """Names of all objects below a folder, relative to it, sorted; none when there are none.

    Raises:
        DataError: the store cannot be asked.
    """
    address = _address(folder)
    prefix = address.removeprefix(storage.SCHEME) + "/"
    found = storage.asked(address, lambda system: system.find(address))
    return sorted(_inside(name, prefix) for name in found if name.startswith(prefix))


def _inside(name: str, prefix: str) -> str:
    """A name relative to its folder. Raises DataError for one that would lead out of a folder of this machine."""
    relative = name.removeprefix(prefix)
    if any(part in ("", ".", "..") for part in relative.split("/")):
        raise DataError(
            f"{storage.SCHEME}{name} cannot be a file of a folder here; give its objects names without empty parts, "
            "'.' and '..'"
        )
    return relative


def read_object(path: Path) -> bytes:
    """An object's bytes.

    Raises:
        DataError: there is no such object, or the store cannot be asked.
    """
    address = _address(path)
    return storage.asked(address, lambda system: system.cat_file(address))


def object_exists(path: Path) -> bool:
    """Whether there is an object. Raises DataError when the store cannot be asked."""
    address = _address(path)
    return storage.asked(address, lambda system: system.isfile(address))


def object_versions(folder: Path) -> dict[str, str]:
    """All objects below a folder as `objects_below` has them, each with a text that changes when it is put again."""
    address = _address(folder)
    prefix = address.removeprefix(storage.SCHEME) + "/"
    found = storage.asked(address, lambda system: system.find(address, detail=True))
    return {
        _inside(name, prefix): f"{info.get('ETag')} {info.get('size')} {info.get('LastModified')}"
        for name, info in sorted(found.items())
        if name.startswith(prefix)
    }


def get_object(path: Path) -> None:
    """Brings one object to its local path, whole or not at all. Raises DataError when it cannot be had."""
    address = _address(path)
    with atomic_path(path) as temporary:
        storage.asked(address, lambda system: system.get_file(address, str(temporary)))


def remove_objects(folder: Path, names: Sequence[str]) -> None:
    """Removes objects below a folder, in this order; one that is not there is none. Raises DataError."""
    for name in names:
        address = _address(folder / name)
        storage.asked(address, lambda system, a=address: system.rm_file(a))


def put_folder(folder: Path, last: str) -> None:
    """Puts the files of a folder at their addresses, and `last` after all others: with it the folder is whole.

    An older folder there is not whole from the beginning on: its `last` is removed first.

    Raises:
        DataError: the store does not take a file, or one is gone.
    """
    remove_objects(folder, [last])
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / last]
    for path in [*files, folder / last]:
        address = _address(path)
        # Not `storage.publish`, which passes over a file that is gone: then the folder would not be whole.
        storage.asked(address, lambda system, f=str(path), a=address: system.put_file(f, a))


def bring_folder(folder: Path) -> None:
    """Brings all objects below a folder to this machine; the folder appears whole, in place of an older one.

    Raises:
        DataError: the store cannot be asked.
    """
    temporary = folder.with_name(f"{folder.name}{TEMPORARY_MARK}{uuid.uuid4().hex[:8]}")
    try:
        for name in objects_below(folder):
            address, target = _address(folder / name), temporary / name
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.asked(address, lambda system, a=address, t=target: system.get_file(a, str(t)))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _address(path: Path) -> str:
    address = storage.address_of(path)
    assert address is not None, f"{path} stands for no address"
    return address
