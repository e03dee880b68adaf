"""Folders of images: what is listed, whose names classes have, and what is refused."""

import json

import pytest
from evaluation_sets import encoded, picture

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.image_folder import ImageFolderSplit
from evaluate.data.manifest_writer import write_dataset_manifest
from evaluate.data.samples import ImageFault


def write_folders(root, *, classes=("n01_owl", "n02_cat", "n03_dog"), per_class=2, split="test"):
    for label, name in enumerate(classes):
        for i in range(per_class):
            path = root / split / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(label, i)))
    return root


def config(**settings):
    return DatasetConfig(
        **{
            "tasks": [Task.zero_shot],
            "metric": "acc1",
            "builder": "image_folder",
            "prompts": "cifar10",
            **settings,
        }
    )


def test_folders_in_sorted_order_are_the_classes(tmp_path):
    write_folders(tmp_path / "zoo")
    (tmp_path / "zoo" / "test" / "n02_cat" / "more").mkdir()
    (tmp_path / "zoo" / "test" / "n02_cat" / "more" / "deep.PNG").write_bytes(encoded(picture(1, 9)))
    (tmp_path / "zoo" / "test" / "n02_cat" / ".DS_Store").write_bytes(b"x")
    split = ImageFolderSplit(tmp_path / "zoo", "test")
    records = list(split.records())
    assert [record.key for record in records] == [
        "n01_owl/0.png", "n01_owl/1.png", "n02_cat/0.png", "n02_cat/1.png", "n02_cat/more/deep.PNG",
        "n03_dog/0.png", "n03_dog/1.png",
    ]  # fmt: skip
    assert [record.label for record in records] == [0, 0, 1, 1, 1, 2, 2]
    assert list(records[2].image.getdata()) == list(picture(1, 0).getdata())


def test_class_names_come_from_a_file_or_from_folders_when_asked(tmp_path):
    folder = write_folders(tmp_path / "zoo")
    asked = open_dataset("zoo", config(class_names_from_folders=True), data_root=tmp_path)
    assert asked.prompts.class_names == ["n01 owl", "n02 cat", "n03 dog"]
    (folder / "classnames.txt").write_text("owl\ncat\ndog\n")
    assert open_dataset("zoo", config(), data_root=tmp_path).prompts.class_names == ["owl", "cat", "dog"]
    by_folder = tmp_path / "names.json"
    by_folder.write_text(
        json.dumps({"n03_dog": "hound", "n01_owl": "owl", "n02_cat": "tabby", "n04_x": "unused"})
    )
    named = open_dataset("zoo", config(class_names_file=str(by_folder)), data_root=tmp_path)
    assert named.prompts.class_names == ["owl", "tabby", "hound"]
    by_folder.write_text(json.dumps({"n03_dog": "hound"}))
    with pytest.raises(DataError, match=r"'zoo': 2 of 3 class folders have no name, the first is 'n01_owl'"):
        open_dataset("zoo", config(class_names_file=str(by_folder)), data_root=tmp_path)


def test_names_of_folders_are_not_taken_unasked(tmp_path):
    write_folders(tmp_path / "zoo")
    with pytest.raises(ConfigError, match=r"'zoo' has no class names; put classnames\.txt into"):
        open_dataset("zoo", config(prompts="stl10"), data_root=tmp_path)
    with pytest.raises(
        ConfigError, match=r"class_names_from_folders needs builder=image_folder .it is 'cifar10'."
    ):
        config(builder="cifar10", class_names_from_folders=True)


def test_a_wrong_number_of_class_names(tmp_path):
    folder = write_folders(tmp_path / "zoo")
    (folder / "classnames.txt").write_text("owl\ncat\n")
    with pytest.raises(
        DataError, match="'zoo': 2 class names for 3 classes of zoo/test; give one name for each class"
    ):
        open_dataset("zoo", config(), data_root=tmp_path)


def test_splits_with_different_folders_would_mean_different_labels(tmp_path):
    write_folders(tmp_path / "zoo")
    write_folders(tmp_path / "zoo", classes=("n01_owl", "n02_cat", "n03_yak"), split="train")
    with pytest.raises(DataError, match=r"zoo/test and zoo/train have different class folders, .*'n03_dog'"):
        open_dataset(
            "zoo", config(tasks=[Task.linear_probe], class_names_from_folders=True), data_root=tmp_path
        )


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"zoo/test does not exist; expected .*<class>/<image>"):
        ImageFolderSplit(tmp_path / "zoo", "test")
    (tmp_path / "zoo" / "test").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no class folders"):
        ImageFolderSplit(tmp_path / "zoo", "test")
    write_folders(tmp_path / "zoo")
    (tmp_path / "zoo" / "test" / "n04_ant").mkdir()
    with pytest.raises(DataError, match="n04_ant holds no image; put its images there, or remove the folder"):
        ImageFolderSplit(tmp_path / "zoo", "test")
    (tmp_path / "zoo" / "test" / "n04_ant" / "labels.csv").write_text("a")
    with pytest.raises(DataError, match=r"labels.csv is not an image .*move it out"):
        ImageFolderSplit(tmp_path / "zoo", "test")


def test_bad_images_are_faults_and_lost_ones_too(tmp_path):
    folder = write_folders(tmp_path / "zoo")
    split = ImageFolderSplit(folder, "test")
    (folder / "test" / "n02_cat" / "0.png").write_bytes(b"cut off")
    (folder / "test" / "n02_cat" / "1.png").unlink()
    cut, lost = split.record(2).image, split.record(3).image
    assert isinstance(cut, ImageFault)
    assert "n02_cat/0.png" in cut.where
    assert "cannot identify" in cut.reason
    assert lost == ImageFault(
        str(folder / "test" / "n02_cat" / "1.png"), "FileNotFoundError: No such file or directory"
    )


def test_a_fingerprint_is_of_names_and_contents(tmp_path):
    folder = write_folders(tmp_path / "zoo")
    before = ImageFolderSplit(folder, "test").fingerprint()
    assert ImageFolderSplit(folder, "test").fingerprint() == before
    (folder / "test" / "n02_cat" / "0.png").write_bytes(encoded(picture(1, 77)))
    assert ImageFolderSplit(folder, "test").fingerprint() != before


def test_a_manifest_notices_a_lost_image(tmp_path):
    folder = write_folders(tmp_path / "zoo")
    write_dataset_manifest(folder)
    (folder / "test" / "n02_cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"zoo/test holds 5 samples, dataset_manifest.json says 6"):
        ImageFolderSplit(folder, "test")


def test_class_folders_without_a_builder_are_pointed_out(tmp_path):
    write_folders(tmp_path / "zoo")
    with pytest.raises(
        DataError, match=r"nshards.txt.*There are class folders with images: .*builder=image_folder"
    ):
        open_dataset("zoo", config(builder=None), data_root=tmp_path)
