"""What two language detectors' answers come to: how often they agree, on what, and what the rest looks like.

`measure_agreement` counts, as plain JSON values; `agreement_markdown` shows the counts. Every fraction has its Wilson
interval. The surprising part: agreement is not accuracy. Both are often wrong together about a single word; the
labelled check in benchmarks/language.py says how often each is right.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from crawl2clip.wilson import wilson_interval
from data_pipeline.language import Detection, LanguageBucket, bucket

BUCKETS = tuple(each.value for each in LanguageBucket)
LENGTHS = (0, 10, 20, 40, 80)
"""The first number of characters of each group of texts by length; the last has no end."""

SAME_LANGUAGE = {"iw": "he", "fil": "tl", "nn": "no"}
"""Codes that mean the same language to the two detectors: CLD3 has `iw` and `fil`, and one Norwegian."""

EXAMPLES_PER_CELL = 5
_LANGUAGE_PAIRS = 20
_SHOWN_CHARACTERS = 100
_MARKDOWN = re.compile(
    r"([!-&*+.:-@\[-`{-~])"
)  # ASCII punctuation that may mean something within a table's cell


class JudgedText(NamedTuple):
    """A text and what each detector says of it."""

    text: str
    fasttext: Detection
    cld3: Detection


def measure_agreement(judged: Sequence[JudgedText], min_probability: float) -> dict[str, Any]:
    """All numbers of the report.

    Args:
        judged: one or more texts; examples are the first ones of a kind.
        min_probability: see `language.bucket`.

    Returns:
        sample: number of texts. same_bucket, same_language: fractions. buckets: fastText's bucket -> CLD3's -> texts.
        lengths: for each group of lengths its texts and fractions. languages: the most frequent pairs of languages
        among texts whose best guesses differ. examples: texts of each pair of buckets that differ.
    """
    buckets = {one: dict.fromkeys(BUCKETS, 0) for one in BUCKETS}
    groups: list[Counter[str]] = [Counter() for _ in LENGTHS]
    languages: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, Any]] = []
    for each in judged:
        one, other = (bucket(found, min_probability).value for found in (each.fasttext, each.cld3))
        first, second = (_language(found) for found in (each.fasttext, each.cld3))
        group = groups[sum(len(each.text) >= start for start in LENGTHS) - 1]
        group.update(texts=1, same_bucket=one == other, same_language=first == second)
        group.update(fasttext_unknown=one == "unknown", cld3_unknown=other == "unknown")
        if first != second:
            languages[first, second] += 1
        if one != other and buckets[one][other] < EXAMPLES_PER_CELL:
            examples.append(_example(each, one, other))
        buckets[one][other] += 1
    total = sum(groups, Counter())
    ends = [*(f"{end - 1}" for end in LENGTHS[1:]), ""]
    return {
        "sample": len(judged),
        "same_bucket": fraction(total["same_bucket"], len(judged)),
        "same_language": fraction(total["same_language"], len(judged)),
        "buckets": buckets,
        "lengths": [
            {"characters": f"{start} to {end}" if end else f"{start} or more", **_fractions(group)}
            for start, end, group in zip(LENGTHS, ends, groups, strict=True)
            if group["texts"]
        ],
        "languages": [
            {"fasttext": first, "cld3": second, "texts": number}
            for (first, second), number in sorted(languages.items(), key=lambda item: (-item[1], item[0]))
        ][:_LANGUAGE_PAIRS],
        "examples": sorted(examples, key=lambda each: (each["fasttext_bucket"], each["cld3_bucket"])),
    }


def _language(found: Detection) -> str:
    return SAME_LANGUAGE.get(found.language, found.language) if found.language is not None else "none"


def _fractions(group: Counter[str]) -> dict[str, Any]:
    names = ("same_bucket", "same_language", "fasttext_unknown", "cld3_unknown")
    return {"texts": group["texts"], **{name: fraction(group[name], group["texts"]) for name in names}}


def _example(each: JudgedText, one: str, other: str) -> dict[str, Any]:
    return {
        "text": each.text,
        "fasttext_bucket": one,
        "fasttext": each.fasttext.language,
        "fasttext_probability": round(each.fasttext.probability, 3),
        "cld3_bucket": other,
        "cld3": each.cld3.language,
        "cld3_probability": round(each.cld3.probability, 3),
        "cld3_reliable": each.cld3.is_reliable,
    }


def fraction(count: int, of: int) -> dict[str, float]:
    """A part of a number above 0, with its 95% Wilson interval (Wilson 1927): count, of, fraction, low, high."""
    low, high = wilson_interval(count, of)
    return {"count": count, "of": of, "fraction": count / of, "low": low, "high": high}


def agreement_markdown(agreement: dict[str, Any]) -> str:
    """The report for a person; `agreement` is `measure_agreement`'s result and what the command adds to it."""
    detectors = agreement["detectors"]
    lines = [
        "# Agreement of the language detectors",
        "",
        f"{agreement['sample']:,} captions drawn with seed {agreement['seed']} from {agreement['rows']:,} rows in "
        f"{agreement['files']:,} files of {_escaped(agreement['candidates'])}. fasttext is "
        f"{_escaped(detectors['fasttext'])}, sure from a probability of {agreement['min_language_probability']:g}; "
        f"cld3 is {_escaped(detectors['cld3'])}, sure by its own flag. Intervals are 95% Wilson intervals.",
        "",
        f"- same bucket (en, other, unknown): {_shown(agreement['same_bucket'])}",
        f"- same best guess of the language: {_shown(agreement['same_language'])}",
        "",
        "## Buckets",
        "",
        *_table(["fasttext / cld3", *BUCKETS], _bucket_rows(agreement)),
        "",
        "## By length of the text",
        "",
        *_table(
            ["characters", "texts", "same bucket", "same language", "unknown to fasttext", "unknown to cld3"],
            [_length_row(group) for group in agreement["lengths"]],
        ),
        "",
        "## Most frequent pairs of different languages",
        "",
        *_table(
            ["fasttext", "cld3", "texts"],
            [[pair["fasttext"], pair["cld3"], f"{pair['texts']:,}"] for pair in agreement["languages"]],
        ),
        "",
        "## Examples of different buckets",
        "",
        *_table(["fasttext", "cld3", "text"], [_example_row(each) for each in agreement["examples"]]),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _shown(part: dict[str, float]) -> str:
    return f"{part['fraction']:.1%} ({part['low']:.1%} to {part['high']:.1%})"


def _bucket_rows(agreement: dict[str, Any]) -> list[list[str]]:
    sample = agreement["sample"]
    return [
        [one, *(f"{number:,} ({number / sample:.1%})" for number in row.values())]
        for one, row in agreement["buckets"].items()
    ]


def _length_row(group: dict[str, Any]) -> list[str]:
    agreed = [_shown(group[name]) for name in ("same_bucket", "same_language")]
    unknown = [f"{group[name]['fraction']:.1%}" for name in ("fasttext_unknown", "cld3_unknown")]
    return [group["characters"], f"{group['texts']:,}", *agreed, *unknown]


def _example_row(each: dict[str, Any]) -> list[str]:
    said = [
        f"{each[f'{name}_bucket']}: {each[name] or 'none'} {each[f'{name}_probability']:.2f}"
        for name in ("fasttext", "cld3")
    ]
    return [*said, _escaped(each["text"])]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["None."]
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]


def _escaped(text: str) -> str:
    """A text that means nothing to Markdown, on one line and not too long."""
    if len(text) > _SHOWN_CHARACTERS:
        text = text[: _SHOWN_CHARACTERS - 3] + "..."
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return _MARKDOWN.sub(r"\\\1", text)
