"""Opening data sets: layout, counts, labels, captions, groups, builders, and every way they can be wrong."""

import io
import json
import shutil
import tarfile

import pytest
from evaluation_sets import encoded, picture, write_classification, write_retrieval, write_split
from PIL import Image

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.files import sha256_of
from crawl2clip.shards import ShardEntry, write_manifest
from evaluate.data.benchmark_split import BenchmarkSplit
from evaluate.data.datasets import DatasetConfig, Task, open_dataset, open_datasets, read_groups
from evaluate.data.samples import ImageFault, decode_image
from evaluate.data.tar_split import TarSplit

ZERO_SHOT = DatasetConfig(tasks=[Task.zero_shot], metric="acc1")
RETRIEVAL = DatasetConfig(tasks=[Task.retrieval], metric="image_retrieval_recall@5")


def test_a_folder_in_clip_benchmarks_layout_opens(tmp_path):
    write_classification(tmp_path / "things")
    dataset = open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    assert dataset.num_classes == 6
    assert dataset.test.num_samples == 30
    assert dataset.prompts.per_class()[2] == ["a photo of a thing 2.", "a drawing of a thing 2.", "thing 2"]
    record = dataset.test.record(17)
    assert (record.index, record.label, record.captions) == (17, 5, None)
    assert list(record.image.getdata()) == list(picture(5, 17).getdata())
    assert [r.label for r in dataset.test.records()] == [i % 6 for i in range(30)]


def test_our_own_manifest_counts_samples_and_guards_content(tmp_path):
    folder = write_classification(tmp_path / "things") / "test"
    (folder / "nshards.txt").unlink()
    entries = [
        ShardEntry(path.name, 15, path.stat().st_size, sha256_of(path))
        for path in sorted(folder.glob("*.tar"))
    ]
    write_manifest(folder, entries, {})
    split = TarSplit(folder.parent, "test", with_labels=True, with_captions=False)
    before = split.fingerprint()
    assert len(before) == 64
    write_manifest(folder, [entries[0], ShardEntry("1.tar", 14, entries[1].bytes, entries[1].sha256)], {})
    with pytest.raises(DataError, match=r"1.tar holds 15 samples, its manifest says 14"):
        TarSplit(folder.parent, "test", with_labels=True, with_captions=False)
    write_manifest(folder, [entries[0], ShardEntry("1.tar", 15, entries[1].bytes, "0" * 64)], {})
    with pytest.raises(DataError, match="it was changed or damaged"):
        TarSplit(folder.parent, "test", with_labels=True, with_captions=False).fingerprint()


