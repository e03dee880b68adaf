"""Everything the routes answer with, without HTTP: searches, facets, samples, pictures, exports.

What the policy says is applied here, once, to whatever leaves: an unsafe image has no address and no sharp picture.
"""

import hashlib
import json
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from crawl2clip.errors import ConfigError
from data_pipeline.explorer.config import ExplorerConfig, Showing
from data_pipeline.explorer.detail import near_duplicates, recipes_of, sample_detail
from data_pipeline.explorer.export import write_export
from data_pipeline.explorer.facets import FacetEngine
from data_pipeline.explorer.filters import FilterEngine
from data_pipeline.explorer.images import picture, stored_image, uploaded_image
from data_pipeline.explorer.library import Library, model_name
from data_pipeline.explorer.overview import describe, funnel_of
from data_pipeline.explorer.query import query_vector, require_towers
from data_pipeline.explorer.ranking import Hit, Ranking
from data_pipeline.explorer.requests import ExportRequest, Filter, SearchRequest
from data_pipeline.explorer.safety import JUDGED_BY, SafetyPolicy
from data_pipeline.explorer.takedown import Takedown
from data_pipeline.explorer.towers import Towers
from data_pipeline.index_columns import DECISION
from data_pipeline.index_search import Allowed

_CARD = ("url", "text", "language", "clip_score", "aesthetic", "short_side", "aspect_ratio")
_REMEMBERED = 128  # searches, and as many filters


class NotHereError(Exception):
    """No such pair, or none that may be seen; the two are not told apart."""


