"""Building, loading and exporting CLIP models."""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from crawl2clip.encoder import encoder_of, load_encoder
from crawl2clip.errors import ConfigError, DataError
from crawl2clip.export import export_model
from crawl2clip.models import ModelConfig, build_model, hash_weights

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TIMM = {
    "embed_dim": 32,
    "custom_text": True,
    "vision_cfg": {
        "timm_model_name": "resnet10t",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    },
    "text_cfg": TINY["text_cfg"],
}


def tiny(architecture=TINY):
    torch.manual_seed(0)
    config = ModelConfig(name="tiny", architecture=architecture)
    return build_model(config), config


@pytest.mark.parametrize("architecture", [TINY, TIMM], ids=["vit", "timm"])
def test_export_loads_in_open_clip_with_equal_outputs(tmp_path, architecture):
    model, config = tiny(architecture)
    encoder = encoder_of(model, config)
    export_model(model, config, tmp_path, provenance={})
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    theirs.eval()
    image = Image.new("RGB", (50, 40), (200, 30, 90))
    pixels = encoder.preprocess(image)[None]
    assert torch.equal(preprocess(image)[None], pixels)
    captions = ["a cat", "ein Hund"]
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(captions)
    with torch.inference_mode():
        assert torch.equal(theirs.encode_image(pixels, normalize=True), encoder.encode_images(pixels))
        # Ours are cut to the longest caption: other shapes, other rounding of float32.
        expected = theirs.encode_text(tokens, normalize=True)
        torch.testing.assert_close(encoder.encode_texts(captions), expected, atol=1e-6, rtol=0)
    ours = load_encoder(None, str(tmp_path))
    assert ours.name == "tiny"
    assert ours.weights_sha256 == encoder.weights_sha256
    assert ours.preprocess_cfg == encoder.preprocess_cfg


def test_a_checkpoint_saved_by_open_clip_loads(tmp_path):
    torch.manual_seed(0)
    theirs = open_clip.create_model("RN50")
    # open_clip_train's own form: a dictionary with the state dict of a wrapped model.
    state = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, tmp_path / "epoch_1.pt")
    encoder = load_encoder("RN50", str(tmp_path / "epoch_1.pt"))
    images = torch.randn(1, 3, 224, 224)
    theirs.eval()
    with torch.inference_mode():
        assert torch.equal(encoder.encode_images(images), theirs.encode_image(images, normalize=True))


def test_texts_are_encoded_once_and_in_order():
    model, config = tiny()
    encoder = encoder_of(model, config)
    model.train()
    features = encoder.encode_texts(["a", "b", "a", "c"], batch_size=2)
    assert features.shape == (4, 32)
    assert torch.equal(features[0], features[2])
    # A batch of another size may sum in another order; one part in a million is rounding.
    torch.testing.assert_close(features[3], encoder.encode_texts(["c"])[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4))
    assert model.training
    assert encoder.encode_texts([]).shape == (0, 32)


def test_names_that_do_not_exist():
    with pytest.raises(
        ConfigError, match=r"unknown model 'ViT-B-33'; did you mean 'ViT-B-32'.*model.architecture"
    ):
        build_model(ModelConfig(name="ViT-B-33"))
    with pytest.raises(
        ConfigError, match=r"unknown pretrained weights for ViT-B-32 'opena'; did you mean 'openai'"
    ):
        load_encoder("ViT-B-32", "opena")
    with pytest.raises(
        ConfigError, match="no weights are named for model 'ViT-B-32'; give pretrained=<open_clip tag"
    ):
        load_encoder("ViT-B-32", None)
    with pytest.raises(
        ConfigError, match=r"the tag 'openai' needs model=<name .*only an export folder knows its own"
    ):
        load_encoder(None, "openai")
    with pytest.raises(ConfigError, match="lacks vision_cfg, text_cfg"):
        ModelConfig(name="x", architecture={"embed_dim": 3})
    with pytest.raises(ConfigError, match="open_clip cannot build the architecture of 'x'"):
        build_model(ModelConfig(name="x", architecture={**TINY, "vision_cfg": {"layer": 1}}))
    with pytest.raises(
        ConfigError, match=r"unknown precision 'fp8'; did you mean .* Known: bf16, fp16, fp32\."
    ):
        encoder_of(*tiny(), precision="fp8")


