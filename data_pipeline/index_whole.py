"""The last step of the index stage: the parts' indexes as one, and how well it finds what exact search finds.

Inverted lists are merged into one file on disk, list by list, so memory does not grow with them. Then the search
effort is raised until recall@10 against exact search reaches the target, measured on embeddings of the data: images
and captions, where both are there.
Writes `whole.<modality>.faiss` (with `whole.<modality>.ivfdata`) and `whole.index.json`, which also has the parts that
are in it: until a run that has grown is merged again, what it had before can be searched.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crawl2clip.files import read_json
from data_pipeline.index_faiss import load_faiss
from data_pipeline.index_growth import forget, has_own_settings, shard_digest
from data_pipeline.index_plan import read_plan
from data_pipeline.index_rows import PartRows
from data_pipeline.index_search import Effort, VectorIndex, open_index
from data_pipeline.index_vectors import PartVectors
from data_pipeline.stage import Counts, Shard, Stage, is_finished, read_stats

logger = logging.getLogger(__name__)

RECORD_NAME = "whole.index.json"
_CANDIDATES = {"exact": 1, "ivf_sq8": 4, "ivf_pq": 16}  # for each result; coarser codes need more
_MAX_CANDIDATES = 256  # for each result: each is a read of an embedding
_WORTH = 0.005  # of recall, below which doubling an effort is not
_NEIGHBOURS = 10
_BLOCK = 50_000  # vectors that are compared at a time


@dataclass
class WholeStage(Stage):
    """Merges the parts and measures recall."""

    name: str
    folder: Path
    settings: dict[str, Any]
    plan: Path
    parts: Path
    recall_queries: int
    min_recall: float
    max_workers: int | None = 1

    def shards(self) -> list[Shard]:
        """One, of all parts."""
        plan = read_plan(self.plan)
        inputs = [
            str(self.parts / f"{part['name']}.{modality}.{kind}")
            for modality in plan["modalities"]
            for part in plan["parts"]
            for kind in ("faiss", "vectors.npy")
        ]
        return [Shard("whole", tuple(inputs))]

    def prepare(self) -> None:
        """Has the whole made again when it is not of the parts that there are now."""
        if not has_own_settings(self):
            return
        path = self.folder / RECORD_NAME
        merged = is_finished(self.folder, "whole") and read_json(path)["parts"] == self._parts()
        forget(self, *([] if merged else ["whole"]))

    def _parts(self) -> list[dict[str, Any]]:
        """name, base and shards of each part, and a digest of its record."""
        return [
            {
                **{key: part[key] for key in ("name", "base", "shards")},
                "digest": shard_digest([self.parts], part["name"]),
            }
            for part in read_plan(self.plan)["parts"]
        ]

    def run(self, context: None, shard: Shard, temporary: Path) -> Counts:
        """Writes the whole index."""
        plan = read_plan(self.plan)
        record: dict[str, Any] = {"modalities": {}, "parts": self._parts()}
        parts = open_parts(record["parts"], self.parts)
        for modality, choice in plan["modalities"].items():
            files = [str(self.parts / f"{part.name}.{modality}.faiss") for part in parts]
            target = temporary / f"whole.{modality}.faiss"
            if choice["kind"] == "exact":
                merge_exact(str(self.plan / f"plan.{modality}.faiss"), files, str(target))
            else:
                merge_lists(str(self.plan / f"plan.{modality}.faiss"), files, target)
            modalities = sorted(plan["modalities"], key=lambda each: each != modality)
            record["modalities"][modality] = self._measure(modalities, choice["kind"], parts, target)
        (temporary / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
        counts = Counts(rows_in=sum(len(part) for part in parts), rows_out=sum(len(part) for part in parts))
        for part in parts:
            counts.extra.update(read_stats(self.parts, part.name)["counts"]["extra"])
        return counts

    def _measure(self, modalities: list[str], kind: str, parts: list[PartRows], path: Path) -> dict[str, Any]:
        """The effort that reaches the target, and the recall it was measured at.

        Args:
            modalities: what was indexed, then the other one.
            kind: of the index.
            parts: the rows.
            path: the index.
        """
        opened, modality = open_index(path), modalities[0]
        candidates = _CANDIDATES[kind]
        found = {"kind": kind, "vectors": int(opened.ntotal), "lists": 0, "candidates": candidates}
        if kind == "exact":
            return found | {"recall_at_10": 1.0, "recall_queries": 0}
        vectors = open_vectors(parts, modality)
        drawn = [self._queries(parts, open_vectors(parts, each)) for each in modalities]
        # Captions are asked for with images and images with captions, and those lie elsewhere than what was indexed: an
        # index that is tuned on its own vectors alone is worse for them. A pair does not count as its own neighbour.
        queries = np.concatenate([vectors for vectors, _ in drawn])
        own = np.concatenate(
            [rows if number == 0 else np.full_like(rows, -1) for number, (_, rows) in enumerate(drawn)]
        )
        truth = exact_neighbours(parts, vectors, queries, own)
        # Both lists that are searched and candidates that are compared by their embeddings bound the recall: one is
        # doubled as long as that gains, then the other.
        lists, recall, more_lists = 4, 0.0, True
        while True:
            searched = VectorIndex(opened, parts, vectors, Effort(lists, candidates))
            before, recall = recall, recall_of(searched, queries, own, truth)
            logger.info(
                "recall@10 of %ss with %d lists and %d candidates a result: %.3f",
                modality,
                lists,
                candidates,
                recall,
            )
            all_lists, all_candidates = lists >= opened.nlist, candidates >= _MAX_CANDIDATES
            if recall >= self.min_recall or (all_lists and all_candidates):
                break
            if recall - before < _WORTH:
                more_lists = not more_lists
            if all_candidates or (more_lists and not all_lists):
                lists = min(lists * 2, opened.nlist)
            else:
                candidates = min(candidates * 2, _MAX_CANDIDATES)
        if recall < self.min_recall:
            logger.warning(
                "recall@10 of %ss is %.3f with every list searched and %d candidates a result, the target is %.3f: "
                "codes of %d bytes are too coarse. Raise index.memory_budget_gb",
                modality, recall, candidates, self.min_recall, opened.code_size,
            )  # fmt: skip
        return found | {
            "lists": lists, "candidates": candidates,
            "recall_at_10": round(recall, 4), "recall_queries": len(queries),
        }  # fmt: skip

    def _queries(self, parts: list[PartRows], vectors: list[PartVectors]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of some rows [Q, D], drawn by chance, and the rows themselves, which do not count as found."""
        total = sum(len(part) for part in parts)
        drawn = np.sort(
            np.random.default_rng(0).choice(total, min(self.recall_queries, total), replace=False)
        )
        queries, rows, start = [], [], 0
        for part, some in zip(parts, vectors, strict=True):
            inside = drawn[(drawn >= start) & (drawn < start + len(part))] - start
            queries.append(some.take(inside))
            rows.append(part.base + inside)
            start += len(part)
        found, own = np.concatenate(queries), np.concatenate(rows)
        there = np.isfinite(found[:, 0])
        return found[there], own[there]


