"""The text of a stage's manifest, a shard at a time: with a hundred thousand shards, the list of them is the only thing
of their number that is held in memory.

The text is what `crawl2clip.files.write_json` would write of the whole, byte for byte: later stages hold its digest.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from crawl2clip.files import atomic_path

_EMPTY = '\n  "shards": []'  # of the outermost object: deeper ones are indented by more, and strings have no line ends
_PIECES = 1000  # shards that are written or compared at once


def manifest_pieces(about: dict[str, Any], shards: Iterable[dict[str, Any]]) -> Iterator[str]:
    """The text of a manifest in pieces.

    Args:
        about: its other keys.
        shards: name and inputs of each; one at least.
    """
    head, _, tail = _text({**about, "shards": []}).partition(_EMPTY)
    yield f'{head}\n  "shards": ['
    separator, piece = "\n", []
    for shard in shards:
        piece.append(separator + "    " + _text(shard).replace("\n", "\n    "))
        separator = ",\n"
        if len(piece) == _PIECES:
            yield "".join(piece)
            piece = []
    yield "".join(piece) + "\n  ]" + tail + "\n"


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