def test_a_missing_or_uncounted_shard_fails(tmp_path):
    folder = write_classification(tmp_path / "things", num_shards=3)
    moved = folder / "test" / "1.tar"
    moved.rename(tmp_path / "1.tar")
    with pytest.raises(DataError, match=r"nshards.txt says 3 shards, 2 found \(missing: 1.tar\)"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    (tmp_path / "1.tar").rename(moved)
    (folder / "test" / "nshards.txt").write_text("2")
    with pytest.raises(DataError, match=r"says 2 shards, 3 found \(not counted: 2.tar\)"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    (folder / "test" / "nshards.txt").write_text("many")
    with pytest.raises(DataError, match="says 'many'; it must hold the number of tars"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


@pytest.mark.parametrize("keep", [0.4, 0.97])
def test_a_shard_that_is_cut_off_fails(tmp_path, keep):
    shard = write_classification(tmp_path / "things") / "test" / "1.tar"
    data = shard.read_bytes()
    # The archive's padding is 10 kB; cut relative to where the last sample ends.
    shard.write_bytes(data[: int(len(data.rstrip(b"\0")) * keep)])
    with pytest.raises(DataError, match=r"1.tar.*truncated"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


def test_a_folder_that_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"data set 'nothing'.*does not exist.*nshards.txt.*Set data_root"):
        open_dataset("nothing", ZERO_SHOT, data_root=tmp_path)
    write_classification(tmp_path / "things")
    with pytest.raises(DataError, match=r"no split 'val' at .*exists without it"):
        open_dataset(
            "things",
            DatasetConfig(tasks=[Task.zero_shot], metric="acc1", test_split="val"),
            data_root=tmp_path,
        )
    (tmp_path / "things" / "test" / "nshards.txt").unlink()
    with pytest.raises(DataError, match="a missing shard could not be noticed"):
        TarSplit(tmp_path / "things", "test", with_labels=True, with_captions=False)


def test_labels_must_fit_the_class_names(tmp_path):
    folder = write_classification(tmp_path / "things")
    (folder / "classnames.txt").write_text("only\nthree\nnames\n")
    with pytest.raises(
        DataError, match="labels run from 0 to 5, but there are 3 class names; labels must be 0 to 2"
    ):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cls": b"0"}, "sample s0000000: 0 images .it has cls.; one of webp, png, jpg, jpeg is expected"),
        ({"png": b"x", "jpg": b"x", "cls": b"0"}, "sample s0000000: 2 images"),
        (
            {"png": b"x"},
            "sample s0000000: no .cls with its class index .it has png.; check that the task fits",
        ),
        ({"png": b"x", "cls": b"cat"}, "sample s0000000: .cls holds b'cat'; it must hold a class index"),
        ({"png": b"x", "cls": b"-1"}, "labels run from -1 to -1, but there are 6 class names"),
    ],
)
def test_a_sample_without_its_fields_is_named(tmp_path, fields, message):
    folder = write_classification(tmp_path / "things")
    shutil.rmtree(folder / "test")
    write_split(folder / "test", [fields], num_shards=1)
    with pytest.raises(DataError, match=message):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


def test_captions_are_read_a_line_each_and_must_be_there(tmp_path):
    write_retrieval(tmp_path / "told")
    assert open_dataset("told", RETRIEVAL, data_root=tmp_path).test.record(2).captions == [
        f"picture number 2, seen {j} times" for j in range(3)
    ]
    for text, message in ((b" \n\n", "holds no caption"), (b"\xff\xfe", "is not UTF-8")):
        shutil.rmtree(tmp_path / "told" / "test")
        write_split(tmp_path / "told" / "test", [{"png": b"x", "txt": text}], num_shards=1)
        with pytest.raises(DataError, match=message):
            open_dataset("told", RETRIEVAL, data_root=tmp_path)


def test_the_task_must_fit_the_type_of_the_data_set(tmp_path):
    write_retrieval(tmp_path / "told")
    with pytest.raises(
        ConfigError, match=r"'told' .*is a retrieval set.*\(zero_shot\) need a classification set"
    ):
        open_dataset("told", ZERO_SHOT, data_root=tmp_path)
    (tmp_path / "told" / "dataset_type.txt").write_text("captioning")
    with pytest.raises(
        DataError,
        match=r"says .captioning.; the types evaluated here are classification, retrieval, multilabel",
    ):
        open_dataset("told", ZERO_SHOT, data_root=tmp_path)


def test_prompts_come_from_files_then_folder_then_clip_benchmark(tmp_path):
    folder = write_classification(tmp_path / "cifar10", num_classes=6)
    (folder / "zeroshot_classification_templates.txt").unlink()
    assert len(open_dataset("cifar10", ZERO_SHOT, data_root=tmp_path).prompts.templates) == 18
    named = DatasetConfig(tasks=[Task.zero_shot], metric="acc1", prompts="imagenet1k")
    opened = open_dataset("cifar10", named, data_root=tmp_path)
    assert len(opened.prompts.templates) == 80
    assert opened.prompts.class_names[0] == "thing 0"
    (tmp_path / "own.txt").write_text("look: {c}\n")
    own = DatasetConfig(tasks=[Task.zero_shot], metric="acc1", templates_file=str(tmp_path / "own.txt"))
    assert open_dataset("cifar10", own, data_root=tmp_path).prompts.templates == ["look: {c}"]


def test_a_set_without_prompts_is_an_error_and_not_imagenets(tmp_path):
    folder = write_classification(tmp_path / "things")
    (folder / "zeroshot_classification_templates.txt").unlink()
    with pytest.raises(
        ConfigError, match=r"unknown data set with en prompt templates 'things'.*No templates are assumed"
    ):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)
    (folder / "classnames.txt").unlink()
    with pytest.raises(ConfigError, match=r"'things' has no class names; put classnames.txt into"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


def test_acc5_of_four_classes_is_refused(tmp_path):
    write_classification(tmp_path / "things", num_classes=4)
    config = DatasetConfig(tasks=[Task.zero_shot], metric="acc5")
    with pytest.raises(ConfigError, match="'things': acc5 says nothing over 4 classes; use metric=acc1"):
        open_dataset("things", config, data_root=tmp_path)


def test_a_probe_needs_no_names_and_opens_its_splits(tmp_path):
    folder = write_classification(tmp_path / "things", num_classes=4)
    for seed, split in ((1, "train"), (2, "val")):
        write_classification(tmp_path / "things", num_classes=4, split=split, seed=seed)
    (folder / "classnames.txt").unlink()
    config = DatasetConfig(tasks=[Task.linear_probe, Task.few_shot], metric="acc1", val_split="val")
    dataset = open_dataset("things", config, data_root=tmp_path)
    assert (dataset.num_classes, dataset.train.num_samples, dataset.val.num_samples) == (4, 20, 20)
    assert dataset.prompts is None


def test_groups_are_class_indices(tmp_path):
    folder = write_classification(tmp_path / "things")
    (folder / "groups.json").write_text(json.dumps({"unseen": [1, 4]}))
    assert open_dataset("things", ZERO_SHOT, data_root=tmp_path).groups == {"unseen": [1, 4]}
    for value, message in (
        ([1], "must be a JSON object of group name"),
        ({"unseen": []}, "non-empty list of class indices"),
        ({"unseen": [6]}, "group 'unseen' holds 6, which is no class index; allowed are 0 to 5"),
        ({"unseen": [True]}, "holds True"),
    ):
        (folder / "groups.json").write_text(json.dumps(value))
        with pytest.raises(DataError, match=message):
            read_groups(folder / "groups.json", 6)


def test_an_empty_split_fails(tmp_path):
    write_split(write_classification(tmp_path / "things") / "val", [], num_shards=1)
    with pytest.raises(DataError, match="no_samples"):
        TarSplit(tmp_path / "things", "val", with_labels=True, with_captions=False)
    (tmp_path / "flickr8k").mkdir()
    (tmp_path / "flickr8k" / "flickr8k_test_karpathy.txt").write_text("image,caption\n")
    config = DatasetConfig(tasks=[Task.retrieval], metric="text_retrieval_recall@1", builder="flickr8k")
    with pytest.raises(
        DataError,
        match=r"data set 'flickr8k': split 'test' at .*flickr8k holds no sample; .*path or test_split",
    ):
        open_dataset("flickr8k", config, data_root=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": []}, "a data set has no tasks"),
        ({"tasks": [Task.zero_shot, Task.retrieval]}, "make two entries of this data set"),
        (
            {"metric": "accuracy"},
            "unknown metric for zero_shot 'accuracy'; did you mean .* Known: acc1, acc5",
        ),
        (
            {"tasks": [Task.retrieval]},
            r"unknown metric for retrieval 'acc1'\. Known: image_retrieval_recall@1",
        ),
        (
            {"tasks": [Task.linear_probe], "builder": "eurosat"},
            "'eurosat' has no train and test split in torchvision",
        ),
    ],
)
def test_entries_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DatasetConfig(**{"tasks": [Task.zero_shot], "metric": "acc1", **settings})


