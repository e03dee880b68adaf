"""A data set's manifest: written from what is there, and compared with what is there later."""

import json
import shutil

import numpy as np
import pytest
from evaluation_sets import encoded, picture, write_classification, write_retrieval, write_split

from crawl2clip.errors import DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.manifest import DATASET_MANIFEST, read_dataset_manifest
from evaluate.data.manifest_writer import write_dataset_manifest

ZERO_SHOT = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")


@pytest.fixture
def folder(tmp_path):
    found = write_classification(tmp_path / "things", num_shards=3)
    write_classification(found, split="train", seed=1)
    write_dataset_manifest(found)
    return found


def test_a_manifest_counts_samples_classes_and_bytes(folder):
    manifest = read_dataset_manifest(folder)
    assert (manifest.classes, manifest.source, sorted(manifest.splits)) == (6, {}, ["test", "train"])
    test = manifest.splits["test"]
    assert test.samples == 30
    assert test.files == {f"{n}.tar": (folder / "test" / f"{n}.tar").stat().st_size for n in range(3)}
    assert open_dataset("things", ZERO_SHOT, data_root=folder.parent).test.content_sha256() == test.sha256


def test_what_is_fetched_from_is_kept_when_it_is_written_again(folder):
    write_dataset_manifest(folder, source={"hub": "a/b", "revision": "c"})
    shutil.rmtree(folder / "train")
    write_dataset_manifest(folder)
    manifest = read_dataset_manifest(folder)
    assert (manifest.source, sorted(manifest.splits)) == ({"hub": "a/b", "revision": "c"}, ["test"])


def test_retrieval_and_multi_label_sets_have_manifests(tmp_path):
    write_dataset_manifest(write_retrieval(tmp_path / "told"))
    assert read_dataset_manifest(tmp_path / "told").classes is None
    np.save(tmp_path / "x.npy", np.float32([1, 0, 1]))
    write_split(
        tmp_path / "voc" / "test",
        [{"png": encoded(picture(0, 0)), "npy": (tmp_path / "x.npy").read_bytes()}],
        num_shards=1,
    )
    (tmp_path / "voc" / "dataset_type.txt").write_text("multilabel")
    write_dataset_manifest(tmp_path / "voc")
    assert read_dataset_manifest(tmp_path / "voc").classes == 3


def test_a_shard_and_its_count_lost_together_are_noticed(folder):
    (folder / "test" / "2.tar").unlink()
    (folder / "test" / "nshards.txt").write_text("2\n")
    with pytest.raises(
        DataError, match=r"things/test is not what dataset_manifest.json says .missing: 2.tar."
    ):
        open_dataset("things", ZERO_SHOT, data_root=folder.parent)


def test_a_short_shard_is_noticed_before_it_is_read(folder):
    """Cut off at a sample's end and closed again, a tar looks whole."""
    path = folder / "test" / "1.tar"
    size = path.stat().st_size
    write_split(folder / "shorter", [{"png": encoded(picture(0, 0)), "cls": b"0"}], num_shards=1)
    shutil.move(folder / "shorter" / "0.tar", path)
    shutil.rmtree(folder / "shorter")
    with pytest.raises(DataError, match=rf"1.tar has \d+ bytes and not {size}.; fetch the data set again"):
        open_dataset("things", ZERO_SHOT, data_root=folder.parent)


def test_a_shard_too_many_and_another_number_of_samples(folder):
    shutil.copy(folder / "test" / "2.tar", folder / "test" / "3.tar")
    (folder / "test" / "nshards.txt").write_text("4\n")
    with pytest.raises(DataError, match=r"not listed: 3.tar"):
        open_dataset("things", ZERO_SHOT, data_root=folder.parent)
    (folder / "test" / "3.tar").unlink()
    (folder / "test" / "nshards.txt").write_text("3\n")
    value = json.loads((folder / DATASET_MANIFEST).read_text())
    value["splits"]["test"]["samples"] = 31
    (folder / DATASET_MANIFEST).write_text(json.dumps(value))
    with pytest.raises(DataError, match=r"things/test holds 30 samples, dataset_manifest.json says 31"):
        open_dataset("things", ZERO_SHOT, data_root=folder.parent)


def test_changed_bytes_are_noticed_when_the_data_is_hashed(folder):
    path = folder / "test" / "0.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    dataset = open_dataset("things", ZERO_SHOT, data_root=folder.parent)
    with pytest.raises(DataError, match=r"things/test has SHA-256 .*its content was changed or damaged"):
        dataset.test.fingerprint()


def test_class_names_are_counted(folder):
    with (folder / "classnames.txt").open("a") as file:
        file.write("one too many\n")
    with pytest.raises(DataError, match=r"7 class names are in use, dataset_manifest.json says 6 classes"):
        open_dataset("things", ZERO_SHOT, data_root=folder.parent)


def test_a_failed_writing_leaves_the_old_manifest(folder):
    before = (folder / DATASET_MANIFEST).read_text()
    (folder / "test" / "1.tar").unlink()
    with pytest.raises(DataError, match=r"missing: 1\.tar"):
        write_dataset_manifest(folder)
    assert (folder / DATASET_MANIFEST).read_text() == before


def test_a_folder_without_splits_gets_no_manifest(tmp_path):
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    for name, found in (("empty", "nothing"), ("absent", "none")):
        with pytest.raises(
            DataError, match=rf"{name} has no split .sub-folders: {found}.; a split has nshards.txt"
        ):
            write_dataset_manifest(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "a manifest of an evaluation data set .list indices"),
        ('{"format": 2}', "format 2, known is 1"),
        ('{"format": 1, "classes": 3}', "'splits'"),
        ('{"format": 1, "classes": -1, "splits": {}}', "classes is -1"),
        (
            '{"format": 1, "classes": 3, "splits": {"test": {"samples": "x", "sha256": ""}}}',
            "a count is not a number",
        ),
        ('{"format": 1, "classes": 3, "splits": {"test": {"samples": 1}}}', "sha256"),
        ("{", "valid JSON"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path, text, message):
    (tmp_path / DATASET_MANIFEST).write_text(text)
    with pytest.raises(DataError, match=f"dataset_manifest.json is not .*{message}"):
        read_dataset_manifest(tmp_path)
