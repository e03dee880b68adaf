"""Reading and writing shards, whole, broken and hostile."""

import io
import tarfile

import pytest
import webdataset

from crawl2clip.errors import DataError
from crawl2clip.files import sha256_of
from crawl2clip.shards import (
    ShardEntry,
    ShardWriter,
    index_shard,
    list_shards,
    raise_fault,
    read_manifest,
    read_samples,
    split_name,
    write_manifest,
)


def write(path, count=3):
    with ShardWriter(path) as writer:
        for i in range(count):
            writer.write(f"{i:04d}", {"txt": f"caption {i}".encode(), "jpg": bytes([i]) * 1000})
    return path


def read(path):
    faults = []
    return list(read_samples(path, faults.append)), faults


def test_round_trip_and_webdataset_reads_it(tmp_path):
    path = write(tmp_path / "a.tar")
    samples, faults = read(path)
    assert not faults
    assert [sample.key for sample in samples] == ["0000", "0001", "0002"]
    assert samples[1].fields == {"jpg": b"\x01" * 1000, "txt": b"caption 1"}
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in theirs] == ["0000", "0001", "0002"]
    assert theirs[1]["txt"] == b"caption 1"


def test_bytes_depend_on_the_samples_alone(tmp_path):
    assert sha256_of(write(tmp_path / "a.tar")) == sha256_of(write(tmp_path / "b.tar"))


def test_every_cut_is_found_and_costs_no_whole_sample(tmp_path):
    whole = write(tmp_path / "a.tar").read_bytes()
    ends = [index.fields["txt"][0] + 9 for index in index_shard(tmp_path / "a.tar", raise_fault)]
    cut = tmp_path / "cut.tar"
    for size in [*range(2048, ends[-1], 700), *ends]:
        cut.write_bytes(whole[:size])
        samples, faults = read(cut)
        assert [fault.reason for fault in faults if fault.reason != "no_samples"] == ["truncated"], size
        assert len([s for s in samples if len(s.fields) == 2]) == sum(end <= size for end in ends), size


def test_what_is_not_a_shard(tmp_path):
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "html.tar").write_bytes(b"<html>404</html>" * 100)
    tarfile.open(tmp_path / "none.tar", "w").close()
    for name, reason in [
        ("empty", "not_a_tar"),
        ("html", "not_a_tar"),
        ("none", "no_samples"),
        ("gone", "missing"),
    ]:
        samples, faults = read(tmp_path / f"{name}.tar")
        assert not samples
        assert reason in [fault.reason for fault in faults], name


def test_hostile_members_are_faults_and_the_rest_is_read(tmp_path):
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:

        def add(name, data=b"x", kind=tarfile.REGTYPE):
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, "/etc/passwd"
            tar.addfile(info, io.BytesIO(data))

        add("../../escape.jpg")
        add("link.jpg", b"", tarfile.SYMTYPE)
        add("good.jpg")
        add("good.jpg", b"again")
        add("other.jpg")
        add("good.txt")
    samples, faults = read(path)
    assert [(sample.key, sample.fields) for sample in samples] == [
        ("../../escape", {"jpg": b"x"}),  # a key only; nothing is ever written under that path
        ("good", {"jpg": b"x"}),
        ("other", {"jpg": b"x"}),
    ]
    assert [fault.reason for fault in faults] == ["not_a_file", "duplicate_field", "duplicate_key"]
    with pytest.raises(
        DataError,
        match=r"hostile\.tar, sample link\.jpg: not_a_file \(links and .*; write it again or leave it out",
    ):
        list(read_samples(path, raise_fault))


def test_split_name():
    assert split_name("a/b.c/d.SEG.Png") == ("a/b.c/d", "seg.png")
    assert split_name("noext") == ("noext", "")


def test_list_shards(tmp_path):
    names = [str(write(tmp_path / f"a-{i:04d}.tar")) for i in range(3)]
    assert list_shards(str(tmp_path)) == names
    assert list_shards(f"{tmp_path}/a-{{0000..0002}}.tar") == names
    assert list_shards(f"{tmp_path}/a-000[01].tar::{names[2]}") == names
    write_manifest(tmp_path, [ShardEntry("a-0001.tar", 3, 1, "x")], {})
    assert list_shards(str(tmp_path)) == names[1:2]
    with pytest.raises(DataError, match="no shard at"):
        list_shards(f"{tmp_path}/*.zip")
    with pytest.raises(DataError, match=r"1 of 4 shards .* missing, the first is .*a-0003\.tar"):
        list_shards(f"{tmp_path}/a-{{0000..0003}}.tar")


def test_manifest_of_something_else(tmp_path):
    (tmp_path / "manifest.json").write_text('{"stage": "download"}')
    with pytest.raises(DataError, match="not a manifest of training shards"):
        read_manifest(tmp_path)


def test_the_writer_gives_the_bytes_of_tarfile(tmp_path):
    samples = [
        (f"{number:032x}", {"jpg": bytes(number * 700), "txt": f"text {number} ü".encode(), "json": b"{}"})
        for number in range(12)
    ]
    samples += [("folder/ü name", {"txt": b""}), ("a/" * 40 + "long" * 10, {"jpg": b"x" * 512})]
    with ShardWriter(tmp_path / "ours.tar") as writer:
        for key, fields in samples:
            writer.write(key, fields)
    with tarfile.open(tmp_path / "theirs.tar", "w:", format=tarfile.USTAR_FORMAT) as tar:
        for key, fields in samples:
            for extension in sorted(fields):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size, member.mode, member.mtime = len(fields[extension]), 0o444, 0
                tar.addfile(member, io.BytesIO(fields[extension]))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    with ShardWriter(tmp_path / "empty.tar"):
        pass
    with tarfile.open(tmp_path / "empty.tar") as tar:
        assert list(tar) == []
