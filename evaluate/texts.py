"""Text features for a whole run: every distinct prompt and caption is encoded once, whatever asks for it.

Texts are sorted by their number of tokens and cut into large batches before ranks take them in turn, so a batch
holds texts of like length (it is cut to its longest), and its content does not depend on how many ranks there are.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from crawl2clip.distributed import World
from crawl2clip.encoder import Encoder
from crawl2clip.errors import DataError
from crawl2clip.logs import progress
from evaluate.cache import FeatureCache
from evaluate.feature_keys import text_key
from evaluate.ranks import all_attempt, gather_rows, main_decides, on_main

_BLOCK = 4096  # texts that are counted at a time


class TextFeatures:
    """Encodes what it is told to and remembers; every rank adds the same texts and has the same features."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        world: World,
        batch_size: int,
        cache: FeatureCache | None = None,
        show_progress: bool = True,
    ) -> None:
        """Knows no text yet.

        Args:
            encoder: on this rank's device.
            world: the ranks that share the work.
            batch_size: texts a forward pass.
            cache: each text is looked up there by itself; read and filled by rank 0.
            show_progress: whether rank 0 draws a bar with the time that is left.
        """
        self._encoder, self._world, self._batch_size = encoder, world, batch_size
        self._cache, self._show_progress = cache, show_progress
        self._key: dict[str, Any] | None = None
        self._row: dict[str, int] = {}
        self._features = torch.empty(0, encoder.embed_dim)

    def of(self, texts: Sequence[str]) -> torch.Tensor:
        """Features [len(texts), D] float32 on the CPU, L2-normalised, of texts that were added, repeats allowed."""
        return self._features[[self._row[text] for text in texts]]

    def add(self, texts: Sequence[str], what: str) -> None:
        """Encodes those not met before; a collective call. Many at once make full batches of like length.

        Args:
            texts: prompts or captions, repeats allowed.
            what: for the progress bar and messages.

        Raises:
            DataError: features that are not finite.
        """
        missing = sorted(set(texts) - self._row.keys())
        found = on_main(self._world, lambda: self._stored(missing)) or {}
        known = main_decides(self._world, lambda: [text for text in missing if text in found])
        rows = np.stack([found[text] for text in known]) if found else self._nothing()
        self._remember(known, gather_rows(self._world, rows))
        fresh = sorted(set(missing) - set(known))
        if not fresh:
            return
        fresh, features = self._encode(fresh, what)
        self._remember(fresh, features)
        if self._cache and self._key and self._world.is_main:
            self._cache.save_texts(self._key, fresh, features, self._about(what, len(fresh)))

    def _stored(self, texts: list[str]) -> dict[str, NDArray[np.float32]]:
        """Features of the texts that the cache has."""
        if not self._cache or not texts:
            return {}
        self._key = self._key or text_key(self._encoder)
        return self._cache.load_texts(self._key, texts)

    def _nothing(self) -> NDArray[np.float32]:
        return np.empty((0, self._encoder.embed_dim), np.float32)

    def _remember(self, texts: Sequence[str], features: NDArray[np.float32]) -> None:
        if texts:
            self._row |= {text: len(self._row) + i for i, text in enumerate(texts)}
            added = torch.from_numpy(features)
            # The first are most often all there will be, and large: they are not copied.
            self._features = torch.cat([self._features, added]) if len(self._features) else added

    def _encode(self, texts: list[str], what: str) -> tuple[list[str], NDArray[np.float32]]:
        """The texts in the order of their lengths, and their features [N, D]."""
        world, size = self._world, self._batch_size
        texts = [texts[row] for row in self._by_length(texts)]
        batches = [range(start, min(start + size, len(texts))) for start in range(0, len(texts), size)]
        mine = batches[world.rank :: world.world_size]
        shown = self._show_progress and world.is_main

        def share() -> NDArray[np.float32]:
            """This rank's batches: features [n, D] of its texts, in the order of their lengths."""
            found = np.empty((sum(map(len, mine)), self._encoder.embed_dim), np.float32)
            done = 0
            with progress(
                total=len(texts), desc=f"encode texts of {what}", unit="text", disable=not shown
            ) as bar:
                for rows in mine:
                    batch = texts[rows.start : rows.stop]
                    found[done : done + len(rows)] = self._encoder.encode_texts(
                        batch, batch_size=size
                    ).numpy()
                    done += len(rows)
                    bar.update(min(len(rows) * world.world_size, len(texts) - bar.n))
            return found

        features = gather_rows(world, all_attempt(world, share))
        if world.world_size > 1:  # one rank's are in order as they are
            taken = [rows for rank in range(world.world_size) for rows in batches[rank :: world.world_size]]
            gathered, features = features, np.empty_like(features)
            features[np.concatenate(taken)] = gathered
        self._check_finite(features, texts, what)
        return texts, features

    def _by_length(self, texts: list[str]) -> NDArray[np.int64]:
        """Row numbers in the order of token counts, the same on every rank; the ranks share the counting."""
        world = self._world
        share = texts[world.rank :: world.world_size]

        def count() -> NDArray[np.int64]:
            """Tokens of this rank's texts; tokens themselves take 600 bytes a text, so a block at a time."""
            blocks = [share[start : start + _BLOCK] for start in range(0, len(share), _BLOCK)]
            lengths = [length for block in blocks for length in self._encoder.text_lengths(block)]
            return np.asarray(lengths, np.int64)

        gathered = gather_rows(world, all_attempt(world, count))
        lengths = np.empty_like(gathered)
        numbers = np.arange(len(texts))
        lengths[np.concatenate([numbers[rank :: world.world_size] for rank in range(world.world_size)])] = (
            gathered
        )
        return np.argsort(lengths, kind="stable")

    def _check_finite(self, features: NDArray[np.float32], texts: Sequence[str], what: str) -> None:
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise DataError(
                f"{len(bad)} of {len(texts)} text features of {what} are not finite, the first is of "
                f"{texts[bad[0]]!r}, with {self._encoder.name} in {self._encoder.precision}; no score is made of them: "
                "try precision=fp32, or other weights"
            )

    def _about(self, what: str, rows: int) -> dict[str, Any]:
        encoder = self._encoder
        sha = encoder.weights_sha256
        return {
            "model": encoder.name, "precision": encoder.precision, "weights_sha256": sha, "what": what, "rows": rows,
        }  # fmt: skip
