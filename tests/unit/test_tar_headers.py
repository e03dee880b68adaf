"""Plain tar headers: what tarfile reads from the same bytes, and where it must take over."""

import io
import os
import random
import tarfile

import pytest
import webdataset

from crawl2clip.shards import ShardWriter, index_shard
from crawl2clip.tar_headers import plain_members


def plainly_read(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(plain_members(descriptor))
    finally:
        os.close(descriptor)


def read_by_tarfile(path):
    with tarfile.open(path) as archive:
        return [(member.name, member.offset_data, member.size) for member in archive if member.isfile()]


def member(name, size=3, **attributes):
    found = tarfile.TarInfo(name)
    found.size = size
    for attribute, value in attributes.items():
        setattr(found, attribute, value)
    return found


def write(path, members, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for each in members:
            archive.addfile(each, io.BytesIO(bytes(each.size)))
    return path


SIZES = [0, 1, 511, 512, 513, 8192, 20_000]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_members_of_every_form_of_tar(tmp_path, form):
    name = "e" if form == tarfile.PAX_FORMAT else "é"  # for which pax has a record of its own
    members = [member(f"a/{name}{number}.jpg", size, mtime=number) for number, size in enumerate(SIZES)]
    path = write(tmp_path / "0.tar", members, form)
    assert plainly_read(path) == read_by_tarfile(path)
    assert [size for *_, size in plainly_read(path)] == SIZES


def test_what_webdataset_and_we_write_is_plain(tmp_path):
    """Their writer notes times in fractions of a second, in a record before each member."""
    ours, theirs = tmp_path / "ours.tar", tmp_path / "theirs.tar"
    with ShardWriter(ours) as writer, webdataset.TarWriter(str(theirs)) as other:  # type: ignore[attr-defined]
        for number, size in enumerate(SIZES):
            writer.write(f"{number:04d}", {"jpg": bytes(size), "txt": b"a"})
            other.write({"__key__": f"{number:04d}", "jpg": bytes(size), "txt": b"a"})
    for path in (ours, theirs):
        assert plainly_read(path) == read_by_tarfile(path)
        assert len(plainly_read(path)) == 2 * len(SIZES)


@pytest.mark.parametrize(
    "odd",
    [
        member("x" * 120 + ".jpg"),
        member("x" * 80 + "/" + "y" * 80 + ".jpg"),
        member("b.jpg", 0, type=tarfile.SYMTYPE, linkname="a.jpg"),
        member("folder", 0, type=tarfile.DIRTYPE),
        member("b.jpg", pax_headers={"path": "c.jpg"}),
        member("b.jpg", pax_headers={"comment": "times=1"}),
        member("b.jpg", 3, uid=8**9),
    ],
    ids=["long", "long with folder", "link", "folder", "pax path", "pax comment", "large uid"],
)
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_from_an_odd_member_on_tarfile_reads(tmp_path, odd, form):
    assert_read_by_both(write(tmp_path / "0.tar", [member("a.jpg"), odd, member("z.jpg")], form))


def test_a_folder_apart_from_its_name(tmp_path):
    names = ("a.jpg", "x" * 80 + "/" + "y" * 80 + ".jpg", "z.jpg")
    path = write(tmp_path / "0.tar", [member(name) for name in names], tarfile.USTAR_FORMAT)
    assert_read_by_both(path)
    assert len(plainly_read(path)) == 1


def assert_read_by_both(path):
    """What is read plainly is the beginning of what tarfile reads, and all of it is in the index."""
    every, read = read_by_tarfile(path), plainly_read(path)
    assert read == every[: len(read)]
    fields = [span for sample in index_shard(path, lambda _: None) for span in sample.fields.values()]
    assert fields == [(offset, size) for _, offset, size in every]


def test_a_header_with_another_sum_is_not_plain(tmp_path):
    path = write(tmp_path / "0.tar", [member("a.jpg"), member("b.jpg")])
    data = bytearray(path.read_bytes())
    data[1024] ^= 1  # of the second name
    path.write_bytes(data)
    assert len(plainly_read(path)) == 1


def test_damage_anywhere_gives_no_member_that_tarfile_would_not_give(tmp_path):
    path = write(tmp_path / "0.tar", [member(f"{number}.jpg", 600, mtime=0.5) for number in range(4)])
    whole, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.5 else data)
        read = plainly_read(path)
        try:
            every = read_by_tarfile(path)
        except tarfile.TarError:  # it tells no more than that the archive is cut off
            continue
        assert read == every[: len(read)]
