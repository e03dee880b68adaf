"""Class names and prompts in another language: never the English ones of the folder in silence."""

import pytest
from evaluation_sets import encoded, picture, write_classification, write_split

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.package_prompts import babel_prompts
from evaluate.data.prompts import known_class_names, known_templates
from evaluate.data.subset_split import SubsetSplit
from evaluate.data.tar_split import TarSplit


def write_imagenet(folder, labels):
    """A few samples of the 1,000 classes, with the English files that published folders have."""
    samples = [{"png": encoded(picture(i, i)), "cls": str(label).encode()} for i, label in enumerate(labels)]
    write_split(folder / "test", samples)
    (folder / "classnames.txt").write_text(
        "".join(f"{name}\n" for name in known_class_names("imagenet1k", "en"))
    )
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return folder


def config(**settings):
    return DatasetConfig(
        **{"tasks": [Task.zero_shot], "metric": "acc1", "allow_empty_classes": True, **settings}
    )


def test_a_language_of_clip_benchmarks_is_taken_over_the_folders_english(tmp_path):
    write_imagenet(tmp_path / "imagenet1k", [0, 1, 2])
    prompts = open_dataset("imagenet1k", config(language="it"), data_root=tmp_path).prompts
    assert prompts.class_names == known_class_names("imagenet1k", "it")
    assert prompts.templates == known_templates("imagenet1k", "it")
    assert open_dataset("imagenet1k", config(), data_root=tmp_path).prompts.class_names[0] == "tench"


def test_a_language_that_a_set_has_no_names_in_is_an_error(tmp_path):
    write_classification(tmp_path / "cifar10")
    with pytest.raises(
        ConfigError,
        match=r"'cifar10': no class names in language 'it' are known for 'cifar10'; give class_names_file",
    ):
        open_dataset("cifar10", config(language="it"), data_root=tmp_path)
    with pytest.raises(
        ConfigError, match=r"prompts=cupl/imagenet1k are English, language is 'it'; use language=en"
    ):
        config(prompts="cupl/imagenet1k", language="it")


def test_babel_imagenet_scores_the_classes_that_have_names(tmp_path):
    kept = babel_prompts("de").indices
    absent = next(label for label in range(1000) if label not in kept)
    write_imagenet(tmp_path / "imagenet1k", [kept[5], absent, kept[0], kept[-1]])
    dataset = open_dataset("imagenet1k", config(prompts="babel_imagenet", language="de"), data_root=tmp_path)
    records = list(dataset.test.records())
    assert [(record.index, record.label, record.key) for record in records] == [
        (0, 5, "s0000000"),
        (1, 0, "s0000002"),
        (2, 737, "s0000003"),
    ]
    assert (dataset.num_classes, dataset.prompts.class_names[0]) == (738, "Schleie")
    assert list(records[1].image.getdata()) == list(picture(2, 2).getdata())
    whole = open_dataset("imagenet1k", config(), data_root=tmp_path).test
    assert dataset.test.fingerprint() != whole.fingerprint()


def test_a_subset_without_samples_is_an_error(tmp_path):
    split = TarSplit(
        write_imagenet(tmp_path / "imagenet1k", [0, 1]), "test", with_labels=True, with_captions=False
    )
    with pytest.raises(DataError, match=r"imagenet1k/test .classes of de.: no sample is of its 2 classes"):
        SubsetSplit(split, split.labels, [7, 8], "classes of de")


def test_own_names_and_prompts_by_file_need_no_list_of_a_package(tmp_path):
    write_imagenet(tmp_path / "imagenet1k", [0, 1])
    (tmp_path / "names.txt").write_text("karppi\nkultakala\n", encoding="utf-8")
    (tmp_path / "templates.txt").write_text("valokuva: {c}\n")
    own = config(
        language="fi",
        class_names_file=str(tmp_path / "names.txt"),
        templates_file=str(tmp_path / "templates.txt"),
    )
    prompts = open_dataset("imagenet1k", own, data_root=tmp_path).prompts
    assert prompts.per_class() == [["valokuva: karppi"], ["valokuva: kultakala"]]
