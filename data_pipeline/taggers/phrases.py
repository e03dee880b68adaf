"""Finds which of many phrases stand in a text, all at once: an Aho-Corasick automaton (pyahocorasick).

Half a million phrases take 4 s and 150 MB to load, and a core then reads 40,000 captions a second, however many
phrases there are.
"""

from collections.abc import Iterable
from typing import Any

from crawl2clip.errors import ConfigError


def require_ahocorasick() -> None:
    """Checks that the package is installed.

    Raises:
        ConfigError: it is not.
    """
    import importlib.util

    if importlib.util.find_spec("ahocorasick") is None:
        raise ConfigError(
            "finding phrases needs the package pyahocorasick, which is not installed; pip install pyahocorasick, or "
            'pip install -e ".[data]"'
        )


class Phrases:
    """Phrases, each found as a run of whole words: text and phrases are compared with a space on both sides.

    Args:
        phrases: in order, as they stand in the spaced text; of equal ones the first counts.
    """

    def __init__(self, phrases: Iterable[str]) -> None:
        require_ahocorasick()
        import ahocorasick

        automaton: Any = ahocorasick.Automaton(ahocorasick.STORE_INTS)
        for number, phrase in enumerate(phrases):
            if not automaton.exists(f" {phrase} "):
                automaton.add_word(f" {phrase} ", number)
        self._empty = len(automaton) == 0
        self._automaton = automaton
        if not self._empty:
            automaton.make_automaton()

    def find(self, spaced: str) -> list[int]:
        """Numbers of the phrases in a text, one for each place, in the order in which they end.

        Args:
            spaced: the text, with a space before its first and after its last word.
        """
        return [] if self._empty else [number for _, number in self._automaton.iter(spaced)]
