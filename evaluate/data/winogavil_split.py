"""WinoGAViL (Bitton et al. 2022): boards of candidate images, a cue word, and the images associated with it.

<folder> holds winogavil_dataset.csv (columns candidates, cue, associations; lists as JSON) and the images
<candidate>.jpg in winogavil_images.zip or winogavil_images/, as the hub's nlphuji/winogavil has them. The split
counts distinct images, since each lies on many boards; the boards refer to them by position.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from evaluate.data.image_files import ImageFiles
from evaluate.data.samples import Record
from evaluate.results import hash_of

WINOGAVIL = "winogavil"
VOWELS = "aeiou"


@dataclass(frozen=True)
class Board:
    """One question: which of the candidates go with the cue."""

    prompt: str  # the cue as the published evaluation writes it: "A cue" or "An cue"
    candidates: list[int]  # positions of images in the split
    associations: list[int]  # those of the candidates that were chosen by the people who made it
    key: str


class WinogavilSplit:
    """The one split, "test", of the data set; images are read when asked for."""

    random_access = True
    labels = targets = num_targets = class_names = templates = captions = (
        None  # other kinds of splits have these
    )

    def __init__(self, folder: Path, split: str) -> None:
        """Reads the boards and looks for every image.

        Raises:
            ConfigError: another split than test.
            DataError: the list is missing or of another form, or an image is not there.
        """
        if split != "test":
            raise ConfigError(f"winogavil has no split {split!r}; its only one is test")
        self.name, self.folder = f"{WINOGAVIL}/{split}", folder
        self._list = folder / "winogavil_dataset.csv"
        rows = _rows(self._list)
        self.keys = sorted({name for candidates, _, _ in rows for name in candidates})
        position = {name: index for index, name in enumerate(self.keys)}
        self.boards = [
            Board(_prompt(cue), [position[n] for n in candidates], [position[n] for n in chosen], str(number))
            for number, (candidates, cue, chosen) in enumerate(rows)
        ]
        self.metadata: list[dict[str, str]] = []
        self.num_samples = len(self.keys)
        self._source = ImageFiles(folder / "winogavil_images", folder / "winogavil_images.zip")
        self._source.check([f"{key}.jpg" for key in self.keys])

    def record(self, index: int) -> Record:
        """A candidate image; what it goes with is in `boards`."""
        file = f"{self.keys[index]}.jpg"
        return Record(
            index, self._source.image(file, f"{self.name}, {file}"), None, None, key=self.keys[index]
        )

    def records(self) -> Iterator[Record]:
        """All images in order."""
        return map(self.record, range(self.num_samples))

    def fingerprint(self) -> str:
        """SHA-256 over the list and the images' contents."""
        return hash_of(
            [self.name, sha256_of(self._list), self._source.hashes([f"{k}.jpg" for k in self.keys])]
        )


def _prompt(cue: str) -> str:
    """As the authors and DataComp's suite word it: lower case, and "An" before a vowel."""
    lower = cue.strip().lower()
    return f"{'An' if lower[0] in VOWELS else 'A'} {lower}"


def _rows(path: Path) -> list[tuple[list[str], str, list[str]]]:
    """(candidates, cue, associations) of each board."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing; WinoGAViL is nlphuji/winogavil on the hub: hf download nlphuji/winogavil --repo-type "
            f"dataset --local-dir {path.parent}"
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a table in UTF-8 ({error}); fetch it again") from error
    if not rows:
        raise DataError(f"{path} holds no board; fetch it again")
    return [_row(row, f"{path}, board {number}") for number, row in enumerate(rows)]


def _row(row: dict[str, Any], where: str) -> tuple[list[str], str, list[str]]:
    cue = (row.get("cue") or "").strip()
    candidates, associations = _names(row.get("candidates")), _names(row.get("associations"))
    if not cue or not candidates or not associations or not set(associations) < set(candidates):
        raise DataError(
            f"{where}: a cue, a JSON list of distinct candidates and one of some of them as associations are expected, "
            f"found { ({name: row.get(name) for name in ('cue', 'candidates', 'associations')})!r}"[:400]
        )
    return candidates, cue, associations


def _names(text: Any) -> list[str] | None:
    """A JSON list of distinct texts, None for anything else."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        return None
    return value if len(set(value)) == len(value) else None