class Explorer:
    """Some runs, their model and the policy; thread-safe."""

    def __init__(self, config: ExplorerConfig) -> None:
        """Opens the runs and loads the model.

        Raises:
            ConfigError: runs of several models, or a model that did not make the index.
            DataError: a run without an index, or weights that are missing.
        """
        self._config = config
        self.library = Library(config.runs)
        self.policy = SafetyPolicy(config.safety, config.host)
        self.takedown = Takedown(self.library)
        self.filters = FilterEngine(self.library, self.policy, self.takedown)
        self._facets = FacetEngine(self.library, self.filters, self.takedown)
        self.towers = self._load_towers() if config.text_search else None
        self._rankings: OrderedDict[str, Ranking] = OrderedDict()
        self._allowed: OrderedDict[Any, list[Allowed]] = OrderedDict()
        self._lock = Lock()

    def _load_towers(self) -> Towers:
        config, indexed = self._config, self.library.model
        towers = Towers(indexed, model=config.model, pretrained=config.pretrained, device=config.device)
        dim = self.library.runs[0].indexes["image"].dim
        if towers.dim != dim:
            raise ConfigError(
                f"the index of {model_name(indexed)} has {dim} dimensions, the model has {towers.dim}; give model and "
                "pretrained of the model that made the index"
            )
        return towers

    def info(self) -> dict[str, Any]:
        """What there is to explore."""
        towers = self.towers.names if self.towers else []
        return describe(self.library, self.policy, towers, self._recipes, self._config)

    @cached_property
    def _recipes(self) -> list[str]:
        """Those that judged the rows, the run's own first."""
        own = [told["recipe"]["name"] for run in self.library.runs for told in recipes_of(run.folder)]
        judged = [name.removeprefix(DECISION) for name in self.library.columns if name.startswith(DECISION)]
        return [name for name in dict.fromkeys([*own, *judged]) if name in judged]

    def search(self, asked: SearchRequest) -> dict[str, Any]:
        """A page of results.

        Raises:
            ConfigError: the request does not fit this index.
        """
        if not asked.query:
            return self._browse(asked)
        ranking = self._ranking(asked)
        hits = ranking.page(asked.cursor, asked.limit)
        following = asked.cursor + len(hits)
        goes_on = following < len(ranking.hits) or not ranking.ended
        return {
            "results": self._results(hits),
            "next": following if goes_on and hits else None,
            "cut": ranking.cut and not goes_on,
            "matching": sum(each.count for each in self._allow(asked.filters)),
        }

    def _browse(self, asked: SearchRequest) -> dict[str, Any]:
        """Rows that pass the filters, without a query."""
        rows = self._matching(asked.filters)
        page = rows[asked.cursor : asked.cursor + asked.limit]
        following = asked.cursor + len(page)
        return {
            "results": self._results([Hit(int(row), float("nan")) for row in page]),
            "next": following if following < len(rows) else None,
            "cut": False,
            "matching": len(rows),
        }

    def _matching(self, filters: list[Filter]) -> np.ndarray:
        """Rows, in order, of all runs."""
        runs = self.library.runs
        return np.concatenate(
            [
                np.flatnonzero(mask) + run.base
                for run, mask in zip(runs, self.filters.masks(filters), strict=True)
            ]
        )

    def _allow(self, filters: list[Filter]) -> list[Allowed]:
        key = (self.takedown.refresh(), tuple(sorted(each.model_dump_json() for each in filters)))
        with self._lock:
            if key in self._allowed:
                self._allowed.move_to_end(key)
                return self._allowed[key]
        made = self.filters.allowed(filters)
        with self._lock:
            self._allowed[key] = made
            if len(self._allowed) > _REMEMBERED:
                self._allowed.popitem(last=False)
        return made

    def _ranking(self, asked: SearchRequest) -> Ranking:
        """The search, as far as it has been read before."""
        if asked.modality not in self.library.modalities:
            raise ConfigError(
                f"the search is over {asked.modality} embeddings, this index has {', '.join(self.library.modalities)}; "
                "choose one of these, or tag with text embeddings and index again"
            )
        allowed = self._allow(asked.filters)
        vector = query_vector(asked.query, self.library, self.towers, self.takedown)
        rest = asked.model_dump(exclude={"query", "cursor", "limit", "format", "rows"})
        described = json.dumps([rest, self.takedown.version], sort_keys=True).encode()
        key = hashlib.sha256(vector.tobytes() + described).hexdigest()
        with self._lock:
            if key in self._rankings:
                self._rankings.move_to_end(key)
                return self._rankings[key]
        low = -1.0 if asked.min_similarity is None else asked.min_similarity
        high = 1.0 if asked.max_similarity is None else asked.max_similarity
        ranking = Ranking(
            self.library,
            asked.modality,
            vector,
            allowed,
            similarity=(low - 1e-6, high + 1e-6),
            duplicate_cosine=self._config.duplicate_cosine if asked.fold else None,
            opposed=self._opposed() if asked.hide_violence else None,
            depth=self._config.limits.results,
        )
        with self._lock:
            self._rankings[key] = ranking
            if len(self._rankings) > _REMEMBERED:
                self._rankings.popitem(last=False)
        return ranking

    def _opposed(self) -> tuple[np.ndarray, np.ndarray] | None:
        towers, safety = require_towers(self.towers), self._config.safety
        if not safety.violent_prompts or not safety.harmless_prompts:
            raise ConfigError(
                "hide_violence needs safety.violent_prompts and safety.harmless_prompts; give both"
            )
        violent, harmless = (
            np.stack([towers.encode_text(prompt) for prompt in prompts])
            for prompts in (safety.violent_prompts, safety.harmless_prompts)
        )
        return violent, harmless

    def _results(self, hits: list[Hit]) -> list[dict[str, Any]]:
        """Results as they are sent."""
        own = self._recipes[:1]
        verdict = [DECISION + name for name in own]
        rows = np.array([hit.row for hit in hits], np.int64)
        taken = self.library.take(rows, [*_CARD, *JUDGED_BY, *verdict])
        showing = self.policy.showing(taken)
        folded = self._uids(np.array([row for hit in hits for row in hit.folded], np.int64))
        results, used = [], 0
        for place, (hit, shown) in enumerate(zip(hits, showing, strict=True)):
            result: dict[str, Any] = {name: taken[name][place] for name in ("uid", *_CARD)}
            result["similarity"] = None if np.isnan(hit.similarity) else round(hit.similarity, 6)
            result["decision"] = taken[verdict[0]][place] if verdict else None
            result["folded"] = folded[used : used + len(hit.folded)]
            used += len(hit.folded)
            result["showing"] = shown.value
            if shown != Showing.show:
                result["url"] = None
            results.append(result)
        return results

    def _uids(self, rows: np.ndarray) -> list[str]:
        return self.library.take(rows, [])["uid"]

    def facets(self, filters: list[Filter]) -> dict[str, Any]:
        """Counts by column; see FacetEngine."""
        return self._facets.facets(filters)

    def _visible(self, uid: str) -> tuple[int, Showing]:
        """The row of a uid, and how it may be shown.

        Raises:
            NotHereError: there is none, it was taken down, or it is withheld.
        """
        row = self.library.find(uid)
        if row is None or self.takedown.holds(row):
            raise NotHereError(uid)
        showing = self.policy.showing(self.library.take(np.array([row]), list(JUDGED_BY)))[0]
        if showing == Showing.withhold:
            raise NotHereError(uid)
        return row, showing

    def sample(self, uid: str) -> dict[str, Any]:
        """All about a pair.

        Raises:
            NotHereError: it cannot be seen.
        """
        row, showing = self._visible(uid)
        detail = sample_detail(self.library, row)
        near = [
            Hit(other, score)
            for other, score in near_duplicates(self.library, row, self._config.duplicate_cosine)
            if not self.takedown.holds(other)
        ]
        detail["near_duplicates"] = [
            result for result in self._results(near) if result["showing"] != Showing.withhold.value
        ]
        detail["showing"] = showing.value
        if showing != Showing.show:
            detail["url"] = None
            for name in ("md5", "sha256", "phash"):
                detail["download"].pop(name, None)
            detail["provenance"]["page_url"] = None
        return detail

    def picture(self, uid: str, size: int) -> bytes | None:
        """A WebP file; None when the image does not decode.

        Raises:
            NotHereError: it cannot be seen.
        """
        row, showing = self._visible(uid)
        image = stored_image(self.library, row)
        return None if image is None else picture(image, size, blurred=showing == Showing.blur)

    def embed_upload(self, body: bytes) -> list[float]:
        """The embedding of an uploaded image.

        Raises:
            ConfigError: the server has no model.
            DataError: it is no image that is taken.
        """
        towers = require_towers(self.towers)
        image = uploaded_image(body, self._config.limits.upload_pixels)
        return [round(float(value), 6) for value in towers.encode_image(image)]

    def export(self, asked: ExportRequest, path: Path) -> int:
        """Writes a file of results or of all rows that pass the filters; how many rows it has."""
        most = min(asked.rows or self._config.limits.export_rows, self._config.limits.export_rows)
        similarities = None
        if asked.query:
            hits = self._ranking(asked).page(0, most)
            rows = np.array([hit.row for hit in hits], np.int64)
            similarities = np.array([hit.similarity for hit in hits], np.float32)
        else:
            rows = self._matching(asked.filters)[:most]
        showing = self.policy.showing(self.library.take(rows, list(JUDGED_BY)))
        hidden = np.array([each != Showing.show for each in showing], bool)
        return write_export(path, asked.format, self.library, rows, similarities, hidden)

    def funnel(self) -> list[dict[str, Any]]:
        """For each run its stages and its recipes, as the report has them."""
        return [funnel_of(run) for run in self.library.runs]
