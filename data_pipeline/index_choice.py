"""Which kind of index suits so many vectors: chosen from their number, their width and a memory budget, and printed.

Exact search for small sets, on the float16 numbers that the tagger stored. Above that an inverted file: vectors are
grouped by the nearest of `lists` centroids, and a query looks at the nearest groups only. Its codes take a byte a
dimension where that fits the budget, else product quantisation (Jegou et al. 2011) with as many bytes as fit. Codes
only choose candidates; they are then ranked by their stored float16 embeddings, so coarse codes cost time, not truth.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from crawl2clip.errors import ConfigError
from data_pipeline.index_faiss import load_faiss

_ID_BYTES = 8  # the row number that an inverted file keeps with each code
_HNSW_FROM_LISTS = 16_384  # from so many centroids on, finding the nearest of them needs a graph
_TRAIN_PER_LIST = 40  # vectors a centroid is trained on; faiss warns below 39
_PQ_DIVISORS = (2, 4, 8, 16, 32)  # dimensions a byte stands for


@dataclass(frozen=True)
class IndexChoice:
    """The kind of index and its parameters.

    Attributes:
        kind: exact, ivf_sq8 (a byte a dimension) or ivf_pq.
        rows: vectors it is made for.
        dim: of the vectors.
        lists: centroids of the inverted file; 0 for exact.
        code_bytes: bytes of a vector's code.
        hnsw: the centroids are searched through a graph.
        train_rows: vectors that centroids and codes are trained on.
        index_bytes: what codes and row numbers take together.
    """

    kind: str
    rows: int
    dim: int
    lists: int
    code_bytes: int
    hnsw: bool
    train_rows: int
    index_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def in_words(self) -> str:
        """One line for the log."""
        size = f"{self.code_bytes} bytes a vector, {self.index_bytes / 1e9:.3g} GB"
        if self.kind == "exact":
            return f"exact search of {self.rows:,} vectors of {self.dim} dimensions, {size}"
        coarse = ", found through HNSW" if self.hnsw else ""
        return (
            f"{self.kind} of {self.rows:,} vectors of {self.dim} dimensions: {self.lists:,} lists{coarse}, {size}, "
            f"trained on {self.train_rows:,}"
        )


def choose_index(rows: int, dim: int, *, exact_rows: int, memory_budget_gb: float) -> IndexChoice:
    """The kind of index for `rows` vectors of `dim` dimensions.

    Args:
        rows: 0 or more.
        dim: 1 or more.
        exact_rows: up to so many rows the search is exact.
        memory_budget_gb: what codes and row numbers may take, in 10^9 bytes.

    Raises:
        ConfigError: no code is small enough for the budget.
    """
    budget = memory_budget_gb * 1e9
    if rows <= exact_rows and rows * (2 * dim + _ID_BYTES) <= budget:
        return IndexChoice("exact", rows, dim, 0, 2 * dim, False, 0, rows * (2 * dim + _ID_BYTES))
    lists = 2 ** max(4, min(17, round(math.log2(2 * math.sqrt(max(rows, 1))))))
    sample = min(rows, _TRAIN_PER_LIST * lists, max(int(budget / (4 * dim)), 1))
    codes = [("ivf_sq8", dim)] + [("ivf_pq", dim // each) for each in _PQ_DIVISORS if dim % each == 0]
    for kind, code_bytes in codes:
        size = rows * (code_bytes + _ID_BYTES)
        if size <= budget:
            return IndexChoice(kind, rows, dim, lists, code_bytes, lists >= _HNSW_FROM_LISTS, sample, size)
    smallest = rows * (codes[-1][1] + _ID_BYTES) / 1e9
    raise ConfigError(
        f"index.memory_budget_gb is {memory_budget_gb:g}; {rows:,} vectors of {dim} dimensions need at least "
        f"{smallest:.3g} GB with the smallest code. Give {math.ceil(smallest * 10) / 10:g} or more: it is a file that "
        "is mapped, so the system keeps only what is searched"
    )


def make_empty(choice: IndexChoice) -> Any:
    """The faiss index of a choice, neither trained nor filled; scores are inner products: cosines of unit vectors."""
    faiss = load_faiss()

    if choice.kind == "exact":
        flat = faiss.IndexScalarQuantizer(
            choice.dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        return faiss.IndexIDMap(flat)
    coarse = (
        faiss.IndexHNSWFlat(choice.dim, 32, faiss.METRIC_INNER_PRODUCT)
        if choice.hnsw
        else faiss.IndexFlatIP(choice.dim)
    )
    if choice.kind == "ivf_sq8":
        return faiss.IndexIVFScalarQuantizer(
            coarse, choice.dim, choice.lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
    return faiss.IndexIVFPQ(
        coarse, choice.dim, choice.lists, choice.code_bytes, 8, faiss.METRIC_INNER_PRODUCT
    )


def train(choice: IndexChoice, sample: Any) -> Any:
    """An empty index whose centroids and codes are trained on `sample`, [N, D] float32 unit vectors."""
    index = make_empty(choice)
    if choice.kind != "exact":
        index.cp.niter = 10
        index.cp.seed = 1234
        # HNSW centroids are found by exact search while they are still moving.
        if choice.hnsw:
            faiss = load_faiss()

            index.clustering_index = faiss.IndexFlatIP(choice.dim)
    index.train(sample)
    return index
