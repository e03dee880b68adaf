"""SugarCrepe, Winoground and WinoGAViL as their authors publish them: read whole, or refused."""

import json
import shutil
import struct
import zipfile

import pytest
from evaluation_sets import encoded, picture

from crawl2clip.errors import ConfigError, DataError
from evaluate.data.datasets import DatasetConfig, Task, open_dataset
from evaluate.data.image_files import MAX_IMAGE_BYTES, ImageFiles
from evaluate.data.samples import ImageFault
from evaluate.data.selection_split import SelectionSplit
from evaluate.data.winogavil_split import WinogavilSplit


def write_sugar_crepe(folder, *, name="add_att", num=4):
    (folder / "val2017").mkdir(parents=True)
    examples = {}
    for i in range(num):
        (folder / "val2017" / f"{i:012d}.jpg").write_bytes(encoded(picture(i, i), "jpeg"))
        # Keys are not contiguous in the published files either.
        examples[str(2 * i)] = {
            "filename": f"{i:012d}.jpg",
            "caption": f"a {i}",
            "negative_caption": f"no {i}",
        }
    (folder / f"{name}.json").write_text(json.dumps(examples))
    return folder


def write_winoground(folder, *, num=3, zipped=True):
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    lines = []
    for i in range(num):
        for side in range(2):
            (data / "images" / f"ex_{i}_img_{side}.png").write_bytes(encoded(picture(2 * i + side, i)))
        lines.append({
            "id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", "caption_0": f"{i} over it",
            "caption_1": f"it over {i}", "collapsed_tag": "Object",
        })  # fmt: skip
    (data / "examples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if zipped:
        with zipfile.ZipFile(data / "images.zip", "w") as archive:
            for path in sorted((data / "images").iterdir()):
                archive.write(path, f"images/{path.name}")
        shutil.rmtree(data / "images")
    return folder


BOARDS = """,candidates,cue,associations,score_fool_the_ai,num_associations,num_candidates
0,"[""eagle"", ""teepee"", ""ash""]",Bald,"[""eagle"", ""ash""]",0,2,3
1,"[""eagle"", ""tea party"", ""ash""]",outdoor,"[""tea party""]",0,1,3
2,"[""teepee"", ""tea party""]",west,"[""teepee""]",0,1,2
"""


def write_winogavil(folder, *, table=BOARDS):
    (folder / "winogavil_images").mkdir(parents=True)
    for number, name in enumerate(("eagle", "teepee", "ash", "tea party")):
        (folder / "winogavil_images" / f"{name}.jpg").write_bytes(encoded(picture(number, 0), "jpeg"))
    (folder / "winogavil_dataset.csv").write_text(table, encoding="utf-8")
    return folder


def test_sugar_crepes_image_has_a_right_and_a_wrong_caption(tmp_path):
    write_sugar_crepe(tmp_path / "sugar_crepe")
    config = DatasetConfig(
        tasks=[Task.selection], metric="acc1", path="sugar_crepe", builder="sugar_crepe/add_att"
    )
    dataset = open_dataset("sugar_crepe/add_att", config, data_root=tmp_path)
    records = list(dataset.test.records())
    assert [(record.key, record.captions) for record in records[:2]] == [
        ("0", ["a 0", "no 0"]),
        ("2", ["a 1", "no 1"]),
    ]
    assert (dataset.test.images_per_example, dataset.prompts, dataset.num_classes) == (1, None, None)
    assert records[0].image.size == (40, 40)
    again = open_dataset("sugar_crepe/add_att", config, data_root=tmp_path, download=True)
    assert again.test.keys == dataset.test.keys  # all there: CLIP_benchmark has nothing to fetch


def test_sugar_crepe_equals_clip_benchmarks_reader(tmp_path):
    from clip_benchmark.datasets.builder import build_dataset

    folder = write_sugar_crepe(tmp_path / "sugar_crepe", name="swap_obj")
    theirs = build_dataset(
        "sugar_crepe/swap_obj", root=str(folder), download=False, task="image_caption_selection"
    )
    ours = SelectionSplit("sugar_crepe/swap_obj", folder, "test")
    assert [captions for _, captions in theirs] == ours.captions


@pytest.mark.parametrize("zipped", [True, False])
def test_winogrounds_images_come_in_pairs(tmp_path, zipped):
    write_winoground(tmp_path / "winoground", zipped=zipped)
    config = DatasetConfig(tasks=[Task.selection], metric="group_score", builder="winoground")
    split = open_dataset("winoground", config, data_root=tmp_path).test
    records = list(split.records())
    assert split.images_per_example == 2
    assert [record.key for record in records] == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]
    assert [record.captions for record in records[2:4]] == [["1 over it"], ["it over 1"]]
    assert records[0].metadata == {"tag": "Object"}
    assert list(records[3].image.getdata()) == list(picture(3, 1).getdata())


