"""Features on disk, found by what they are made of.

A key is the hash of everything that the features depend on: weights, architecture, preprocessing or tokenizer as
they behave, precision, and the images or the text itself. There is nothing to invalidate: another checkpoint,
crop or image has another key. The full key is stored with the features and compared on reading.

Images are one file a split. Texts are found one by one: a file holds the features of the texts that one call had to
encode, each under its own hash, so a prompt is encoded once for a model whatever list of prompts it comes in.
A file's modification time is when it was last used; the longest unused go first when there is a limit.
"""

import hashlib
import json
import logging
import os
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crawl2clip.files import TEMPORARY_MARK, atomic_path
from evaluate.results import hash_of

FORMAT = 2  # raise when the meaning of stored features changes
IMAGES, TEXTS = "images", "texts"
_ABANDONED_S = 24 * 3600.0  # a temporary file as old as this has lost its writer
_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile)  # what numpy raises for a bad file
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """One file of the cache."""

    path: Path
    kind: str  # "images" or "texts"
    about: dict[str, Any]  # for people: model, precision, what and how many; empty for a damaged file
    size_bytes: int
    last_used: float  # seconds since the epoch


class FeatureCache:
    """A folder of .npz files; any number of processes may share it."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        """Looks at nothing yet.

        Args:
            folder: made when something is saved.
            limit_bytes: the longest unused files are deleted when all are larger than this; None keeps everything.
        """
        self.folder, self.limit_bytes = folder, limit_bytes
        self._digests: dict[Path, NDArray[np.void]] = {}  # of text files, which never change once written

    def load(self, key: Mapping[str, Any], needs: Sequence[str] = ()) -> dict[str, NDArray[Any]] | None:
        """The arrays stored under a key, or None. A damaged file is reported and counts as absent.

        Args:
            key: from `image_key`.
            needs: arrays without which the file counts as absent, such as "penultimate".
        """
        path = self._image_path(key)
        arrays = _read(path, _text(key))
        if arrays is None or any(name not in arrays for name in needs):
            return None
        _touch(path)
        logger.info("features of %s come from the cache", key.get("data_name", "images"))
        return arrays

    def save(
        self, key: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
    ) -> None:
        """Stores arrays under a key; whole or not at all."""
        self._write(self._image_path(key), _text(key), arrays, about)

    def load_texts(self, key: Mapping[str, Any], texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Features [D] of those of the texts that are stored for a model.

        Args:
            key: from `text_key`.
            texts: distinct.
        """
        wanted = {digest_of(text): text for text in texts}
        found: dict[str, NDArray[np.float32]] = {}
        for path in sorted(self._text_folder(key).glob("*.npz")):
            if len(found) == len(wanted):
                break
            rows = [
                (i, wanted[d.tobytes()])
                for i, d in enumerate(self._digests_in(path))
                if d.tobytes() in wanted
            ]
            arrays = _read(path, _text(key)) if rows else None
            if arrays is not None:
                found |= {text: arrays["features"][row] for row, text in rows}
                _touch(path)
        if found:
            logger.info("features of %d of %d texts come from the cache", len(found), len(texts))
        return found

    def save_texts(
        self,
        key: Mapping[str, Any],
        texts: Sequence[str],
        features: NDArray[np.float32],
        about: Mapping[str, Any],
    ) -> None:
        """Stores features [N, D] of N distinct texts."""
        digests = np.frombuffer(b"".join(map(digest_of, texts)), np.uint8).reshape(-1, 32)
        path = self._text_folder(key) / f"{hashlib.sha256(digests.tobytes()).hexdigest()}.npz"
        self._write(path, _text(key), {"digests": digests, "features": features}, about)

    def entries(self) -> list[CacheEntry]:
        """Every file, the longest unused first."""
        entries = []
        for path in self.folder.glob("*/*/*.npz"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process prunes
            kind = path.relative_to(self.folder).parts[0]
            entries.append(CacheEntry(path, kind, _about(path), status.st_size, status.st_mtime))
        return sorted(entries, key=lambda entry: (entry.last_used, entry.path))

    def prune(self, limit_bytes: int, keep: Path | None = None) -> list[CacheEntry]:
        """Deletes the longest unused files until all together are no larger than the limit, and says which.

        Args:
            limit_bytes: 0 empties the cache.
            keep: a file that stays all the same, because it is in use.
        """
        self._remove_abandoned()
        entries = self.entries()
        total = sum(entry.size_bytes for entry in entries)
        removed = []
        for entry in entries:
            if total <= limit_bytes:
                break
            if entry.path != keep:
                entry.path.unlink(missing_ok=True)
                total -= entry.size_bytes
                removed.append(entry)
        return removed

    def _write(
        self, path: Path, key: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]
    ) -> None:
        described = {"key": np.asarray(key), "about": np.asarray(json.dumps(dict(about), sort_keys=True))}
        try:
            path.unlink(
                missing_ok=True
            )  # it was damaged, or another process was faster with the same content
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **described, **arrays)  # pyright: ignore[reportArgumentType] # numpy's stub
        except OSError as error:  # a full or read-only disk costs the next run time, not this one its scores
            logger.warning("feature cache file %s cannot be written (%s); going on without it", path, error)
            return
        if self.limit_bytes is not None:
            removed = self.prune(self.limit_bytes, keep=path)
            if removed:
                logger.info("feature cache: %d files unused the longest were deleted (limit)", len(removed))

    def _digests_in(self, path: Path) -> NDArray[np.void]:
        if path not in self._digests:
            try:
                with np.load(path, allow_pickle=False) as stored:
                    self._digests[path] = np.ascontiguousarray(stored["digests"]).view("V32")[:, 0]
            except _DAMAGE as error:
                logger.warning(
                    "feature cache file %s is damaged (%s); its texts are encoded again", path, error
                )
                return np.empty(0, "V32")
        return self._digests[path]

    def _remove_abandoned(self) -> None:
        for path in self.folder.glob(f"*/*/*{TEMPORARY_MARK}*"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED_S:
                    path.unlink()
            except FileNotFoundError:
                continue

    def _image_path(self, key: Mapping[str, Any]) -> Path:
        digest = hash_of(dict(key))
        return self.folder / IMAGES / digest[:2] / f"{digest}.npz"

    def _text_folder(self, key: Mapping[str, Any]) -> Path:
        return self.folder / TEXTS / hash_of(dict(key))


def _read(path: Path, key: str) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file (numpy checks each one's CRC), None when it is absent, damaged or has another key."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files if name != "about"}
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        logger.warning("feature cache file %s is damaged (%s); encoding again", path, error)
        return None
    if str(arrays.pop("key", None)) != key:
        logger.warning("feature cache file %s is not what its name says; encoding again", path)
        return None
    return arrays


def _about(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            value = json.loads(str(stored["about"]))
        return value if isinstance(value, dict) else {}
    except _DAMAGE:
        return {}


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        pass  # another process deleted it, or the folder is read-only: the features are in memory


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(dict(key), sort_keys=True)


def digest_of(text: str) -> bytes:
    """SHA-256 of a text, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
