"""CLIP_benchmark's builders: captions in many languages, several labels an image, and no fetching unasked."""

import io
import json
import os

import pytest
import requests
from evaluation_sets import PlainEncoder, encoded, picture
from PIL import Image

from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from evaluate.cache import FeatureCache
from evaluate.data.benchmark_split import BenchmarkSplit
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.manifest import read_dataset_manifest
from evaluate.data.manifest_writer import write_dataset_manifest
from evaluate.data.samples import ImageFault
from evaluate.features import encode_images

RETRIEVAL = {"tasks": [Task.retrieval], "metric": "mean_retrieval_recall@1"}


def write_crossmodal(root):
    """The files that CLIP_benchmark's builder makes of Crossmodal-3600, in two languages."""
    (root / "xm3600" / "images").mkdir(parents=True)
    paths = []
    for i in range(3):
        path = root / "xm3600" / "images" / f"{i}.jpg"
        path.write_bytes(encoded(picture(i, i), "jpeg"))
        paths.append(str(path))
    for language, text in (("en", "picture"), ("sw", "picha")):
        value = {
            "image_paths": paths,
            "annotations": [f"{text} {i}" for i in range(3)],
            "indicies": [0, 1, 2],
        }
        (root / f"crossmodal3600_captions-{language}.json").write_text(json.dumps(value))
    return root


def test_captions_of_a_multilingual_set_are_in_the_language_asked_for(tmp_path):
    write_crossmodal(tmp_path / "crossmodal3600")

    def opened(language):
        config = DatasetConfig(**RETRIEVAL, builder="crossmodal3600", language=language)
        return open_dataset("crossmodal3600", config, data_root=tmp_path).test

    assert [record.captions for record in opened("sw").records()] == [[f"picha {i}"] for i in range(3)]
    assert [record.captions for record in opened("en").records()] == [[f"picture {i}"] for i in range(3)]
    assert opened("sw").fingerprint() != opened("en").fingerprint()
    with pytest.raises(DataError, match=r"cannot build 'crossmodal3600'.*Unsupported language"):
        opened("xx")


def test_the_cache_keeps_languages_apart(tmp_path):
    write_crossmodal(tmp_path / "crossmodal3600")
    cache, encoder = FeatureCache(tmp_path / "cache"), PlainEncoder()
    captions = {}
    for language in ("sw", "en"):
        config = DatasetConfig(**RETRIEVAL, builder="crossmodal3600", language=language)
        split = open_dataset("crossmodal3600", config, data_root=tmp_path).test
        found = encode_images(
            encoder, split, world=single_process(), batch_size=4, num_workers=0, max_bad_images=0, cache=cache,
            show_progress=False,
        )  # fmt: skip
        captions[language] = found.captions
    assert captions == {"sw": [[f"picha {i}"] for i in range(3)], "en": [[f"picture {i}"] for i in range(3)]}


def test_a_copy_of_a_data_set_has_the_same_fingerprint(tmp_path):
    write_voc(tmp_path / "voc2007")
    before = BenchmarkSplit("voc2007", tmp_path / "voc2007", "test", download=False).fingerprint()
    image = tmp_path / "voc2007" / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    os.utime(image, (1, 1))
    assert BenchmarkSplit("voc2007", tmp_path / "voc2007", "test", download=False).fingerprint() == before
    Image.new("RGB", (40, 30), (10, 200, 10)).save(image)
    assert BenchmarkSplit("voc2007", tmp_path / "voc2007", "test", download=False).fingerprint() != before


@pytest.mark.parametrize(
    ("builder", "language"),
    [("crossmodal3600", "de"), ("xtd10", "es"), ("multilingual_mscoco_captions", "it")],
)
def test_a_multilingual_builder_fetches_nothing_unasked(tmp_path, monkeypatch, builder, language):
    def wire(*_, **__):
        raise AssertionError("the network was asked for something")

    monkeypatch.setattr("subprocess.Popen", wire)
    monkeypatch.setattr(requests.Session, "request", wire)
    (tmp_path / builder).mkdir()
    get = requests.get
    with pytest.raises(
        DataError, match=rf"{builder!r} at .* is not complete: CLIP_benchmark wants to run .*download=true"
    ):
        BenchmarkSplit(builder, tmp_path / builder, "test", download=False, language=language)
    assert requests.get is get


def test_a_builder_without_captions_is_no_retrieval_set(tmp_path):
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(
        ConfigError, match=r"'cifar10' has no captions; sets of CLIP_benchmark with captions are mscoco"
    ):
        open_dataset("cifar10", DatasetConfig(**RETRIEVAL, builder="cifar10"), data_root=tmp_path)


