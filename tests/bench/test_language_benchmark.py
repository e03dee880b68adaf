"""The language benchmark runs and ends with its result lines; its texts are what they say. No figure is judged."""

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.language_texts import CAPTIONS_A_LANGUAGE, MAIN_LANGUAGES, labelled_texts

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("emoji", reason='needs emoji: pip install -e ".[examples]"')


def test_the_labelled_texts():
    texts = labelled_texts()
    assert texts == labelled_texts()
    assert len({each.text for each in texts}) == len(texts) > 50_000
    counts = Counter((each.set, each.language) for each in texts)
    assert {language for name, language in counts if name == "names"} == set(MAIN_LANGUAGES)
    assert len({language for name, language in counts if name == "captions"}) == 90
    assert all(number <= CAPTIONS_A_LANGUAGE for (name, _), number in counts.items() if name != "names")
    assert all(counts["names", language] > 1200 for language in MAIN_LANGUAGES)
    for each in texts:
        assert each.text == " ".join(each.text.split())
        assert "{}" not in each.text
        assert "skin tone" not in each.text


@pytest.mark.skipif(
    importlib.util.find_spec("gcld3") is None, reason='needs the extra cld3: pip install -e ".[data,cld3]"'
)
def test_the_benchmark_ends_with_its_results():
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "language.py"), "texts=200", "repeats=1"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    for name, line in zip(("fasttext", "cld3"), done.stdout.splitlines()[-2:], strict=True):
        pattern = rf"result name=language_{name}_captions_per_s ours=\d+ peer=\d+ floor=\d+ target=\d+ unit=captions/s"
        assert re.fullmatch(pattern, line)
    assert "| two captions, 90 languages | all |" in done.stdout
