"""The list of pairs that explorers must not show: `<run>/takedown.uids.npy`, sorted, in DataComp's form.

It lies beside the index, not in it, so that an index that is built again still leaves them out; an explorer that is
open looks at the file's time before each request.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crawl2clip.files import atomic_path
from crawl2clip.schema import UID_DTYPE, uids_to_array
from data_pipeline.subset import open_uids

FILE = "takedown.uids.npy"


def read_hidden(folder: Path) -> np.ndarray:
    """A run's list, [N] of `UID_DTYPE`; empty when it has none."""
    path = folder / FILE
    return np.asarray(open_uids(path)) if path.exists() else np.empty(0, UID_DTYPE)


def hide_pairs(folder: Path, uids: Sequence[str]) -> int:
    """Adds uids to a run's list; how many it holds now.

    Raises:
        ValueError: an entry is not a uid.
    """
    path = folder / FILE
    merged = np.unique(np.concatenate([read_hidden(folder), uids_to_array(uids)]))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.save(file, merged)
    return len(merged)
