"""The list of a stage's shards, which stays on disk: it is written, compared and gone through a shard at a time.

So a hundred thousand shards, or millions, take no memory. The text is what `crawl2clip.files.write_json` would write of
the whole, byte for byte: later stages hold its digest.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import Any

from crawl2clip import storage
from crawl2clip.errors import DataError
from crawl2clip.files import atomic_path
from data_pipeline.json_items import read_items
from data_pipeline.name_set import NameSet

SHARDS = "shards"  # the key of the list in the manifest
_PIECES = 250  # shards that are written or compared at once


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: the name of an output shard and the files it is made from.

    Attributes:
        name: names the output files, `NAME.<ext>`; the same on every run.
        inputs: paths that the output depends on, in order.
    """

    name: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class FrozenList:
    """Shards of a manifest that are read whenever they are gone through.

    Attributes:
        path: the manifest.
        num_shards: how many there are, without those that are left out.
        local_folders: address -> the folder that stands for it on this machine, of inputs in an object store.
        left_out: names of the others.
    """

    path: Path
    num_shards: int
    local_folders: dict[str, str] = field(default_factory=dict)
    left_out: NameSet = field(default_factory=NameSet)

    def __len__(self) -> int:
        return self.num_shards

    def __iter__(self) -> Iterator[Shard]:
        for entry in read_entries(self.path, {}):
            if entry["name"] not in self.left_out:
                yield Shard(entry["name"], tuple(map(self._local, entry.get("inputs", ()))))

    def without(self, names: NameSet, number: int) -> "FrozenList":
        """The shards but for those of some names.

        Args:
            number: how many of the list these are.
        """
        return replace(self, num_shards=self.num_shards - number, left_out=names)

    def _local(self, path: str) -> str:
        if not self.local_folders:
            return path
        folder, name = os.path.split(path)
        return os.path.join(self.local_folders[folder], name) if folder in self.local_folders else path


def read_entries(path: Path, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The shards of a manifest as they are listed: name and, if a stage wrote it, inputs.

    Args:
        about: gets the manifest's other keys, and their number as `shards`; complete when there are no more.

    Raises:
        DataError: the file is missing, damaged, or no manifest.
    """
    for entry in read_items(path, SHARDS, about):
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("name"), str)
            or not isinstance(entry.get("inputs", []), list)
        ):
            raise DataError(f"{path} lists {entry!r:.200} where a shard should be; {_AGAIN}")
        yield entry
    if SHARDS not in about:
        raise DataError(f"{path} has no list of shards; {_AGAIN}")


_AGAIN = "delete it and run the stage that writes it again: complete shards stay"


def manifest_pieces(
    about: dict[str, Any], shards: Iterable[Shard], upstream: Callable[[], dict[str, str]]
) -> Iterator[str]:
    """The text of a manifest in pieces.

    Args:
        about: its other keys, without upstream.
        shards: one at least.
        upstream: asked for once the shards have been gone through.
    """
    # Of the outermost object: deeper ones are indented by more, and strings have no line ends.
    empty = f'\n  "{SHARDS}": []'
    yield _text({**about, SHARDS: []}).partition(empty)[0] + f'\n  "{SHARDS}": ['
    separator, piece = "\n", []
    for shard in shards:
        piece.append(separator + _entry(shard.name, storage.public(shard.inputs)))
        separator = ",\n"
        if len(piece) == _PIECES:
            yield "".join(piece)
            piece = []
    tail = _text({**about, SHARDS: [], "upstream": storage.public(upstream())}).partition(empty)[2]
    yield "".join(piece) + "\n  ]" + tail + "\n"


def _entry(name: str, inputs: Sequence[str]) -> str:
    """What `_text` gives of a shard, indented; a tenth of its time, which is most of what freezing a list takes."""
    listed = ",\n        ".join(map(encode_basestring, inputs))
    listed = f"[\n        {listed}\n      ]" if listed else "[]"
    return f'    {{\n      "inputs": {listed},\n      "name": {encode_basestring(name)}\n    }}'


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Writes a text, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def is_text(path: Path, pieces: Iterable[str]) -> bool:
    """Whether a file's bytes are those of a text."""
    with path.open("rb") as file:
        for piece in pieces:
            data = piece.encode("utf-8")
            if file.read(len(data)) != data:
                return False
        return not file.read(1)


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
