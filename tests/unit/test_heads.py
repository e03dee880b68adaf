"""Heads: every form they were published in, made here; scores in float64 by hand; weights that are not trusted."""

import hashlib
import json
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest
import torch
from tag_runs import NAME, config_of, export, png, tag, write_raw
from torch import nn

from crawl2clip.errors import ConfigError, DataError
from data_pipeline.taggers import head_files
from data_pipeline.taggers.head_files import load_head, main
from data_pipeline.taggers.heads import HeadConfig, HeadOutput, HeadTagger
from data_pipeline.taggers.tensor_bundle import read_tensor_bundle
from data_pipeline.taggers.weights_file import WeightsFile

WIDTH = 16  # of tag_runs' tiny model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return export(tmp_path_factory.mktemp("weights"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sequential(relu, width=WIDTH):
    """The published networks' layers, at another width: improved-aesthetic-predictor's, and LAION's for H/14."""
    a, d = nn.ReLU, partial(nn.Dropout, 0.2)
    sizes = [width, 8, 8, 8, 8, 1]
    f = [nn.Linear(*pair) for pair in pairwise(sizes)]
    if relu == "none":
        return nn.Sequential(f[0], d(), f[1], d(), f[2], d(), f[3], f[4])
    if relu == "all":
        return nn.Sequential(f[0], a(), d(), f[1], a(), d(), f[2], a(), d(), f[3], a(), f[4])
    g = [nn.Linear(8, 8), nn.Linear(8, 8)]
    return nn.Sequential(
        f[0], a(), d(), f[1], a(), d(), f[2], a(), d(), f[3], a(), d(), g[0], a(), d(), g[1], f[4]
    )


@pytest.mark.parametrize("relu", ["none", "all", "h14"])
def test_a_published_sequential_gives_what_its_own_module_gives(tmp_path, relu):
    torch.manual_seed(0)
    module = nn.Module()
    module.layers = sequential(relu)
    torch.save(module.state_dict(), tmp_path / "head.pth")
    x = nn.functional.normalize(torch.randn(9, WIDTH), dim=-1)
    head = load_head(tmp_path / "head.pth")
    torch.testing.assert_close(head(x), module.layers.eval()(x).detach())
    assert main([str(tmp_path / "head.pth"), str(tmp_path / "ours.safetensors")]) == 0
    torch.testing.assert_close(load_head(tmp_path / "ours.safetensors")(x), head(x))


def test_a_linear_head_is_one_layer(tmp_path):
    linear = nn.Linear(WIDTH, 1)
    torch.save(linear.state_dict(), tmp_path / "head.pth")
    x = torch.randn(3, WIDTH)
    torch.testing.assert_close(load_head(tmp_path / "head.pth")(x), linear(x).detach())


# A TensorFlow checkpoint, written after the format's documentation


def varint(number):
    parts = []
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def field(number, value):
    return varint(number << 3) + varint(value) if isinstance(value, int) else (
        varint(number << 3 | 2) + varint(len(value)) + value
    )  # fmt: skip


def block(entries):
    """A LevelDB block whose keys share what they can with the key before."""
    body, last = b"", b""
    for key, value in entries:
        shared = next(
            (n for n, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last))
        )
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")


