"""A split as ranks pass it on and the cache keeps it: arrays, and what is known of each sample besides its image."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from crawl2clip.distributed import World
from evaluate.data.samples import ImageFault, Record, Split
from evaluate.data.subset_split import SubsetSplit
from evaluate.ranks import gather_rows


class Facts(NamedTuple):
    """What is known of a sample besides its image, JSON-able."""

    label: int | None
    captions: list[str] | None
    targets: list[int] | None
    key: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class Encoded:
    """What a rank found in its batches, or all ranks together."""

    indices: NDArray[np.int64]  # [N] positions in the split
    features: NDArray[np.float32]  # [N, D]
    penultimate: NDArray[np.float32]  # [N, W], or [N, 0] when it was not asked for
    facts: list[Facts]
    faults: list[tuple[int, ImageFault]]  # position in the split and what is wrong


def facts_of(record: Record) -> Facts:
    """What a sample says besides its image."""
    return Facts(
        record.label, record.captions, record.targets, record.key or str(record.index), record.metadata
    )


def gathered(world: World, mine: Encoded | None) -> Encoded:
    """All ranks' shares in the order of the split; a rank with nothing gives None."""
    widths = world.all_gather_object(
        None if mine is None else (mine.features.shape[1], mine.penultimate.shape)
    )
    dim = next(found[0] for found in widths if found is not None)
    # A rank without a batch does not know the width before the projection.
    pooled = max((found[1][1] for found in widths if found is not None), default=0)
    if mine is None:
        nothing = np.empty((0, dim), np.float32)
        mine = Encoded(np.empty(0, np.int64), nothing, np.empty((0, pooled), np.float32), [], [])
    before = mine.penultimate if len(mine.penultimate) else np.empty((len(mine.indices), pooled), np.float32)
    parts = world.all_gather_object((mine.facts, mine.faults))
    indices = gather_rows(world, mine.indices)
    order = np.argsort(indices)
    facts = [entry for part, _ in parts for entry in part]
    return Encoded(
        indices[order],
        gather_rows(world, mine.features)[order],
        gather_rows(world, before)[order],
        [facts[row] for row in order],
        sorted((fault for _, part in parts for fault in part), key=lambda fault: fault[0]),
    )


def chosen(encoded: Encoded, split: SubsetSplit) -> Encoded:
    """The samples that a subset keeps of a whole split, under its positions and labels."""
    place = {index: place for place, index in enumerate(split.indices)}
    rows = [row for row, index in enumerate(encoded.indices.tolist()) if index in place]
    kept = np.asarray([place[index] for index in encoded.indices[rows].tolist()], np.int64)
    return Encoded(
        kept,
        encoded.features[rows],
        encoded.penultimate[rows],
        [encoded.facts[row]._replace(label=split.labels[at]) for row, at in zip(rows, kept, strict=True)],
        [(place[index], fault) for index, fault in encoded.faults if index in place],
    )


def known_facts(split: Split) -> list[Facts] | None:
    """What a split knows of its samples without decoding them; None for one that has to read them."""
    keys = getattr(split, "keys", None)
    if getattr(split, "content_sha256", None) is None or keys is None:
        return None
    labels, captions, targets, metadata = (
        getattr(split, name, None) or None for name in ("labels", "captions", "targets", "metadata")
    )
    return [
        Facts(
            labels[i] if labels else None,
            captions[i] if captions else None,
            targets[i] if targets else None,
            keys[i],
            metadata[i] if metadata else {},
        )
        for i in range(split.num_samples)
    ]


def to_arrays(encoded: Encoded, split: Split) -> dict[str, NDArray[Any]]:
    """What the cache keeps of a split: indices [N], features [N, D], penultimate [N, W] where there are any, and JSON.

    What the split knows without decoding (`known_facts`) is left out, so that one file serves every task and language.
    """
    rest = {
        "facts": None if known_facts(split) is not None else [list(fact) for fact in encoded.facts],
        "faults": [(index, fault.where, fault.reason) for index, fault in encoded.faults],
    }
    arrays = {"indices": encoded.indices, "features": encoded.features, "rest": np.asarray(json.dumps(rest))}
    return {**arrays, "penultimate": encoded.penultimate} if encoded.penultimate.size else arrays


def from_arrays(arrays: dict[str, NDArray[Any]], split: Split) -> Encoded:
    """The inverse of `to_arrays`; what the split knows of its samples is taken from it and not from the arrays."""
    rest, indices = json.loads(str(arrays["rest"])), arrays["indices"]
    known = known_facts(split)
    facts = [known[i] for i in indices] if known is not None else [Facts(*entry) for entry in rest["facts"]]
    faults = [(index, ImageFault(where, reason)) for index, where, reason in rest["faults"]]
    penultimate = arrays.get("penultimate", np.empty((len(indices), 0), np.float32))
    return Encoded(indices, arrays["features"], penultimate, facts, faults)
