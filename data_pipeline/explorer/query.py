"""The vector that a search looks for: the weighted sum of its terms, each of length one."""

from collections.abc import Sequence

import numpy as np

from crawl2clip.errors import ConfigError
from data_pipeline.explorer.library import Library
from data_pipeline.explorer.requests import Term
from data_pipeline.explorer.takedown import Takedown
from data_pipeline.explorer.towers import Towers
from data_pipeline.index_embeddings import unit

_SMALLEST = 1e-4  # length of a sum that still points somewhere


def query_vector(
    terms: Sequence[Term], library: Library, towers: Towers | None, takedown: Takedown
) -> np.ndarray:
    """[D] float32, of length one.

    Raises:
        ConfigError: a term has no embedding here, is of another width, or the terms cancel out.
    """
    total: np.ndarray | float = 0.0
    for term in terms:
        total = total + term.weight * _vector(term, library, towers, takedown)
    length = float(np.linalg.norm(total))
    if length < _SMALLEST:
        raise ConfigError("the terms of the query cancel each other out; change a weight or leave one out")
    return (np.asarray(total) / length).astype(np.float32)


def _vector(term: Term, library: Library, towers: Towers | None, takedown: Takedown) -> np.ndarray:
    if term.text is not None:
        return require_towers(towers).encode_text(term.text, term.tower)
    if term.embedding is not None:
        return _given(term.embedding, library)
    assert term.uid is not None
    row = library.find(term.uid)
    if row is None or takedown.holds(row):
        raise ConfigError(f"the query names the pair {term.uid}, which is not here; give the uid of a result")
    if term.by == "image":
        vector = library.embeddings_of("image", np.array([row]))[0]
        if not np.isfinite(vector).all() or not vector.any():
            raise ConfigError(
                f"the pair {term.uid} has no image embedding (see its clip_error); search by its caption"
            )
        return vector
    if "text" in library.modalities:
        vector = library.embeddings_of("text", np.array([row]))[0]
        if np.isfinite(vector).all() and vector.any():
            return vector
    caption = library.take(np.array([row]), ["text"])["text"][0]
    return require_towers(towers).encode_text(caption, term.tower)


def require_towers(towers: Towers | None) -> Towers:
    """The towers.

    Raises:
        ConfigError: the server was started without them.
    """
    if towers is None:
        raise ConfigError(
            "this explorer runs with text_search=false, so it has no model for texts and uploads; search by uid or "
            "embedding, or start it with text_search=true"
        )
    return towers


def _given(values: Sequence[float], library: Library) -> np.ndarray:
    dim = library.runs[0].indexes[library.modalities[0]].dim
    with np.errstate(over="ignore"):  # too large for float32 is told below
        vector = np.array(values, np.float32)
    if len(vector) != dim:
        raise ConfigError(
            f"the query's embedding has {len(vector)} numbers; those of this index have {dim}: give one of its model"
        )
    if not np.isfinite(vector).all() or not vector.any():
        raise ConfigError(
            "the query's embedding is all zero or too large; give finite numbers of some length"
        )
    return unit(vector / np.abs(vector).max())  # whose squares are neither infinite nor zero
