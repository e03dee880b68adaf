"""Every form of data, from its files to a number, by the library's own entry."""

import io
import json

import numpy as np
import pytest
import torch
from evaluation_sets import PlainEncoder, encoded, picture, write_classification, write_split

from crawl2clip.distributed import World
from crawl2clip.errors import DataError
from evaluate.data.datasets import DatasetConfig, Task, open_datasets
from evaluate.run import evaluate

WORLD = World(0, 1, 0, torch.device("cpu"))


def npy(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def scored(data_root, name="things", *, max_bad_images=0, **settings):
    config = DatasetConfig(**{"tasks": [Task.zero_shot], "metric": "acc1", **settings})
    (result,) = evaluate(
        PlainEncoder(),
        open_datasets({name: config}, data_root=data_root),
        world=WORLD,
        max_bad_images=max_bad_images,
        show_progress=False,
    )
    return result


def test_a_folder_of_images_scores_as_its_tars_do(tmp_path):
    tars = write_classification(tmp_path / "tars")
    for i in range(30):
        path = tmp_path / "folders" / "test" / f"class{i % 6}" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i % 6, i)))
    for file in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (tmp_path / "folders" / file).write_text((tars / file).read_text())
    folders = scored(tmp_path, "folders", builder="image_folder")
    assert folders.headline == scored(tmp_path, "tars").headline
    assert (folders.num_samples, folders.num_classes) == (30, 6)


def test_several_labels_an_image(tmp_path):
    targets = np.float32([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    samples = [{"png": encoded(picture(i, i)), "npy": npy(row)} for i, row in enumerate(targets)]
    write_split(tmp_path / "voc" / "test", samples)
    (tmp_path / "voc" / "dataset_type.txt").write_text("multilabel")
    (tmp_path / "voc" / "classnames.txt").write_text("cat\ndog\nowl\n")
    (tmp_path / "voc" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    result = scored(tmp_path, "voc", tasks=[Task.multi_label], metric="mean_average_precision")
    assert 0 < result.headline.value <= 1
    assert (result.num_samples, result.num_classes) == (4, 3)


def test_the_worst_of_datacomps_groups(tmp_path):
    samples = [
        {
            "png": encoded(picture(i % 2, i)),
            "cls": str(i % 2).encode(),
            "npy": npy(np.int64([i % 3, 2000 + i])),
        }
        for i in range(12)
    ]
    write_split(tmp_path / "fmow" / "test", samples)
    (tmp_path / "fmow" / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "fmow" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    result = scored(
        tmp_path, "fmow", metric="worst_group_acc1", group_by="region", metadata_fields=["region", "year"],
        group_names=["Asia", "Europe", "Other"], ignored_groups=["Other"],
    )  # fmt: skip
    assert result.details["group_sizes"] == {"Asia": 4, "Europe": 4}
    assert result.headline.value == min(result.groups[name]["acc1"].value for name in ("Asia", "Europe"))
    assert any("4 of 12 samples belong to no group" in note for note in result.notes)


def test_captions_of_sugar_crepe_and_winoground(tmp_path):
    images = tmp_path / "sugar_crepe" / "val2017"
    images.mkdir(parents=True)
    examples = {}
    for i in range(4):
        (images / f"{i}.jpg").write_bytes(encoded(picture(i, i), "jpeg"))
        examples[str(i)] = {"filename": f"{i}.jpg", "caption": f"a {i}", "negative_caption": f"not {i}"}
    (tmp_path / "sugar_crepe" / "add_obj.json").write_text(json.dumps(examples))
    crepe = scored(
        tmp_path,
        "sugar_crepe/add_obj",
        tasks=[Task.selection],
        path="sugar_crepe",
        builder="sugar_crepe/add_obj",
    )
    assert crepe.headline.num == 4
    data = tmp_path / "winoground" / "data"
    (data / "images").mkdir(parents=True)
    lines = []
    for i in range(3):
        for side in range(2):
            (data / "images" / f"{i}_{side}.png").write_bytes(encoded(picture(i, side)))
        line = {
            "id": i,
            "image_0": f"{i}_0",
            "image_1": f"{i}_1",
            "caption_0": f"x {i}",
            "caption_1": f"{i} x",
        }
        lines.append(json.dumps(line))
    (data / "examples.jsonl").write_text("\n".join(lines))
    settings = {"tasks": [Task.selection], "metric": "group_score", "builder": "winoground"}
    assert scored(tmp_path, "winoground", **settings).headline.num == 3
    (data / "images" / "1_0.png").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"winoground/test: .*cannot be decoded"):
        scored(tmp_path, "winoground", **settings)
    rest = scored(tmp_path, "winoground", max_bad_images=1, **settings)
    assert (rest.headline.num, rest.num_bad_images) == (2, 1)


def test_boards_of_winogavil(tmp_path):
    images = tmp_path / "winogavil" / "winogavil_images"
    images.mkdir(parents=True)
    for number, name in enumerate("abcde"):
        (images / f"{name}.jpg").write_bytes(encoded(picture(number, 0), "jpeg"))
    (tmp_path / "winogavil" / "winogavil_dataset.csv").write_text(
        'candidates,cue,associations\n"[""a"", ""b"", ""c"", ""d"", ""e""]",old,"[""a"", ""b""]"\n'
        '"[""a"", ""c"", ""e""]",new,"[""e""]"\n'
    )
    settings = {"tasks": [Task.winogavil], "metric": "jaccard", "builder": "winogavil"}
    assert scored(tmp_path, "winogavil", **settings).headline.num == 2
    (images / "d.jpg").write_bytes(b"cut off")
    rest = scored(tmp_path, "winogavil", max_bad_images=1, **settings)
    assert (rest.headline.num, rest.num_bad_images) == (1, 1)
    assert any("1 questions are left out" in note for note in rest.notes)
