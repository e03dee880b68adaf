"""faiss, imported where it is used: with a clear error where it is missing, and with a quiet loader."""

import importlib.util
import logging
from typing import Any

from crawl2clip.errors import ConfigError


def require_faiss() -> None:
    """Checks that faiss is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError(
            "the index needs the package faiss-cpu, which is not installed; pip install -e '.[data,explorer]'"
        )


def load_faiss() -> Any:
    """The module."""
    require_faiss()
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    import faiss

    return faiss