def test_hostile_images_are_faults_that_name_their_place():
    for data in (b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, encoded(picture(0, 0))[:200]):
        fault = decode_image(data, "shard 0.tar, sample x")
        assert isinstance(fault, ImageFault)
        assert fault.where == "shard 0.tar, sample x"
        assert fault.reason
        assert "0x" not in fault.reason  # an address differs from run to run, and results are compared
    assert decode_image(encoded(picture(0, 0).convert("L")), "").mode == "RGB"


def test_a_link_in_a_shard_is_not_followed(tmp_path):
    folder = write_classification(tmp_path / "things")
    link = tarfile.TarInfo("s0000099.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(folder / "test" / "0.tar", "a") as archive:
        archive.addfile(link)
    with pytest.raises(DataError, match="not_a_file"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)


def test_a_torchvision_set_on_disk_opens_through_clip_benchmark(tmp_path):
    """fer2013 is an ImageFolder there: <root>/test/<class>/<image>."""
    for number in range(7):
        target = tmp_path / "fer2013" / "test" / f"{number}" / "a.png"
        target.parent.mkdir(parents=True)
        picture(number, number).save(target)
    dataset = open_dataset(
        "fer2013", DatasetConfig(tasks=[Task.zero_shot], metric="acc1", builder="fer2013"), data_root=tmp_path
    )
    assert isinstance(dataset.test, BenchmarkSplit)
    assert dataset.num_classes == 7
    assert len(dataset.prompts.templates) == 6
    assert [r.label for r in dataset.test.records()] == list(range(7))
    before = BenchmarkSplit("fer2013", tmp_path / "fer2013", "test", download=False).fingerprint()
    (tmp_path / "fer2013" / "test" / "3" / "a.png").write_bytes(b"cut off")
    split = BenchmarkSplit("fer2013", tmp_path / "fer2013", "test", download=False)
    assert split.fingerprint() != before
    assert split.record(3).image == ImageFault("fer2013/test, index 3", split.record(3).image.reason)
    assert "cannot identify image file" in split.record(3).image.reason


def test_a_builder_neither_downloads_nor_shells_out_unasked(tmp_path):
    with pytest.raises(DataError, match=r"'cifar10' is not at .*allow downloads with download=true"):
        BenchmarkSplit("cifar10", tmp_path / "cifar10", "test", download=False)
    (tmp_path / "flickr8k").mkdir()
    with pytest.raises(
        DataError, match=r"CLIP_benchmark wants to run 'wget .*flickr8k_test_karpathy.txt.*do that by hand"
    ):
        BenchmarkSplit("flickr8k", tmp_path / "flickr8k", "test", download=False)
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match=r"cannot build 'cifar10', split 'test'.*Dataset not found"):
        BenchmarkSplit("cifar10", tmp_path / "cifar10", "test", download=False)
    with pytest.raises(DataError, match=r"cannot build 'no_such_set'.*Unsupported dataset"):
        BenchmarkSplit("no_such_set", tmp_path / "cifar10", "test", download=False)


