"""The parts of the page that say what the numbers are of: notes a result, and what made each of them."""

from collections.abc import Sequence
from typing import Any

from evaluate.reports.markup import Html, element, join, table
from evaluate.reports.names import ModelKey, model_key
from evaluate.reports.page import counted, folded, listing
from evaluate.results import Result

_MAX_SETTING = 4000  # characters of one entry of the provenance
_SHOWN_PLACES = 6  # results that a note is listed with


def note_blocks(results: Sequence[Result], names: dict[ModelKey, str]) -> list[Html]:
    """What a reader of the numbers must know, the same remark once with all it is about."""
    about: dict[str, list[str]] = {}
    for r in results:
        remarks = list(r.notes)
        if r.num_bad_images:
            remarks.append(f"{r.num_bad_images} images could not be decoded and are left out")
        for remark in remarks:
            about.setdefault(remark, []).append(f"{r.dataset} {r.task} ({names[model_key(r)]})")
    items = []
    for remark, places in about.items():
        left = len(places) - _SHOWN_PLACES
        shown = ", ".join(places[:_SHOWN_PLACES]) + (f" and {left} more" if left > 0 else "")
        items.append(join(remark, " ", element("span", f"– {shown}", class_="faint")))
    return [listing(items)] if items else []


def provenance_blocks(results: Sequence[Result], names: dict[ModelKey, str]) -> list[Html]:
    """What each model's results were made of and by."""
    blocks = []
    for key, name in names.items():
        own = [r for r in results if model_key(r) == key]
        facts = [
            ("weights", key[1] or "a live model"),
            ("weights SHA-256", element("span", key[3] or "not computed", class_="hash")),
            ("precision", key[2]),
            *_records(own),
        ]
        hashes = [
            (
                r.dataset, r.split, r.task, f"{r.num_samples:,}", str(r.num_bad_images),
                "" if r.num_classes is None else f"{r.num_classes:,}", _hash(r.data_sha256), _hash(r.prompts_sha256),
            )
            for r in own
        ]  # fmt: skip
        header = (
            "data set",
            "split",
            "task",
            "samples",
            "bad images",
            "classes",
            "data SHA-256",
            "prompts SHA-256",
        )
        inside = join(
            table(("what", "value"), facts, caption=f"How the results of {name} came about."),
            table(header, hashes, caption=f"Data and prompts of {name}.", numeric=(3, 4, 5)),
        )
        blocks.append(folded(name, inside))
    return blocks


def _hash(sha: str | None) -> Html:
    return element("span", sha[:16] if sha else "–", class_="hash", title=sha)


def _records(results: Sequence[Result]) -> list[tuple[str, Html]]:
    """Entries of the provenance; where results of a model differ in one, each value with its count."""
    entries: dict[str, dict[str, int]] = {}
    for result in results:
        for name, value in result.provenance.items():
            shown = _setting(value)
            entries.setdefault(name, {})[shown] = entries.setdefault(name, {}).get(shown, 0) + 1
    return [
        (
            name,
            join(
                *(
                    element(
                        "div",
                        value if len(values) == 1 else f"{value} ({counted(number, 'result')})",
                        class_="hash",
                    )
                    for value, number in values.items()
                )
            ),
        )
        for name, values in sorted(entries.items())
    ]


def _setting(value: Any) -> str:
    if isinstance(value, dict):
        text = ", ".join(
            f"{name}: {_setting(entry)}" for name, entry in value.items() if entry not in (None, {}, [])
        )
        text = f"{{{text}}}"
    elif isinstance(value, (list, tuple)):
        text = " ".join(_setting(entry) for entry in value)
    else:
        text = str(value)
    return text if len(text) <= _MAX_SETTING else text[: _MAX_SETTING - 1] + "…"