def bundle(tensors):
    """variables.index and variables.data of name -> array."""
    kinds = {np.dtype("f4"): 1, np.dtype("f8"): 2, np.dtype("i8"): 9, np.dtype("O"): 7}
    data, entries = b"", [(b"", field(1, 1))]
    for name, array in sorted(tensors.items()):
        values = array.tobytes()
        if array.dtype == object:
            values = b"".join(varint(len(word)) for word in array) + b"\0\0\0\0" + b"".join(array)
        shape = b"".join(field(2, field(1, size)) for size in array.shape)
        entry = field(1, kinds[array.dtype]) + field(2, shape) + field(4, len(data)) + field(5, len(values))
        entries.append((name.encode(), entry + varint(6 << 3 | 5) + b"\0\0\0\0"))
        data += values
    index, handles = b"", []
    for part in (entries[: len(entries) // 2], entries[len(entries) // 2 :]):
        made = block(part)
        handles.append((part[-1][0], varint(len(index)) + varint(len(made))))
        index += made + b"\0" + b"\0\0\0\0"
    meta = varint(len(index)) + varint(len(block([])))
    index += block([]) + b"\0" + b"\0\0\0\0"
    top = block(handles)
    footer = meta + varint(len(index)) + varint(len(top))
    index += top + b"\0" + b"\0\0\0\0" + footer.ljust(40, b"\0") + 0xDB4775248B80FB57.to_bytes(8, "little")
    return index, data


def keras_tensors(seed=0, width=WIDTH):
    rng = np.random.default_rng(seed)
    sizes = [width, 6, 5, 1]
    value = ".ATTRIBUTES/VARIABLE_VALUE"
    found = {
        f"layer_with_weights-1/mean/{value}": rng.normal(size=width).astype("f4"),
        f"layer_with_weights-1/variance/{value}": rng.uniform(0, 2, width).astype("f4"),
        f"layer_with_weights-1/count/{value}": np.array(9, "i8"),
        f"keras_api/metrics/0/total/{value}": np.array(0, "f4"),
    }
    found[f"layer_with_weights-1/variance/{value}"][0] = 0.0
    for column in (3, 7):
        table = f"layer_with_weights-0/encoding_layers/{column}/token_counts/.ATTRIBUTES/table"
        found |= {f"{table}-keys": np.array([], object), f"{table}-values": np.array([], "i8")}
    for number, pair in enumerate(pairwise(sizes), 2):
        found[f"layer_with_weights-{number}/kernel/{value}"] = rng.normal(size=pair).astype("f4")
        found[f"layer_with_weights-{number}/bias/{value}"] = rng.normal(size=pair[1]).astype("f4")
    return found


def write_keras(path, tensors):
    index, data = bundle(tensors)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip_autokeras/saved_model.pb", b"a graph, which is not read")
        archive.writestr("clip_autokeras/variables/variables.index", index)
        archive.writestr("clip_autokeras/variables/variables.data-00000-of-00001", data)


def by_hand(tensors, x):
    """AutoKeras' classifier in float64, before the sigmoid."""
    named = {key.split("/.ATTR")[0].removeprefix("layer_with_weights-"): v.astype("f8") for key, v in tensors.items()
             if v.dtype != object and "table" not in key}  # fmt: skip
    x = x.astype("f8").copy()
    x[:, [3, 7]] = 0
    x = (x - named["1/mean"]) / np.maximum(np.sqrt(named["1/variance"]), 1e-7)
    for number in (2, 3, 4):
        x = x @ named[f"{number}/kernel"] + named[f"{number}/bias"]
        x = np.maximum(x, 0) if number < 4 else x
    return x


def test_the_published_keras_form_without_tensorflow(tmp_path):
    tensors = keras_tensors()
    write_keras(tmp_path / "head.zip", tensors)
    x = np.random.default_rng(1).normal(size=(5, WIDTH)).astype("f4")
    head = load_head(tmp_path / "head.zip")
    np.testing.assert_allclose(head(torch.from_numpy(x)).numpy(), by_hand(tensors, x), rtol=1e-4)
    assert head.constant == (3, 7)


def test_a_bundle_reads_back_and_a_damaged_one_says_so():
    tensors = keras_tensors() | {"words": np.array([b"one", b"", b"three"], object)}
    index, data = bundle(tensors)
    read = read_tensor_bundle(index, data, "x")
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)
    for broken in (b"", index[:-1], b"\xff" * len(index), index[:60] + index[70:]):
        with pytest.raises(DataError, match="is not a TensorFlow checkpoint"):
            read_tensor_bundle(broken, data, "x")
    with pytest.raises(DataError, match="its data end before a tensor does"):
        read_tensor_bundle(index, data[:50], "x")
    for place in range(0, len(index), 7):  # hostile: whatever it is, it ends in a value or our error
        try:
            read_tensor_bundle(index[:place] + b"\x91" + index[place + 1 :], data, "x")
        except DataError:
            pass


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), "is no head of a known form"),
        (lambda path: path.write_bytes(b"\x80\x04pickle"), "cannot be read as PyTorch weights"),
        (lambda path: torch.save(nn.Linear(2, 1), path), r"pickled code is never run"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "not one linear layer"),
        (lambda path: torch.save([1], path), "does not hold a state dict"),
        (lambda path: torch.save({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2),
                                  "layers.5.weight": torch.ones(1, 2), "layers.5.bias": torch.ones(1)}, path),
         r"layers at \[0, 5\], which is none of the published ones"),
        (lambda path: torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(5)}, path), r"layer 0 is \[2, 3\]"),
        (lambda path: write_keras(path, {"layer_with_weights-0/gamma/.A": np.ones(3, "f4")}), "has the layers"),
    ],
)  # fmt: skip
def test_what_is_no_head_is_told_apart(tmp_path, write, words):
    path = tmp_path / "head.bin"
    write(path)
    with pytest.raises(DataError, match=words):
        load_head(path)