def test_weights_of_the_zoo_get_the_activation_they_were_trained_with(monkeypatch, tmp_path):
    # The real weights cannot be fetched in a test: a checkpoint of the right shapes stands in for the download.
    torch.save(open_clip.create_model("RN50").state_dict(), tmp_path / "weights.pt")
    monkeypatch.setattr(
        "open_clip.factory.download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt")
    )
    encoder = load_encoder("RN50", "openai")  # the name has GELU, OpenAI's weights want QuickGELU
    assert encoder.architecture["quick_gelu"] is True
    activations = {type(module).__name__ for module in encoder.model.modules()}
    assert "QuickGELU" in activations
    assert "GELU" not in activations
    config = ModelConfig(name="RN50", pretrained="openai")
    export_model(build_model(config), config, tmp_path / "export", provenance={})
    assert load_encoder(None, str(tmp_path / "export")).architecture["quick_gelu"] is True


def test_offline_tag_says_what_to_do(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", no_network)
    with pytest.raises(DataError, match=r"'openai' of ViT-B-32 .*set HF_HUB_OFFLINE=0"):
        load_encoder("ViT-B-32", "openai")


def test_weights_of_another_model(tmp_path):
    model, config = tiny()
    export_model(model, config, tmp_path / "export", provenance={})
    with pytest.raises(ConfigError, match="holds a tiny, not a ViT-B-32"):
        load_encoder("ViT-B-32", str(tmp_path / "export"))
    wider = ModelConfig(
        name="wider", architecture={**TINY, "embed_dim": 48}, pretrained=str(tmp_path / "export")
    )
    with pytest.raises(ConfigError, match="are of another model than wider: size mismatch"):
        build_model(wider)
    # open_clip looks at the text tower's positions first, and asserts.
    text = {**TINY["text_cfg"], "width": 64}
    wider = ModelConfig(
        name="wider", architecture={**TINY, "text_cfg": text}, pretrained=str(tmp_path / "export")
    )
    with pytest.raises(
        ConfigError, match="of another model than wider: text pos_embed width changed!; name the model"
    ):
        build_model(wider)


@pytest.mark.parametrize("form", ["safetensors", "pt", "of_training"])
@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("vision_cfg", "image_size", 64, r"visual.positional_embedding is \(5, 32\) and not \(17, 32\)"),
        ("text_cfg", "context_length", 20, r"positional_embedding is \(16, 32\) and not \(20, 32\)"),
    ],
)
def test_weights_of_another_size_are_not_stretched(tmp_path, monkeypatch, part, key, value, said, form):
    model, _ = tiny()
    file = tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(model.state_dict(), file)
    else:
        weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save(
            {"state_dict": weights, "lr": np.float64(1e-3)} if form == "of_training" else model.state_dict(),
            file,
        )
    architecture = {**TINY, part: {**TINY[part], key: value}}
    monkeypatch.setattr("crawl2clip.encoder.architecture_of", lambda _: architecture)
    with pytest.raises(
        ConfigError, match=f"are of another image size or context length than other: {said}; "
    ):
        load_encoder("other", str(file))
    build_model(ModelConfig(name="tuned", architecture=architecture, pretrained=str(file)))  # as tuning wants
    monkeypatch.setattr("crawl2clip.encoder.architecture_of", lambda _: TINY)
    assert load_encoder("same", str(file)).weights_sha256 == hash_weights(model)


def test_weights_that_cannot_be_read(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("code from a checkpoint ran",))

    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pt")
    (tmp_path / "html.pt").write_bytes(b"<html>")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("hostile.pt", "html.pt", "empty.safetensors"):
        with pytest.raises(DataError, match=f"{name} cannot be read as model weights"):
            build_model(ModelConfig(name="tiny", architecture=TINY, pretrained=str(tmp_path / name)))
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(DataError, match="no model_cfg"):
        load_encoder(None, str(tmp_path))
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY}))
    with pytest.raises(
        DataError, match=rf"{tmp_path} has no open_clip_model\.safetensors; export the model again"
    ):
        load_encoder(None, str(tmp_path))
