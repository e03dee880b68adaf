"""HEIC, read by pillow-heif where that is installed (`pip install -e ".[data,heic]"`).

It is an extra because its wheels bring libheif with codecs under the LGPL and GPL, which not everyone may ship.
"""

from importlib.util import find_spec
from typing import Any


def heic_is_installed() -> bool:
    """Whether HEIC can be decoded here."""
    return find_spec("pillow_heif") is not None


def open_heic(body: bytes) -> Any:
    """The file's primary image and the others, as pillow-heif has them; no pixel is decoded yet."""
    from pillow_heif import open_heif  # pyright: ignore[reportMissingImports]

    return open_heif(body, convert_hdr_to_8bit=True)