def test_a_builders_retrieval_set_gives_captions(tmp_path):
    root = tmp_path / "flickr8k"
    root.mkdir()
    for name in ("x.jpg", "y.jpg"):
        Image.new("RGB", (20, 20)).save(root / name)
    text = io.StringIO(
        "image,caption\n" + "".join(f"{n}.jpg,caption {i} of {n}, yes\n" for n in "xy" for i in range(2))
    )
    (root / "flickr8k_test_karpathy.txt").write_text(text.read())
    config = DatasetConfig(tasks=[Task.retrieval], metric="text_retrieval_recall@1", builder="flickr8k")
    (dataset,) = open_datasets({"flickr8k": config}, data_root=tmp_path)
    assert [r.captions for r in dataset.test.records()] == [
        [f"caption {i} of {n}, yes" for i in range(2)] for n in "xy"
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tasks": [Task.selection], "metric": "acc5"},
            "unknown metric for selection 'acc5'.*Known: acc1, group_score",
        ),
        ({"tasks": [Task.multi_label, Task.zero_shot]}, "multi_label and zero_shot need different headlines"),
        ({"metric": "worst_group_acc1"}, "worst_group_acc1 needs group_by, the metadata field"),
        ({"tasks": [Task.linear_probe], "metric": "roc_auc"}, "unknown metric for linear_probe 'roc_auc'"),
        ({"group_names": ["a"]}, "group_names and ignored_groups say nothing without group_by"),
        (
            {"tasks": [Task.linear_probe], "val_split": "test"},
            "are test, train, test: one of them twice, so a probe would be scored on images it has seen",
        ),
        ({"tasks": [Task.knn], "train_split": "test"}, "are test, test: one of them twice"),
        (
            {"group_by": "regio", "metadata_fields": ["region", "year"]},
            "unknown metadata field in group_by 'regio'; did you mean 'region'",
        ),
        (
            {"hub": "a/b", "url": "http://c"},
            r"both hub .a/b. and url .http://c. are set; keep the one to fetch from",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        DatasetConfig(**{"tasks": [Task.zero_shot], "metric": "acc1", **settings})


def test_two_classes_are_needed_for_a_roc_curve(tmp_path):
    write_classification(tmp_path / "things", num_classes=4)
    with pytest.raises(ConfigError, match="roc_auc is for two classes, this set has 4; use metric=acc1"):
        open_dataset("things", DatasetConfig(tasks=[Task.zero_shot], metric="roc_auc"), data_root=tmp_path)


def test_a_shard_whose_samples_were_lost_is_empty_and_fails(tmp_path):
    folder = write_classification(tmp_path / "things", num_shards=2)
    with tarfile.open(folder / "test" / "1.tar", "w"):
        pass
    with pytest.raises(DataError, match=r"1.tar: no_samples"):
        open_dataset("things", ZERO_SHOT, data_root=tmp_path)