def test_fingerprints_are_of_the_list_and_the_images(tmp_path):
    folder = write_winoground(tmp_path / "winoground")
    before = SelectionSplit("winoground", folder, "test").fingerprint()
    with zipfile.ZipFile(folder / "data" / "images.zip", "a") as archive:
        archive.writestr("images/more.png", b"x")
    after = SelectionSplit("winoground", folder, "test").fingerprint()
    boards = write_winogavil(tmp_path / "winogavil")
    first = WinogavilSplit(boards, "test").fingerprint()
    (boards / "winogavil_images" / "ash.jpg").write_bytes(encoded(picture(9, 9), "jpeg"))
    assert before != after
    assert first != WinogavilSplit(boards, "test").fingerprint()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": ""}, r"add_att.json, example 0: filename, caption, negative_caption must all be texts"),
        ({"caption": None}, r"must all be texts"),
        ({"filename": "../../../etc/passwd"}, r"'../../../etc/passwd' is not below .*val2017"),
        ({"filename": "/etc/passwd"}, r"'/etc/passwd' is not below"),
        (
            {"filename": "none.jpg"},
            r"1 of 4 images are missing, the first is none.jpg; fetch the images again",
        ),
    ],
)
def test_an_example_of_another_form_is_refused(tmp_path, change, message):
    folder = write_sugar_crepe(tmp_path / "sugar_crepe")
    examples = json.loads((folder / "add_att.json").read_text())
    examples["0"].update(change)
    (folder / "add_att.json").write_text(json.dumps(examples))
    with pytest.raises(DataError, match=message):
        SelectionSplit("sugar_crepe/add_att", folder, "test")


def test_lists_that_are_not_there_or_of_another_form(tmp_path):
    folder = write_sugar_crepe(tmp_path / "sugar_crepe")
    for text, message in (
        ("[]", "must be a JSON object of example"),
        ("{}", "must be a JSON object"),
        ("{", "is not valid"),
    ):
        (folder / "add_att.json").write_text(text)
        with pytest.raises(DataError, match=message):
            SelectionSplit("sugar_crepe/add_att", folder, "test")
    with pytest.raises(DataError, match=r"add_obj.json is missing"):
        SelectionSplit("sugar_crepe/add_obj", folder, "test")
    with pytest.raises(ConfigError, match="unknown set of SugarCrepe 'add_at'; did you mean 'add_att'"):
        SelectionSplit("sugar_crepe/add_at", folder, "test")
    with pytest.raises(ConfigError, match="winoground has no split 'train'; its only one is test"):
        SelectionSplit("winoground", folder, "train")
    with pytest.raises(
        DataError, match=r"examples.jsonl is missing; Winoground is facebook/winoground.*hf download"
    ):
        SelectionSplit("winoground", tmp_path, "test")
    listed = write_winoground(tmp_path / "winoground") / "data" / "examples.jsonl"
    for text, message in (
        (b"", "holds no example"),
        (b"{", "not a list of JSON objects"),
        (b"\xff", "JSON objects in UTF-8"),
        (b"[]\n", "line 1: image_0, .* must all be texts"),
    ):
        listed.write_bytes(text)
        with pytest.raises(DataError, match=message):
            SelectionSplit("winoground", tmp_path / "winoground", "test")


