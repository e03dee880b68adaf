"""Class names and templates: where they come from, and that none are made up."""

import json

import pytest

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.package_prompts import babel_prompts
from evaluate.data.prompts import (
    fill,
    known_class_names,
    known_templates,
    make_prompts,
    read_class_names,
    read_templates,
)


def test_prompts_are_filled_class_by_class():
    prompts = make_prompts(["cat", "dog"], ["a {c}.", "{c} {x}"], "here")
    assert prompts.per_class() == [["a cat.", "cat {x}"], ["a dog.", "dog {x}"]]
    assert prompts.sha256 != make_prompts(["dog", "cat"], ["a {c}.", "{c} {x}"], "here").sha256


def test_filling_equals_pythons_format_on_every_published_template():
    for name in ("imagenet1k", "cifar10", "vtab/smallnorb_label_azimuth"):
        for template in known_templates(name, "en"):
            assert fill(template, "cat") == template.format(c="cat")


def test_clip_benchmarks_lists_are_found_by_name_with_and_without_prefix():
    assert len(known_templates("imagenet1k", "en")) == 80
    assert len(known_class_names("imagenet1k", "en")) == 1000
    assert known_templates("vtab/dtd", "en") == known_templates("dtd", "en")
    assert known_class_names("imagenet1k", "jp") != known_class_names("imagenet1k", "en")


def test_an_unknown_data_set_gets_no_templates():
    with pytest.raises(
        ConfigError,
        match=r"'imagenet_v9'.*did you mean 'imagenet1k'.*No templates are assumed.*templates_file",
    ):
        known_templates("imagenet_v9", "en")
    with pytest.raises(
        ConfigError, match=r"unknown language of prompts 'xx'.*Known: .*en.*give the prompts by file"
    ):
        known_templates("imagenet1k", "xx")


def test_prompts_of_each_class_by_file(tmp_path):
    file = tmp_path / "cupl.json"
    file.write_text(json.dumps({"cat": ["a cat purrs", "cats have whiskers"], "dog": ["a dog barks"]}))
    prompts = make_prompts(["dog", "cat"], read_templates(file), "here")
    assert prompts.per_class() == [["a dog barks"], ["a cat purrs", "cats have whiskers"]]
    with pytest.raises(DataError, match="here: 1 of 2 classes have no prompts, the first is 'owl'"):
        make_prompts(["dog", "owl"], read_templates(file), "here")


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["{c}"], "here: no class names; give one name a line"),
        (["cat", " "], ["{c}"], "here: an empty class name at class 1"),
        (["cat"], [], "here: no prompt templates"),
        (["cat"], ["a photo of {}."], "here: the template 'a photo of {}.' has no {c} for the class name"),
    ],
)
def test_names_and_templates_that_do_not_fit_are_refused(names, templates, message):
    with pytest.raises(DataError) as caught:
        make_prompts(names, templates, "here")
    assert message in str(caught.value)


def test_files_of_other_forms_are_refused(tmp_path):
    with pytest.raises(DataError, match="is missing; check the path"):
        read_class_names(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_class_names(tmp_path / "latin.txt")
    (tmp_path / "names.json").write_text('{"cat": 1}')
    with pytest.raises(DataError, match="is no JSON list of class names"):
        read_class_names(tmp_path / "names.json")
    with pytest.raises(DataError, match="neither a JSON list of templates nor an object"):
        read_templates(tmp_path / "names.json")


def test_cupls_prompts_are_there_for_every_class_of_imagenet():
    templates = known_templates("cupl/imagenet1k", "en")
    names = known_class_names("cupl/imagenet1k", "en")
    assert names == known_class_names("imagenet1k", "en")
    per_class = make_prompts(names, templates, "here").per_class()
    assert len(per_class) == 1000
    assert all(per_class)
    with pytest.raises(ConfigError, match=r"'cupl/cars'.*Known: cupl/imagenet1k\. No templates are assumed"):
        known_templates("cupl/cars", "en")


def test_open_clips_lists_are_read_from_its_package():
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    templates = known_templates("open_clip/imagenet", "en")
    assert [fill(template, "cat") for template in templates] == [f("cat") for f in OPENAI_IMAGENET_TEMPLATES]
    assert len(known_templates("open_clip/imagenet_simple", "en")) == 7
    assert known_class_names("open_clip/imagenet", "en") == list(IMAGENET_CLASSNAMES)
    with pytest.raises(ConfigError, match=r"Known: open_clip/imagenet, open_clip/imagenet_simple"):
        known_templates("open_clip/cifar10", "en")


def test_babel_imagenet_has_names_for_some_classes_of_a_language():
    german = babel_prompts("de")
    assert (len(german.indices), len(german.class_names)) == (738, 738)
    assert german.class_names[:2] == ["Schleie", "Goldfisch"]
    assert german.indices == sorted(set(german.indices))
    prompts = make_prompts(
        known_class_names("babel_imagenet", "DE"), known_templates("babel_imagenet", "de"), "here"
    )
    assert "Schleie" in prompts.per_class()[0][0]
    with pytest.raises(ConfigError, match=r"unknown language of Babel-ImageNet 'XX'.*Known: .*DE"):
        babel_prompts("xx")


def test_clip_benchmarks_own_files_are_read_by_data_set(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"zoo": ["a {c}"], "farm": {"cow": ["a cow moos"]}}))
    assert read_templates(file, ["zoo"]) == ["a {c}"]
    assert read_templates(file, ["other", "farm"]) == {"cow": ["a cow moos"]}
    with pytest.raises(DataError, match=r"with an entry for zebra"):
        read_templates(file, ["zebra"])
    file.write_text(json.dumps({"zoo": ["cat", "dog"], "farm": ["cow"]}))
    assert read_class_names(file, ["farm"]) == ["cow"]
    file.write_text(json.dumps({"n01": "cat"}))
    assert read_class_names(file, ["zoo"]) == {"n01": "cat"}


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    (tmp_path / "names.txt").write_bytes("\ufeffcat\r\ndog\r\n".encode())
    assert read_class_names(tmp_path / "names.txt") == ["cat", "dog"]