def test_a_zip_of_something_else_and_one_too_large(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme", "no model")
    with pytest.raises(DataError, match=r"is a zip without variables/variables\.index"):
        load_head(tmp_path / "a.zip")
    monkeypatch.setattr(head_files, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="a head is a small network"):
        load_head(tmp_path / "a.zip")


def test_the_converter_prints_an_error_and_ends_with_two(tmp_path, capsys):
    assert main([str(tmp_path / "none.pth"), "out.safetensors"]) == 2
    assert main([]) == 2
    assert "error: " in capsys.readouterr().err


# The taggers


def head_config(path, tagger="aesthetic", output="linear", **more):
    given = {"clip_model": "tiny", "weights": str(path), "sha256": sha256(path)}
    return HeadConfig(tagger=HeadTagger[tagger], output=HeadOutput[output], **{**given, **more})


def test_heads_fill_the_columns_of_their_taggers(tmp_path, weights):
    torch.manual_seed(0)
    heads, modules = {}, {}
    for name, outputs, tagger, output in (
        ("v1", 1, "aesthetic", "linear"), ("v2", 1, "aesthetic", "linear"), ("mine", 3, "head", "softmax"),
    ):  # fmt: skip
        modules[name] = nn.Linear(WIDTH, outputs)
        torch.save(modules[name].state_dict(), tmp_path / f"{name}.pth")
        heads[name] = head_config(tmp_path / f"{name}.pth", tagger, output)
    tensors = keras_tensors()
    write_keras(tmp_path / "nsfw.zip", tensors)
    heads["nsfw"] = head_config(tmp_path / "nsfw.zip", "unsafe", "sigmoid")
    uids = write_raw(tmp_path, [png(0), b"broken", png(2), None, png(4)])
    taggers = ["clip", "aesthetic", "unsafe", "head"]
    config = config_of(
        weights, [{"name": "tiny"}], taggers, heads=heads, use_heads=["v2", "nsfw", "v1", "mine"]
    )
    tables, _ = tag(tmp_path, config)
    assert tables["aesthetic"].columns == [
        "uid",
        "aesthetic",
        "aesthetic_v2",
        "aesthetic_v1",
        "aesthetic_error",
    ]
    assert tables["unsafe"].columns == ["uid", "punsafe", "unsafe_error"]
    assert tables["head"].columns == ["uid", "head_mine", "head_error"]
    stored = np.load(tmp_path / "tags" / "clip" / f"{NAME}.image.tiny.npy").astype("f4")
    there = [0, 2, 4]
    x = nn.functional.normalize(torch.from_numpy(stored[there]), dim=-1)
    expected = {
        "aesthetic": ("aesthetic_v2", modules["v2"](x)[:, 0]),
        "aesthetic_v1": ("aesthetic_v1", modules["v1"](x)[:, 0]),
    }
    for column, (_, values) in expected.items():
        np.testing.assert_allclose(tables["aesthetic"][column].drop_nulls(), values.detach(), rtol=1e-5)
    assert tables["aesthetic"]["aesthetic"].equals(tables["aesthetic"]["aesthetic_v2"])
    punsafe = 1 / (1 + np.exp(-by_hand(tensors, x.numpy())[:, 0]))
    np.testing.assert_allclose(tables["unsafe"]["punsafe"].drop_nulls(), punsafe, rtol=1e-4)
    np.testing.assert_allclose(
        tables["head"]["head_mine"].drop_nulls(), modules["mine"](x).softmax(-1)[:, -1].detach(), rtol=1e-5
    )
    for tagger in ("aesthetic", "unsafe", "head"):
        assert tables[tagger]["uid"].to_list() == uids
        assert tables[tagger][f"{tagger}_error"].to_list() == [
            None,
            "no_embedding",
            None,
            "no_embedding",
            None,
        ]


def test_a_head_that_gives_no_finite_number_says_so(tmp_path, weights):
    """Near the largest float32, bias and a sum of like sign overflow: for each image in one of the two heads."""
    heads = {}
    for name, sign in (("big", 1), ("low", -1)):
        head = {"weight": torch.full((1, WIDTH), sign * 3.4e38), "bias": torch.full((1,), 3.4e38)}
        torch.save(head, tmp_path / f"{name}.pth")
        heads[name] = head_config(tmp_path / f"{name}.pth", "head")
    write_raw(tmp_path, [png(seed) for seed in range(5)])
    taggers = ["clip", "head"]
    tables, counts = tag(
        tmp_path, config_of(weights, [{"name": "tiny"}], taggers, heads=heads, use_heads=list(heads))
    )
    table = tables["head"]
    assert table["head_error"].to_list() == ["not_finite"] * 5
    assert (table["head_big"].is_null() | table["head_low"].is_null()).all()
    assert counts["extra"] == {"head_not_finite": 5}


def refused(
    tmp_path, clip_weights, words, kind=ConfigError, taggers=("clip", "aesthetic"), width=WIDTH, **given
):
    torch.save(nn.Linear(width, given.pop("outputs", 1)).state_dict(), tmp_path / "h.pth")
    names = given.pop("use_heads", ["mine"])
    write_raw(tmp_path, [png(0)] * 5)
    heads = {"mine": head_config(tmp_path / "h.pth", **given)}
    models = [{"name": "tiny"}]
    with pytest.raises(kind, match=words):
        tag(tmp_path, config_of(clip_weights, models, taggers, heads=heads, use_heads=names))
    assert not (tmp_path / "tags").exists()  # before any work


def test_heads_that_cannot_work_are_refused_before_work(tmp_path, weights):
    for number, (words, kind, more) in enumerate(
        [
            (
                r"takes embeddings of 9 numbers, and those of clip model 'tiny' have 16",
                ConfigError,
                {"width": 9},
            ),
            (r"have SHA-256 .* and 0{64} was asked for", DataError, {"sha256": "0" * 64}),
            (r"has sha256 'abc'; give the 64 hex digits", ConfigError, {"sha256": "abc"}),
            (r"'nowhere.pth' of the head 'mine' do not exist", DataError, {"weights": "nowhere.pth"}),
            (r"has 3 outputs, with tagger\.heads\.mine\.output=linear", ConfigError, {"outputs": 3}),
            (r"unknown clip model 'tinny'; did you mean 'tiny'", ConfigError, {"clip_model": "tinny"}),
            (r"has to come before it", ConfigError, {"taggers": ["aesthetic", "clip"]}),
            (r"no head of it; known ones: mine", ConfigError, {"use_heads": []}),
            (r"unknown head 'mind'; did you mean 'mine'", ConfigError, {"use_heads": ["mind"]}),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        refused(folder, weights, words, kind, **more)


def test_weights_are_fetched_once_and_only_with_their_hash(tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "h.pth").write_bytes(b"the weights")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/h.pth"
    good = hashlib.sha256(b"the weights").hexdigest()
    try:
        file = WeightsFile(address, good, str(tmp_path / "cache"))
        file.check("it")
        assert not file.is_here()
        assert file.path().read_bytes() == b"the weights"
        with pytest.raises(DataError, match=r"and 1{64} was asked for"):
            WeightsFile(address, "1" * 64, str(tmp_path / "cache")).path()
    finally:
        server.shutdown()
        server.server_close()
    assert file.path().read_bytes() == b"the weights"  # no server any more
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [good]
    (tmp_path / "cache" / good).write_bytes(b"changed on disk")
    with pytest.raises(DataError, match="the file has changed or is damaged"):
        file.check("it")


def test_the_settings_name_published_heads_with_their_hashes():
    from hydra import compose, initialize_config_dir

    from crawl2clip.config import CONFIG_DIR, register
    from data_pipeline.config import PipelineConfig

    register("data_pipeline_schema", PipelineConfig)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        heads = compose("data_pipeline", ["output_dir=x"]).tagger.heads
    assert {name: (head.tagger.value, head.output.value) for name, head in heads.items()} == {
        "aesthetic_v1": ("aesthetic", "linear"), "aesthetic_v2": ("aesthetic", "linear"),
        "unsafe_l14": ("unsafe", "sigmoid"), "unsafe_b32": ("unsafe", "sigmoid"),
    }  # fmt: skip
    assert json.dumps([len(head.sha256) for head in heads.values()]) == "[64, 64, 64, 64]"