def merge_exact(trained: str, files: list[str], target: str) -> None:
    """The vectors of all parts in one exact index, which is small by choice."""
    faiss = load_faiss()

    whole = faiss.read_index(trained)
    for path in files:
        part = faiss.read_index(path)
        whole.merge_from(part, 0)
    faiss.write_index(whole, target)


def merge_lists(trained: str, files: list[str], target: Path) -> None:
    """The inverted lists of all parts in one file, which is mapped when it is searched."""
    faiss = load_faiss()

    whole = faiss.read_index(trained)
    opened = [faiss.read_index(path, faiss.IO_FLAG_MMAP) for path in files]
    pointers = faiss.InvertedListsPtrVector()
    for part in opened:
        pointers.push_back(part.invlists)
    data = str(target.with_suffix(".ivfdata"))
    lists = faiss.OnDiskInvertedLists(whole.nlist, whole.code_size, data)
    whole.ntotal = lists.merge_from_multiple(pointers.data(), pointers.size(), False)
    whole.replace_invlists(lists, True)
    lists.this.disown()  # the index owns them now
    faiss.write_index(whole, str(target))


def exact_neighbours(
    parts: list[PartRows], vectors: list[PartVectors], queries: np.ndarray, own: np.ndarray
) -> np.ndarray:
    """The nearest rows [Q, 10] by comparing with everything, itself left out; -1 where there are fewer."""
    best_rows = np.full((len(queries), _NEIGHBOURS), -1, np.int64)
    best_scores = np.full((len(queries), _NEIGHBOURS), -np.inf, np.float32)
    for part, some in zip(parts, vectors, strict=True):
        listed = part.base + some.rows()
        for start in range(0, len(some), _BLOCK):
            rows = listed[start : start + _BLOCK]
            scores = queries @ some.block(start, start + len(rows)).T
            scores[own[:, None] == rows[None]] = -np.inf
            count = min(_NEIGHBOURS, len(rows))
            top = np.argpartition(-scores, count - 1, axis=1)[:, :count]
            all_scores = np.hstack([best_scores, np.take_along_axis(scores, top, 1)])
            all_rows = np.hstack([best_rows, rows[top]])
            order = np.argsort(-all_scores, axis=1, kind="stable")[:, :_NEIGHBOURS]
            best_scores = np.take_along_axis(all_scores, order, 1)
            best_rows = np.take_along_axis(all_rows, order, 1)
    best_rows[~np.isfinite(best_scores)] = -1
    return best_rows


def recall_of(whole: VectorIndex, queries: np.ndarray, own: np.ndarray, truth: np.ndarray) -> float:
    """Fraction of the true neighbours that the index finds among as many."""
    hits = total = 0
    for query, row, expected in zip(queries, own, truth, strict=True):
        found = whole.nearest(query, _NEIGHBOURS + 1, None)[0]
        found = found[found != row][:_NEIGHBOURS]
        expected = expected[expected >= 0]
        hits += len(np.intersect1d(found, expected))
        total += len(expected)
    return hits / total if total else 1.0


def open_parts(parts: Sequence[dict[str, Any]], folder: Path) -> list[PartRows]:
    """The rows of the parts that a record of the whole has, open."""
    return [PartRows(folder, part["name"], part["base"], part["shards"]) for part in parts]


def open_vectors(parts: list[PartRows], modality: str) -> list[PartVectors]:
    """The embeddings of every part, open.

    Raises:
        DataError: a file of one is missing or damaged.
    """
    return [PartVectors(part.folder, part.name, modality, len(part)) for part in parts]
