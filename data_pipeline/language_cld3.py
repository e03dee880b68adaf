"""CLD3 as LAION-5B's workers ran it, for the extra `cld3`.

Their code is public (github.com/rvencu/crawlingathome-gpu-hcloud, ccpp.py): `NNetLanguageIdentifier` from 5 to 2,000
bytes over the alt text without its unprintable characters; a language counts only with `is_reliable`, and what
follows a hyphen in its code ("ru-Latn") is cut off. The package cld3-py builds the same model and sources for current
Pythons under the old import name; the original gcld3 works too, where it can be built.

Two small differences remain: the text has been cleaned by our rules, which decode entities and fold white space more
than ftfy alone does, and one of more than `extract.max_text_length` characters is cut before it is judged, not after.
"""

import importlib.util
import sys
from collections.abc import Sequence

from crawl2clip.errors import ConfigError
from data_pipeline.language import Detection, detect_each

MIN_BYTES, MAX_BYTES = 5, 2000  # LAION-5B's; a shorter text has no language

_NO_ANSWER = Detection(None, 0.0, False)
_UNDETERMINED = "und"


class Cld3Detector:
    """LAION-5B's detector, with its flag."""

    def __init__(self) -> None:
        import gcld3  # pyright: ignore[reportMissingImports] (an extra)

        self._find = gcld3.NNetLanguageIdentifier(MIN_BYTES, MAX_BYTES).FindLanguage

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """One answer a text, in order; no language for a text that CLD3 finds nothing in."""
        return detect_each(texts, self._detect_one)

    def _detect_one(self, text: str) -> Detection:
        if not text.isprintable():
            text = "".join(filter(str.isprintable, text))
        found = self._find(text.encode("utf-8", "replace"))
        if found.language == _UNDETERMINED:
            return _NO_ANSWER
        return Detection(found.language.partition("-")[0], found.probability, found.is_reliable)


def require_cld3() -> None:
    """Checks that the package is installed.

    Raises:
        ConfigError: it is not.
    """
    if "gcld3" not in sys.modules and importlib.util.find_spec("gcld3") is None:
        raise ConfigError(
            "language detector 'cld3' needs the package cld3-py, which is not installed; "
            'pip install -e ".[data,cld3]", or take the default: recipe=laion5b or tagger.language_detector=fasttext'
        )