def write_voc(root):
    """Two images of VOC2007's test set, in the devkit's layout."""
    base = root / "VOCdevkit" / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (base / name).mkdir(parents=True)
    for key, names in (("000001", ("dog", "person")), ("000002", ("train",))):
        Image.new("RGB", (40, 30), (90, 20, 10)).save(base / "JPEGImages" / f"{key}.jpg")
        box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        objects = "".join(f"<object><name>{name}</name>{box}</object>" for name in names)
        (base / "Annotations" / f"{key}.xml").write_text(f"<annotation>{objects}</annotation>")
    (base / "ImageSets" / "Main" / "aeroplane_test.txt").write_text("000001 -1\n000002 -1\n")
    return root


def test_voc2007s_labels_are_several_an_image(tmp_path):
    write_voc(tmp_path / "voc2007_multilabel")
    config = DatasetConfig(
        tasks=[Task.multi_label], metric="mean_average_precision_11_point", builder="voc2007_multilabel"
    )
    dataset = open_dataset("voc2007_multilabel", config, data_root=tmp_path)
    names = dataset.class_names
    found = [[names[target] for target in record.targets] for record in dataset.test.records()]
    assert found == [["dog", "person"], ["train"]]
    assert (dataset.num_classes, dataset.prompts.templates) == (20, ["a photo of a {c}."])


@pytest.mark.parametrize(
    ("data", "reason"), [(b"\xff\xd8\xff cut off", "UnidentifiedImageError"), (None, "Bomb")]
)
def test_an_image_that_a_builder_cannot_decode_is_a_fault(tmp_path, data, reason, monkeypatch):
    folder = write_voc(tmp_path / "voc2007")
    if data is None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    else:
        (folder / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg").write_bytes(data)
    record = BenchmarkSplit("voc2007", folder, "test", download=False).record(0)
    assert isinstance(record.image, ImageFault)
    assert reason in record.image.reason
    assert record.label is None


def test_an_image_that_a_builder_only_opened_is_a_fault_when_it_is_cut_off(tmp_path):
    """Some of torchvision's sets give a file that is opened and not read."""
    split = BenchmarkSplit("voc2007", write_voc(tmp_path / "voc2007"), "test", download=False)
    whole = encoded(picture(0, 0), "jpeg")
    split._dataset = [(Image.open(io.BytesIO(whole[: len(whole) // 2])), 3)]
    record = split.record(0)
    assert isinstance(record.image, ImageFault)
    assert "OSError" in record.image.reason


def test_keys_of_a_folder_of_images_are_its_paths(tmp_path):
    for number in range(7):
        target = tmp_path / "fer2013" / "test" / f"{number}" / "a.png"
        target.parent.mkdir(parents=True)
        picture(number, number).save(target)
    split = BenchmarkSplit("fer2013", tmp_path / "fer2013", "test", download=False)
    assert [record.key for record in split.records()] == [f"test/{number}/a.png" for number in range(7)]
    (tmp_path / "names.txt").write_text("six\nnames\nfor\nseven\nclasses\nhere\n")
    config = DatasetConfig(
        tasks=[Task.zero_shot], metric="acc1", builder="fer2013", class_names_file=str(tmp_path / "names.txt")
    )
    with pytest.raises(DataError, match="'fer2013': 6 class names for 7 classes of fer2013/test"):
        open_dataset("fer2013", config, data_root=tmp_path)


def test_a_builders_files_have_a_manifest_too(tmp_path):
    folder = write_voc(tmp_path / "voc2007_multilabel")
    with pytest.raises(ConfigError, match="which splits of 'voc2007_multilabel' are to be noted down"):
        write_dataset_manifest(folder, builder="voc2007_multilabel")
    write_dataset_manifest(folder, builder="voc2007_multilabel", splits=["test"])
    assert (read_dataset_manifest(folder).classes, read_dataset_manifest(folder).splits["test"].samples) == (
        20,
        2,
    )
    BenchmarkSplit("voc2007_multilabel", folder, "test", download=False).fingerprint()
    picked = folder / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    picked.write_bytes(picked.read_bytes() + b"x")
    with pytest.raises(DataError, match=r"voc2007_multilabel/test has SHA-256 .*changed or damaged"):
        BenchmarkSplit("voc2007_multilabel", folder, "test", download=False).fingerprint()
    (folder / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main" / "aeroplane_test.txt").write_text("000001 -1\n")
    (folder / "VOCdevkit" / "VOC2007" / "Annotations" / "000002.xml").unlink()
    with pytest.raises(
        DataError, match=r"voc2007_multilabel/test holds 1 samples, dataset_manifest.json says 2"
    ):
        BenchmarkSplit("voc2007_multilabel", folder, "test", download=False)
