"""Weights that were trained with QuickGELU, under the name of a model without: scored right, or else said to be wrong.

The model is made so that its activation matters, by labels: what it predicts itself is called right. With QuickGELU it
then scores 1; whatever is missing without it is the activation's doing.
"""

import warnings
from types import SimpleNamespace

import open_clip
import pytest
import torch
from evaluation_commands import run_suite
from evaluation_sets import ARCHITECTURE, encoded, picture, write_split
from hydra.core.config_store import ConfigStore
from open_clip import factory, pretrained

from crawl2clip.encoder import encoder_of
from crawl2clip.models import ModelConfig, build_model
from evaluate.data.prompts import make_prompts
from evaluate.data.tar_split import TarSplit
from evaluate.tasks.zero_shot import zero_shot_classifier
from evaluate.traps import activation_note

NUM_CLASSES, NUM_IMAGES = 10, 60
TOWERS = {
    **ARCHITECTURE,
    "vision_cfg": {**ARCHITECTURE["vision_cfg"], "layers": 4},
    "text_cfg": {**ARCHITECTURE["text_cfg"], "layers": 4},
}
TEMPLATES = ["a photo of a {c}."]
ZERO_SHOT = {"things": {"tasks": ["zero_shot"], "metric": "acc1", "allow_empty_classes": True}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A data set labelled by a model with QuickGELU, whose weights open_clip knows as `trap`, `made_here`."""
    config = ModelConfig(name="trap-quickgelu", architecture={**TOWERS, "quick_gelu": True})
    torch.manual_seed(0)
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(3)  # or all pictures would be of one class
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
            block.mlp.c_fc.bias.fill_(-3)  # there GELU is -0.004 and QuickGELU -0.018
            block.mlp.c_proj.weight.mul_(30)
    write_labelled(tmp_path / "things", encoder_of(model, config))
    # As open_clip finds weights that it fetched before: in ~/.cache/clip, under the last part of their address.
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    torch.save(model.state_dict(), tmp_path / ".cache" / "clip" / "trap.pt")
    known = {"made_here": pretrained._pcfg(url="https://example.invalid/trap.pt", quick_gelu=True)}
    for name, architecture in (("trap", TOWERS), ("trap-quickgelu", config.architecture)):
        monkeypatch.setitem(pretrained._PRETRAINED, name, known)
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, architecture)
        ConfigStore.instance().store(group="model", name=name, node={"name": name})
    return tmp_path


def write_labelled(folder, encoder):
    """Pictures of the classes that the encoder itself finds in them."""
    names = [f"thing {c}" for c in range(NUM_CLASSES)]
    prompts = make_prompts(names, TEMPLATES, "things").per_class()
    classifier = zero_shot_classifier(map(encoder.encode_texts, prompts))
    pictures = [picture(i, i) for i in range(NUM_IMAGES)]
    features = encoder.encode_images(torch.stack([encoder.preprocess(image) for image in pictures]))
    labels = (features @ classifier.T).argmax(dim=1).tolist()
    assert len(set(labels)) > 2
    samples = [{"png": encoded(p), "cls": str(c).encode()} for p, c in zip(pictures, labels, strict=True)]
    write_split(folder / "test", samples)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{line}\n" for line in TEMPLATES))


def test_either_name_of_the_model_gets_the_activation_of_its_weights(place, caplog):
    for name in ("trap-quickgelu", "trap"):
        words = f"model={name}", "pretrained=made_here"
        (result,) = run_suite(place, ZERO_SHOT, *words, output=name).values()
        assert result.headline.value == 1
        assert not any("QuickGELU" in note for note in result.notes)
    assert "QuickGELU and" not in caplog.text


def test_clip_benchmark_loses_points_under_the_plain_name(place):
    from clip_benchmark.models.open_clip import load_open_clip

    opened = TarSplit(place / "things", "test", with_labels=True, with_captions=False)
    correct = {}
    for name in ("trap-quickgelu", "trap"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # open_clip's, about the mismatch; all that there is
            model, transform, tokenizer = load_open_clip(name, "made_here")
        model.eval()
        images = torch.stack([transform(record.image) for record in opened.records()])
        prompts = [TEMPLATES[0].format(c=f"thing {c}") for c in range(NUM_CLASSES)]
        with torch.inference_mode():
            texts, found = model.encode_text(tokenizer(prompts), normalize=True), model.encode_image(images)
        correct[name] = (
            ((found @ texts.T).argmax(dim=1) == torch.tensor(opened.labels)).double().mean().item()
        )
    assert correct["trap-quickgelu"] == 1
    assert correct["trap"] < 0.9


def test_an_architecture_that_says_otherwise_is_scored_as_it_says_and_named(place, caplog):
    node = {"name": "trap", "architecture": TOWERS}
    ConfigStore.instance().store(group="model", name="trap_as_written", node=node)
    (wrong,) = run_suite(place, ZERO_SHOT, "model=trap_as_written", "pretrained=made_here").values()
    assert wrong.headline.value < 0.9
    told = "made_here was trained with QuickGELU and trap runs without it, which costs points"
    assert any(told in note and "use model=trap-quickgelu" in note for note in wrong.notes)
    assert told in caplog.text


def test_a_model_that_open_clip_has_names_for():
    """OpenAI's and LAION-400M's ViT-B-32 were trained with QuickGELU; loading them without it raises nothing."""

    def model(name, quick):
        layers = type("QuickGELU", (torch.nn.Module,), {})() if quick else torch.nn.GELU()
        return SimpleNamespace(name=name, model=torch.nn.Sequential(layers))

    without = activation_note(model("ViT-B-32", quick=False), "laion400m_e32")
    assert without is not None
    assert (
        "laion400m_e32 was trained with QuickGELU and ViT-B-32 runs without it, which costs points" in without
    )
    assert "use model=ViT-B-32-quickgelu" in without
    assert activation_note(model("ViT-B-32-quickgelu", quick=True), "laion400m_e32") is None
    assert activation_note(model("ViT-B-32", quick=False), "laion2b_s34b_b79k") is None
    assert activation_note(model("ViT-B-32", quick=False), "weights.pt") is None
    assert open_clip.get_pretrained_cfg("ViT-B-32", "laion400m_e32")["quick_gelu"]
