"""Captions whose language is known, from packages that a full installation has, so made without a network.

Three sets. `names`: what emoji are called in CLDR, in the 14 languages of the package `emoji`, written by people,
mostly one to four words. `captions`: prompts about an image with an ImageNet class name in them, in the 90 languages
for which CLIP_benchmark carries both (class names of Babel-ImageNet, from BabelNet; prompts translated by NLLB-200).
Their words are partly a machine's, their form is a caption's. `two captions`: two of these with different prompts, for
longer texts. The packages' texts are read where they are installed; none are copied into this repository.
"""

import json
import random
import re
from importlib import resources
from typing import NamedTuple

MAIN_LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
"""Those of the package `emoji`: the largest of LAION-5B are among them."""

CAPTIONS_A_LANGUAGE = 200
_FLAG_OR_TONE = re.compile("[\U0001f1e6-\U0001f1ff\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")


class Labelled(NamedTuple):
    """A text, the set it is of, and its ISO 639-1 code."""

    text: str
    set: str
    language: str


def labelled_texts() -> list[Labelled]:
    """All texts, in a fixed order that is well mixed; each text once.

    A text that has several labels, such as a name that is the same in Spanish and Portuguese, is left out.
    """
    found = [*emoji_names(), *captions()]
    labels: dict[str, set[str]] = {}
    for each in found:
        labels.setdefault(each.text, set()).add(each.language)
    once = {each.text: each for each in found if len(labels[each.text]) == 1}
    mixed = sorted(once.values())
    random.Random(0).shuffle(mixed)
    return mixed


def emoji_names() -> list[Labelled]:
    """What every emoji is called, but for flags and skin tones.

    The names of places say little about a language, and half of all names say "dark skin tone" and the like.
    """
    import emoji

    for language in MAIN_LANGUAGES:
        emoji.config.load_language(language)
    return [
        Labelled(" ".join(names[language].strip(":").replace("_", " ").split()), "names", language)
        for symbol, names in emoji.EMOJI_DATA.items()
        for language in MAIN_LANGUAGES
        if language in names and not _FLAG_OR_TONE.search(symbol)
    ]


def captions() -> list[Labelled]:
    """Prompts with class names in them: the same number of each language, single and in twos."""
    folder = resources.files("clip_benchmark") / "datasets"
    classes = json.loads((folder / "babel_imagenet.json").read_text(encoding="utf-8"))
    prompts = json.loads((folder / "nllb_dist13b_prompts.json").read_text(encoding="utf-8"))
    rng = random.Random(0)
    found = []
    for code in sorted(set(classes) & set(prompts)):
        names, templates = classes[code][1], [each for each in prompts[code] if "{}" in each]
        for _ in range(CAPTIONS_A_LANGUAGE):
            first, second = (
                " ".join(template.replace("{}", rng.choice(names)).split())
                for template in rng.sample(templates, 2)
            )
            found.append(Labelled(first, "captions", code.lower()))
            found.append(Labelled(f"{first} {second}", "two captions", code.lower()))
    return found
