"""A data set's papers: a datasheet, a Croissant description and a Hugging Face dataset card, made from a run's facts.

The datasheet answers the questions of Gebru et al. 2018, "Datasheets for Datasets" (arXiv 1803.09010) as far as a run
can know the answer; what only a person can know is left as a line that says so. The Croissant file is JSON-LD in the
form of MLCommons' Croissant 1.0. Words from the web (sites, licences) are cleaned, so that they stay words.
"""

import json
import re
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.report_facts import Facts
from data_pipeline.report_page import TEMPLATES

_MAX_FILES_LISTED = 1000
_MEMBERS = (
    ("captions", "*.txt", "text/plain", "sc:Text", "The caption."),
    ("images", ["*.jpg", "*.png", "*.webp"], "image/*", "sc:ImageObject", "The image as stored."),
    ("metadata", "*.json", "application/json", "sc:Text", "Address, page, licence and hashes, as JSON."),
)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B"), (10**10, "1B<n<10B"), (10**11, "10B<n<100B"))  # fmt: skip


def datasheet(facts: Facts) -> str:
    """The datasheet, in Markdown."""
    return _environment().get_template("datasheet.md.j2").render(facts=facts)


def dataset_card(facts: Facts) -> str:
    """The README.md of a data set on the Hugging Face hub: YAML and Markdown."""
    languages = [code for code, _ in facts.languages if re.fullmatch(r"[a-z]{2,3}", code)]
    size = next((name for limit, name in _SIZES if facts.kept < limit), "n>1T")
    return (
        _environment().get_template("dataset_card.md.j2").render(facts=facts, languages=languages, size=size)
    )


def croissant(facts: Facts) -> dict[str, Any]:
    """The Croissant description; the file objects are the training shards, once they are there."""
    files = facts.shards.sha256 if facts.shards is not None else {}
    listed = dict(list(files.items())[:_MAX_FILES_LISTED])
    about = f"{facts.kept:,} pairs of image and text from the web, selected by the recipe {facts.name}."
    distribution: list[dict[str, Any]] = [
        {
            "@type": "cr:FileObject",
            "@id": name,
            "name": name,
            "contentUrl": f"shards/{name}",
            "encodingFormat": "application/x-tar",
            "sha256": digest,
        }
        for name, digest in listed.items()
    ]
    records: list[dict[str, Any]] = []
    for kind, pattern, form, data_type, what in _MEMBERS if listed else ():
        distribution.append(
            {
                "@type": "cr:FileSet",
                "@id": f"{kind}-files",
                "name": f"{kind}-files",
                "containedIn": [{"@id": name} for name in listed],
                "encodingFormat": form,
                "includes": pattern,
            }
        )
        records.append(_record_set(kind, data_type, what))
    return {
        "@context": json.loads((TEMPLATES / "croissant_context.json").read_text()),  # every file repeats it
        "@type": "sc:Dataset",
        "name": facts.name,
        "description": about,
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "citeAs": facts.source,
        "datePublished": facts.date,
        # The run cannot know more; creator and url are for its owner to add.
        "license": "Images and texts belong to their owners; the terms of the list are to be given by its owner.",
        "version": _semantic(facts.version),
        "distribution": distribution,
        "recordSet": records,
    }


def croissant_text(facts: Facts) -> str:
    """The Croissant description as a file's content."""
    return json.dumps(croissant(facts), indent=2, ensure_ascii=False) + "\n"


def _record_set(kind: str, data_type: str, what: str) -> dict[str, Any]:
    """One kind of file of the samples; those of a sample share the uid, which is the file's name."""
    source = {"fileSet": {"@id": f"{kind}-files"}}
    uid: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{kind}/uid",
        "name": "uid",
        "description": "The pair's uid.",
        "dataType": "sc:Text",
        "source": {
            **source,
            "extract": {"fileProperty": "filename"},
            "transform": {"regex": "^([^.]+)"},
        },
    }
    if kind != _MEMBERS[0][0]:
        uid["references"] = {"field": {"@id": f"{_MEMBERS[0][0]}/uid"}}
    content = {
        "@type": "cr:Field",
        "@id": f"{kind}/content",
        "name": "content",
        "description": what,
        "dataType": data_type,
        "source": {**source, "extract": {"fileProperty": "content"}},
    }
    return {"@type": "cr:RecordSet", "@id": kind, "name": kind, "description": what, "field": [uid, content]}


def _semantic(version: str) -> str:
    """Croissant asks for MAJOR.MINOR.PATCH; a recipe's version is one number."""
    parts = [part for part in version.split(".") if part.isdigit()]
    return ".".join([*parts, "0", "0", "0"][:3])


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["plain"] = plain
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["bytes"] = lambda value: (
        f"{value / 1e9:,.1f} GB" if value >= 1e8 else f"{value / 1e6:,.1f} MB"
    )
    environment.filters["percent"] = lambda part, whole: f"{100 * part / max(whole, 1):.1f}%"
    return environment


def plain(text: Any) -> str:
    """A text as code in a Markdown table: one line, nothing in it that Markdown or HTML would act on."""
    clean = (
        "".join(mark if mark.isprintable() else " " for mark in str(text)).replace("`", "'").replace("|", "/")
    )
    return f"`{clean[:200]}`" if clean.strip() else "`-`"
