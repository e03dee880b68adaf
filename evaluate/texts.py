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


class TextFeatures:
    """Encodes on demand and remembers; every rank calls with the same texts and gets the same features."""

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

    def of(self, texts: Sequence[str], what: str) -> torch.Tensor:
        """Features of texts, encoding those not met before; a collective call.

        Args:
            texts: prompts or captions, repeats allowed.
            what: for the progress bar and messages.

        Returns:
            [len(texts), D] float32 on the CPU, L2-normalised.

        Raises:
            DataError: features that are not finite.
        """
        self.add(texts, what)
        return self._features[[self._row[text] for text in texts]]

    def add(self, texts: Sequence[str], what: str) -> None:
        """Makes `of` know texts; many at once make full batches of like length. Arguments and errors as there."""
        missing = sorted(set(texts) - self._row.keys())
        found = on_main(self._world, lambda: self._stored(missing)) or {}
        known = main_decides(self._world, lambda: [text for text in missing if text in found])
        rows = np.stack([found[text] for text in known]) if found else self._nothing()
        self._remember(known, gather_rows(self._world, rows))
        fresh = sorted(set(missing) - set(known))
        if not fresh:
            return
        features = self._encode(fresh, what)
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
            self._features = torch.cat([self._features, torch.from_numpy(features)])

    def _encode(self, texts: list[str], what: str) -> NDArray[np.float32]:
        world, size = self._world, self._batch_size
        order = self._by_length(texts)
        mine = range(0, len(texts), size)[world.rank :: world.world_size]
        shown = self._show_progress and world.is_main

        def share() -> NDArray[np.float32]:
            """This rank's batches: features [n, D] of its texts, in the order of their lengths."""
            parts = [self._nothing()]
            with progress(
                total=len(texts), desc=f"encode texts of {what}", unit="text", disable=not shown
            ) as bar:
                for start in mine:
                    batch = [texts[row] for row in order[start : start + size]]
                    parts.append(self._encoder.encode_texts(batch, batch_size=size).numpy())
                    bar.update(min(len(batch) * world.world_size, len(texts) - bar.n))
            return np.concatenate(parts)

        gathered = gather_rows(world, all_attempt(world, share))
        rows = [order[start : start + size] for start in range(0, len(texts), size)]
        taken = [part for rank in range(world.world_size) for part in rows[rank :: world.world_size]]
        features = np.empty_like(gathered)
        features[np.concatenate(taken)] = gathered
        self._check_finite(features, texts, what)
        return features

    def _by_length(self, texts: list[str]) -> NDArray[np.int64]:
        """Row numbers in the order of token counts, the same on every rank; the ranks share the counting."""
        world = self._world
        share = texts[world.rank :: world.world_size]
        counts = all_attempt(world, lambda: np.asarray(self._encoder.text_lengths(share), np.int64))
        gathered = gather_rows(world, counts)
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