def test_boards_refer_to_images_by_position(tmp_path):
    write_winogavil(tmp_path / "winogavil")
    config = DatasetConfig(tasks=[Task.winogavil], metric="jaccard_10_12", builder="winogavil")
    split = open_dataset("winogavil", config, data_root=tmp_path).test
    assert split.keys == ["ash", "eagle", "tea party", "teepee"]
    first, second, third = split.boards
    assert (first.prompt, first.candidates, first.associations) == ("A bald", [1, 3, 0], [1, 0])
    assert (second.prompt, third.prompt) == ("An outdoor", "A west")
    record = split.record(3)
    assert (record.key, record.label, record.captions, record.image.size) == ("teepee", None, None, (40, 40))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "holds no board"),
        ("candidates,cue,associations\n", "holds no board"),
        ('candidates,cue,associations\n"[""eagle"", ""ash""]",,"[""ash""]"\n', "board 0: a cue, a JSON list"),
        (
            'candidates,cue,associations\n"[""eagle"", ""ash""]",x,"[""eagle"", ""ash""]"\n',
            "one of some of them",
        ),
        ('candidates,cue,associations\n"[""eagle"", ""ash""]",x,"[]"\n', "board 0: "),
        ('candidates,cue,associations\n"[""eagle"", ""ash""]",x,"[""teepee""]"\n', "board 0: "),
        ('candidates,cue,associations\n"[""ash"", ""ash""]",x,"[""ash""]"\n', "distinct candidates"),
        ("candidates,cue,associations\neagle,x,eagle\n", "board 0: "),
        (
            'candidates,cue,associations\n"[""yak"", ""ash""]",x,"[""ash""]"\n',
            r"1 of 2 images are missing.*yak.jpg",
        ),
        ('candidates,cue,associations\n"[""../x"", ""ash""]",x,"[""ash""]"\n', "'../x.jpg' is not below"),
    ],
)
def test_boards_of_another_form_are_refused(tmp_path, table, message):
    with pytest.raises(DataError, match=message):
        WinogavilSplit(write_winogavil(tmp_path / "winogavil", table=table), "test")


def test_a_winogavil_list_that_cannot_be_read(tmp_path):
    with pytest.raises(
        DataError, match=r"winogavil_dataset.csv is missing; WinoGAViL is nlphuji/winogavil on the hub"
    ):
        WinogavilSplit(tmp_path, "test")
    (tmp_path / "winogavil_dataset.csv").write_bytes(b"candidates\n\xff\n")
    with pytest.raises(DataError, match="is not a table in UTF-8"):
        WinogavilSplit(tmp_path, "test")
    with pytest.raises(ConfigError, match="winogavil has no split 'val'"):
        WinogavilSplit(tmp_path, "val")


def damaged(path, name):
    """Turns bits of a member's data over."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    header = info.header_offset
    start = header + 30 + sum(struct.unpack("<HH", data[header + 26 : header + 30]))
    data[start + 20] ^= 255
    path.write_bytes(data)


def test_a_damaged_member_is_a_fault_and_a_damaged_archive_an_error(tmp_path):
    folder = write_winoground(tmp_path / "winoground")
    damaged(folder / "data" / "images.zip", "images/ex_1_img_0.png")
    fault = SelectionSplit("winoground", folder, "test").record(2).image
    assert isinstance(fault, ImageFault)
    assert "CRC" in fault.reason
    assert fault.where == "winoground/test, ex_1_img_0.png"
    (folder / "data" / "images.zip").write_bytes(b"PK cut off")
    with pytest.raises(DataError, match=r"images\.zip is not a zip archive .*fetch it again"):
        SelectionSplit("winoground", folder, "test")


def test_a_member_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(1000))
    data = bytearray((tmp_path / "images.zip").read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    data[at : at + 4] = struct.pack("<I", MAX_IMAGE_BYTES + 1)
    (tmp_path / "images.zip").write_bytes(data)
    fault = ImageFiles(tmp_path / "images", tmp_path / "images.zip").image("x.png", "here")
    assert fault == ImageFault("here", f"OSError: it unpacks to {MAX_IMAGE_BYTES + 1} bytes, more than the "
                                       f"{MAX_IMAGE_BYTES} that are read")  # fmt: skip
