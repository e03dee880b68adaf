"""What a sample holds: images, labels, targets, group codes, keys; and every way its bytes can be wrong."""

import io
import json
import math
import shutil
import struct
import tarfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from evaluation_sets import encoded, picture, write_classification, write_split
from hypothesis import given
from hypothesis import strategies as st

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.shards import ShardWriter
from evaluate.data.arrays import read_codes, read_targets, read_vector
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.groups import groups_of_samples
from evaluate.data.samples import (
    MAX_PIXELS,
    ImageFault,
    check_classes_have_samples,
    decode_image,
    unique_keys,
)
from evaluate.data.tar_split import TarSplit

ZERO_SHOT = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
MULTI_LABEL = DatasetConfig(tasks=[Task.multi_label], metric="mean_average_precision")


def npy(values):
    out = io.BytesIO()
    np.save(out, values, allow_pickle=True)
    return out.getvalue()


def write_multi_label(folder, targets, *, names=("cat", "dog", "owl")):
    samples = [{"png": encoded(picture(i, i)), "npy": npy(t)} for i, t in enumerate(targets)]
    write_split(folder / "test", samples, num_shards=1)
    (folder / "dataset_type.txt").write_text("multilabel\n")
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return folder


def huge_png(width, height):
    """A PNG whose header announces a size, with one row of data: what a decompression bomb looks like at first."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "size", [(9460, 9460), (60_000, 60_000)]
)  # a little over the bound, and far over Pillow's own
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_too_large_to_decode_is_a_fault_with_its_size(size):
    assert math.prod(size) > MAX_PIXELS
    fault = decode_image(huge_png(*size), "shard 0.tar, sample x")
    assert isinstance(fault, ImageFault)
    assert "pixels" in fault.reason


def test_an_image_of_the_largest_size_is_not_refused_for_it():
    fault = decode_image(huge_png(1000, MAX_PIXELS // 1000), "")
    assert isinstance(fault, ImageFault)  # its data are missing
    assert "more than" not in fault.reason


def test_formats_that_run_programs_are_not_opened():
    eps = io.BytesIO()
    picture(0, 0).save(eps, "EPS")
    fault = decode_image(eps.getvalue(), "here")
    assert isinstance(fault, ImageFault)
    assert "cannot identify image file" in fault.reason
    for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "PPM", "TIFF"):
        assert not isinstance(decode_image(encoded(picture(0, 0), form), "here"), ImageFault)


def test_multi_label_targets_come_from_npy(tmp_path):
    write_multi_label(
        tmp_path / "voc", [np.float32([1, 0, 1]), np.int64([0, 1, 0]), np.array([False, False, True])]
    )
    dataset = open_dataset("voc", MULTI_LABEL, data_root=tmp_path)
    records = list(dataset.test.records())
    assert [record.targets for record in records] == [[0, 2], [1], [2]]
    assert [record.label for record in records] == [None] * 3
    assert (dataset.num_classes, dataset.prompts.per_class()[1]) == (3, ["a photo of a dog."])


def test_a_class_that_no_image_has_and_names_that_do_not_fit_the_targets(tmp_path):
    write_multi_label(tmp_path / "voc", [np.float32([1, 0, 1])])
    with pytest.raises(DataError, match=r"voc/test: 1 of 3 classes have no sample: 'dog' .1."):
        open_dataset("voc", MULTI_LABEL, data_root=tmp_path)
    write_multi_label(tmp_path / "two", [np.float32([1, 0, 1])], names=("cat", "dog"))
    with pytest.raises(
        DataError, match="'two': 2 class names for 3 classes of two/test; give one name for each class"
    ):
        open_dataset("two", MULTI_LABEL, data_root=tmp_path)


def test_samples_with_different_numbers_of_targets_are_refused(tmp_path):
    write_multi_label(tmp_path / "voc", [np.float32([1, 0, 1]), np.float32([1, 0])])
    with pytest.raises(DataError, match=r"sample s0000001: .npy has 2 classes, the samples before it 3"):
        open_dataset("voc", MULTI_LABEL, data_root=tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an array of numpy"),
        (b"\x93NUMPY\x09\x00", "is not an array of numpy"),
        (npy(np.float32([1, 0]))[:-1], "announces 2 numbers of float32 and holds 7 bytes; it was cut off"),
        (npy(np.float32([1, 0])) + b"x", "holds 9 bytes"),
        (npy(np.array([{}], dtype=object)), "array of object .* a vector of numbers is expected"),
        (npy(np.zeros((2, 2))), r"shape \(2, 2\); a vector"),
        (npy(np.array(["a"])), "a vector of numbers"),
        (npy(np.array([1 + 2j])), "a vector of numbers"),
        (npy(np.float32([np.nan, 1])), "not finite"),
        (
            npy(np.float64([1])).replace(b"(1,)", b"(9,)"),
            "announces 9 numbers of float64 and holds 8 bytes",
        ),
    ],
)
def test_arrays_that_are_not_vectors_of_numbers_are_refused(data, message):
    with pytest.raises(DataError, match=f"^here: .npy .*{message}"):
        read_vector(data, "here")


def test_a_header_that_announces_terabytes_allocates_nothing():
    data = npy(np.float64([1]))
    at = data.index(b"(1,)")
    # numpy pads the header with blanks; as many go as digits come, so that it stays as long as it says.
    grown = data[:at] + b"(99999999999999,)" + data[at + 4 :].replace(b" " * 13, b"", 1)
    assert len(grown) == len(data)
    with pytest.raises(DataError, match="announces 99999999999999 numbers of float64 and holds 8 bytes"):
        read_vector(grown, "here")


@given(st.binary(max_size=300))
def test_any_bytes_give_a_vector_or_a_data_error(data):
    for start in (b"", b"\x93NUMPY\x01\x00", npy(np.float64([1]))[:60]):
        # Any other exception than a DataError fails the test.
        with suppress(DataError):
            assert read_vector(start + data, "here").ndim == 1


def test_targets_are_zero_or_one_and_codes_have_names():
    assert read_targets(npy(np.uint8([0, 1, 1])), "here") == ([1, 2], 3)
    with pytest.raises(DataError, match="holds 2; multi-label targets are 0 or 1"):
        read_targets(npy(np.int64([0, 2])), "here")
    assert read_codes(npy(np.float64([3, 2_000_000, 0.5])), ["region", "sequence", "income"], "here") == {
        "region": "3",
        "sequence": "2000000",
        "income": "0.5",
    }
    with pytest.raises(
        DataError, match=r"holds 3 numbers, metadata_fields names 2 .region, year.; name every column"
    ):
        read_codes(npy(np.int64([1, 2, 3])), ["region", "year"], "here")


def write_regions(folder, *, codes=(0, 1, 2, 0, 1, 5), with_json=False):
    def metadata(i):
        return (
            {"json": json.dumps({"region": f"r{codes[i]}", "year": 2002}).encode()}
            if with_json
            else {"npy": npy(np.int64([codes[i], 2002 + i]))}
        )

    samples = [
        {"png": encoded(picture(i % 3, i)), "cls": str(i % 3).encode(), **metadata(i)}
        for i in range(len(codes))
    ]
    write_split(folder / "test", samples)
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    (folder / "zeroshot_classification_templates.txt").write_text("{c}\n")
    return folder


FMOW = {
    "tasks": [Task.zero_shot],
    "metric": "worst_group_acc1",
    "group_by": "region",
    "metadata_fields": ["region", "year"],
    "group_names": ["Asia", "Europe", "Africa", "Americas", "Oceania", "Other"],
}


def test_groups_of_samples_come_from_datacomps_codes(tmp_path):
    write_regions(tmp_path / "fmow")
    dataset = open_dataset("fmow", DatasetConfig(**FMOW, ignored_groups=["Other"]), data_root=tmp_path)
    records = list(dataset.test.records())
    assert records[4].metadata == {"region": "1", "year": "2006"}
    metadata = {name: [record.metadata[name] for record in records] for name in ("region", "year")}
    assert dataset.sample_groups(metadata) == ["Asia", "Europe", "Africa", "Asia", "Europe", ""]
    assert open_dataset("fmow", ZERO_SHOT, data_root=tmp_path).sample_groups(metadata) is None
    # The only sample of the group that is ignored may be one that could not be decoded.
    assert dataset.sample_groups({"region": ["0"]}) == ["Asia"]


def test_groups_of_samples_come_from_json(tmp_path):
    write_regions(tmp_path / "own", with_json=True)
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc1", group_by="region", ignored_groups=["r5"])
    dataset = open_dataset("own", config, data_root=tmp_path)
    assert dataset.test.record(0).metadata == {"region": "r0", "year": "2002"}
    assert dataset.sample_groups({"region": ["r0", "r5"]}) == ["r0", ""]


def test_groups_that_are_not_there_are_named(tmp_path):
    write_regions(tmp_path / "fmow")
    for settings, error, message in (
        (
            {"group_names": ["Asia", "Europe"]},
            ConfigError,
            "the code '2' has no name, group_names has 2 .codes 0 to 1.",
        ),
        (
            {"ignored_groups": ["Mars"]},
            ConfigError,
            "unknown group in ignored_groups of .* 'Mars'.*Known: Africa, Asia",
        ),
        (
            {"group_by": "country", "metadata_fields": []},
            DataError,
            "6 samples have no metadata field 'country'.*none",
        ),
        ({"metadata_fields": ["region"]}, DataError, "holds 2 numbers, metadata_fields names 1"),
    ):
        with pytest.raises(error, match=message):
            open_dataset("fmow", DatasetConfig(**{**FMOW, **settings}), data_root=tmp_path)
    write_classification(tmp_path / "plain")
    with pytest.raises(DataError, match=r"no \.npy with its group codes"):
        open_dataset("plain", DatasetConfig(**FMOW), data_root=tmp_path)
    assert groups_of_samples(["b", "a", "b"], "here", ignored=["b"]) == ["", "a", ""]


def test_metadata_that_is_no_json_object_is_refused(tmp_path):
    for number, (text, message) in enumerate(
        (
            (b"{", "is not JSON in UTF-8"),
            (b"\xff", "is not JSON in UTF-8"),
            (b"[1]", "an object of group name"),
        )
    ):
        folder = tmp_path / f"set{number}"
        write_split(folder / "test", [{"png": b"x", "cls": b"0", "json": text}], num_shards=1)
        with pytest.raises(DataError, match=f"sample s0000000: .json .*{message}"):
            TarSplit(folder, "test", with_labels=True, with_captions=False, metadata_columns=[])


def test_a_class_without_samples_is_an_error_unless_meant(tmp_path):
    folder = write_classification(tmp_path / "things", num_classes=6)
    (folder / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(8)))
    with pytest.raises(
        DataError,
        match=r"things/test: 2 of 8 classes have no sample: 'thing 6' .6., 'thing 7' .7.*set allow_empty_classes=true",
    ):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    allowed = DatasetConfig(tasks=[Task.zero_shot], metric="acc1", allow_empty_classes=True)
    assert open_dataset("things", allowed, data_root=tmp_path).num_classes == 8


def test_a_probe_cannot_learn_a_class_that_train_lacks(tmp_path):
    write_classification(tmp_path / "things", num_classes=6)
    write_classification(tmp_path / "things", num_classes=5, split="train")
    (tmp_path / "things" / "classnames.txt").write_text("".join(f"thing {c}\n" for c in range(6)))
    probe = DatasetConfig(tasks=[Task.linear_probe], metric="acc1")
    with pytest.raises(DataError, match=r"things/train: 1 of 6 classes have no sample: 'thing 5'"):
        open_dataset("things", probe, data_root=tmp_path)
    assert open_dataset("things", ZERO_SHOT, data_root=tmp_path).num_classes == 6


def test_many_empty_classes_are_shortened():
    with pytest.raises(
        DataError, match=r"here: 9 of 10 classes have no sample: 1, 2, 3, 4, 5 and more. Check"
    ):
        check_classes_have_samples([0], 10, "here")
    check_classes_have_samples([1, 0], 2, "here")


def test_keys_name_samples_once():
    assert unique_keys(["a", "b"], ["0", "1"]) == ["a", "b"]
    assert unique_keys(["a", "a"], ["0", "1"]) == ["0:a", "1:a"]
    assert unique_keys(["caf\udce9"], ["0"]) == ["caf\\udce9"]


def test_shards_that_use_the_same_keys_are_told_apart(tmp_path):
    folder = tmp_path / "things" / "test"
    folder.mkdir(parents=True)
    for shard in range(2):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            writer.write("same", {"png": encoded(picture(shard, 0)), "cls": str(shard).encode()})
    (folder / "nshards.txt").write_text("2")
    split = TarSplit(tmp_path / "things", "test", with_labels=True, with_captions=False)
    assert [(record.key, record.label) for record in split.records()] == [("0:same", 0), ("1:same", 1)]


@pytest.mark.parametrize(
    "name", ["../../etc/cron.d/x", "/etc/passwd", "a/../../b", "caf\udce9", "x" * 90, "new\nline"]
)
def test_names_in_a_tar_lead_nowhere(tmp_path, name):
    """Nothing is extracted: a name is a key in the results and no more."""
    folder = tmp_path / "deep" / "things" / "test"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "0.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for extension, data in (("cls", b"0"), ("png", encoded(picture(0, 0)))):
            member = tarfile.TarInfo(f"{name}.{extension}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (folder / "nshards.txt").write_text("1")
    before = sorted(tmp_path.rglob("*"))
    split = TarSplit(folder.parent, "test", with_labels=True, with_captions=False)
    (record,) = split.records()
    assert not isinstance(record.image, ImageFault)
    json.dumps(record.key).encode("utf-8")
    assert sorted(tmp_path.rglob("*")) == before


def test_captions_in_another_language_are_in_their_own_field(tmp_path):
    samples = [
        {
            "png": encoded(picture(i, i)),
            "txt": f"picture {i}".encode(),
            "de.txt": f"Bild {i}\nFoto {i}".encode(),
        }
        for i in range(3)
    ]
    write_split(tmp_path / "told" / "test", samples)
    (tmp_path / "told" / "dataset_type.txt").write_text("retrieval")

    def opened(language):
        config = DatasetConfig(tasks=[Task.retrieval], metric="mean_retrieval_recall@1", language=language)
        return open_dataset("told", config, data_root=tmp_path).test

    assert opened("de").record(1).captions == ["Bild 1", "Foto 1"]
    assert opened("en").record(1).captions == ["picture 1"]
    assert opened("de").fingerprint() != opened("en").fingerprint()
    with pytest.raises(
        DataError, match=r"sample s0000000: no .fr.txt with its captions .it has de.txt, png, txt."
    ):
        opened("fr")
    shutil.rmtree(tmp_path / "told" / "test")
    write_split(tmp_path / "told" / "test", [{"png": b"x", "de.txt": b"\xff"}], num_shards=1)
    with pytest.raises(DataError, match=r".de.txt is not UTF-8"):
        opened("de")
