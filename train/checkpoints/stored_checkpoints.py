"""The checkpoints of a run in an object store: which are whole, putting one, removing some.

A checkpoint there has the names that it has in the local folder; its manifest is put last and removed first, so one
without a manifest is none. What this machine has put is noted beside the local ones: as long as the store has nothing
else, no other machine has gone on with the run.
"""

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from crawl2clip.errors import DataError
from crawl2clip.files import read_json, write_json
from crawl2clip.store_objects import objects_below, put_folder, read_object, remove_objects
from train.checkpoints.checkpoint_folder import Saved, checkpoint_path, step_of, steps_to_keep
from train.checkpoints.saving import SaveConfig
from train.checkpoints.state_manifest import MANIFEST_NAME

NOTE_NAME = "published.json"


@dataclass(frozen=True)
class Stored:
    """A whole checkpoint in the store."""

    sha256: str  # of its manifest
    scores: Mapping[str, float] = field(
        compare=False
    )  # one that is not a number equals nothing, itself included

    @classmethod
    def of(cls, manifest: bytes) -> "Stored":
        """That with this manifest."""
        try:
            scores = json.loads(manifest).get("scores")
        except (ValueError, AttributeError):
            scores = None
        return cls(hashlib.sha256(manifest).hexdigest(), scores if isinstance(scores, dict) else {})


class StoredCheckpoints:
    """What the store has, as one process of one machine knows and changes it.

    Attributes:
        there: the whole checkpoints by step; None while it is not known.
        ours: hashes of the manifests that this machine has put or brought.
        rolled_back_to: what the store has of later steps has to go; None when nothing has.
    """

    def __init__(self, folder: Path, note: Path) -> None:
        """Reads the note.

        Args:
            folder: the local folder of checkpoints, which stands for the address.
            note: where this machine notes what it has put.
        """
        self.there: dict[int, Stored] | None = None
        self.ours: set[str] = set()
        self.rolled_back_to: int | None = None
        self._folder, self._note = folder, note
        self._noting = threading.Lock()
        try:
            noted = read_json(note)
            self.ours, self.rolled_back_to = set(noted["manifests"]), noted["rolled_back_to"]
        except (DataError, KeyError, TypeError):
            pass  # then the store decides where the run is

    def known(self) -> dict[int, Stored]:
        """The whole checkpoints; asks the store when it is not known. What a kill left of others is removed.

        Raises:
            DataError: the store cannot be asked.
        """
        if self.there is None:
            objects: dict[str, list[str]] = {}
            for name in objects_below(self._folder):
                folder, _, file = name.partition("/")
                objects.setdefault(folder, []).append(file)
            found = {}
            for folder, files in objects.items():
                path = self._folder / folder
                if not folder.startswith("step_") or not folder[5:].isdecimal():
                    continue
                if MANIFEST_NAME in files:
                    found[step_of(path)] = Stored.of(read_object(path / MANIFEST_NAME))
                else:
                    remove_objects(path, files)
            self.there = found
        return self.there

    def put(self, path: Path) -> bool:
        """Puts a local checkpoint; returns whether it was not there yet.

        Raises:
            DataError: the store does not take it. OSError: it is not on this machine any more.
        """
        step, stored = step_of(path), Stored.of((path / MANIFEST_NAME).read_bytes())
        there = self.known()
        if there.get(step) == stored:
            return False
        there.pop(step, None)
        self.ours.add(stored.sha256)
        self.note()  # before it is there: killed afterwards, the next start must not take it for another machine's
        put_folder(path, last=MANIFEST_NAME)
        there[step] = stored
        return True

    def clear(self, path: Path) -> None:
        """Removes what has arrived of a checkpoint that was not put to the end."""
        remove_objects(path, objects_below(path))

    def keep(self, steps: Iterable[int]) -> None:
        """Removes all other steps."""
        there = self.known()
        for step in sorted(there.keys() - set(steps)):
            path = checkpoint_path(self._folder, step)
            remove_objects(path, sorted(objects_below(path), key=lambda name: name != MANIFEST_NAME))
            del there[step]

    def take_back(self) -> None:
        """Removes what the store has from behind a roll back."""
        step = self.rolled_back_to
        if step is not None:
            self.keep([each for each in self.known() if each <= step])
            self.rolled_back_to = None
            self.note()

    def wanted(self, config: SaveConfig, *, milestones: bool) -> set[int]:
        """The steps that are kept, with those of `keep_every_steps` or without."""
        return steps_to_keep(
            [Saved(step, stored.scores) for step, stored in self.known().items()],
            keep_last=config.keep_last,
            keep_every_steps=config.keep_every_steps if milestones else None,
            best=config.keep_best,
        )

    def all_are_ours(self) -> None:
        """Notes that this machine has all there is, and nothing else."""
        self.ours = {stored.sha256 for stored in self.known().values()}
        self.note()

    def note(self) -> None:
        """Writes the note; from any thread."""
        with self._noting:
            noted = {"manifests": sorted(self.ours), "rolled_back_to": self.rolled_back_to}
            write_json(self._note, noted)
