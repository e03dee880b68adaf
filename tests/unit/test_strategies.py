"""Settings and their refusals, gradient scaling, naming of state, and the strategy of a single process."""

import copy
import functools
import importlib.util
import types

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from crawl2clip.config import CONFIG_DIR
from crawl2clip.distributed import single_process
from crawl2clip.errors import ConfigError, DataError
from train.checkpoints.state import Piece
from train.model.compute import ActivationCheckpointing, Compile, ComputeConfig
from train.model.precision import (
    LossScaler,
    PrecisionConfig,
    PrecisionName,
    autocast,
    check_precision,
    compute_dtype,
    convert_to_float8,
    encoder_precision,
    set_matmul_precision,
)
from train.model.towers import Towers
from train.optimization.optimizer import OptimizerName
from train.strategies import StrategyConfig, StrategyName, build_strategy, check_combination
from train.strategies.gradients import GradientScale
from train.strategies.named_state import as_saved, as_tensor, deal, owners_of
from train.strategies.plain_copy import Skeleton, give_dimension, without_dimension

CPU = torch.device("cpu")
PLAIN = ComputeConfig(compile=Compile.none, activation_checkpointing=ActivationCheckpointing.none)
OPTIONS = {
    "ddp": {"static_graph": False, "sync_batchnorm": False},
    "fsdp2": {"reshard_after_forward": True, "cpu_offload": False},
    "hsdp": {"reshard_after_forward": True, "cpu_offload": False, "shard_size": 4},
}


def strategy(name, **options):
    return StrategyConfig(name=StrategyName[name], **{**OPTIONS.get(name, {}), **options})


class Pair(nn.Module):
    """A CLIP in miniature: a tower with batch norm, a scalar logit_scale, a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.text = nn.Linear(4, 5)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_buffer("mask", torch.ones(2), persistent=False)

    def forward(self, images, texts):
        normalize = functools.partial(nn.functional.normalize, dim=-1)
        return normalize(self.visual(images)), normalize(self.text(texts)), self.logit_scale.exp()


class MemoryState:
    def __init__(self, pieces):
        self.tensors = {piece.name: piece.tensor.detach().clone() for piece in pieces}

    def names(self):
        return sorted(self.tensors)

    def shape(self, name):
        return tuple(self.tensors[name].shape)

    def read(self, name, start=0, stop=None):
        return self.tensors[name] if self.tensors[name].ndim == 0 else self.tensors[name][start:stop]


def adamw(model):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)


def prepared(build_optimizer=adamw, precision="fp32", seed=0):
    torch.manual_seed(seed)
    spread = build_strategy(
        strategy("ddp"), PrecisionConfig(name=PrecisionName[precision]), PLAIN, single_process()
    )
    model, optimizer = spread.prepare(Towers(Pair()), build_optimizer)
    return spread, model, optimizer


def train_step(spread, model, optimizer, step, skip=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(step)
    outputs = model(torch.randn(7, 6, generator=generator), torch.randn(7, 4, generator=generator))
    logits = outputs["logit_scale"] * outputs["image_features"] @ outputs["text_features"].T
    loss = scale * nn.functional.cross_entropy(logits, torch.arange(7))
    spread.backward(model, loss, last=True)
    norm = spread.clip_gradients(model, 0.5)
    spread.step(model, optimizer, torch.tensor(skip))
    return loss.item(), norm


def timm_optimizer(name):
    from timm.optim import create_optimizer_v2

    return lambda model: create_optimizer_v2(model, opt=name, lr=0.1, weight_decay=0.1)


# Settings


@pytest.mark.parametrize("path", sorted((CONFIG_DIR / "strategy").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_strategy_config_is_one(path):
    merged = OmegaConf.merge(OmegaConf.structured(StrategyConfig), OmegaConf.load(path))
    made = OmegaConf.to_object(merged)
    assert isinstance(made, StrategyConfig)
    assert made.name.value == path.stem


@pytest.mark.parametrize(
    "path", sorted((CONFIG_DIR / "precision").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_precision_config_is_one(path):
    merged = OmegaConf.merge(OmegaConf.structured(PrecisionConfig), OmegaConf.load(path))
    made = OmegaConf.to_object(merged)
    assert isinstance(made, PrecisionConfig)
    assert made.name.value == path.stem


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "ddp",
            {"cpu_offload": True},
            r"strategy.cpu_offload=True is set with strategy=ddp.*it is for fsdp2 and hsdp",
        ),
        ("zero2", {"offload_param": {"device": "cpu"}}, r"offload_param=.*it is for zero3"),
        ("fsdp2", {"cpu_offload": None}, r"strategy.cpu_offload has no value"),
        ("hsdp", {"shard_size": 0}, r"shard_size is 0; give the number of ranks"),
        ("zero1", {"offload_optimizer": {"device": "nvme"}}, r"device is 'nvme'.*none and cpu"),
        ("zero3", {"offload_optimizer": {"device": "cpu", "ratio": 0.5}}, r"ratio is 0.5.*leave it out"),
    ],
)
def test_options_that_the_strategy_does_not_take(name, options, words):
    with pytest.raises(ConfigError, match=words):
        strategy(name, **options)


def check(name="ddp", *, precision="fp32", compute=("none", "none"), world_size=8, **others):
    options = others.pop("options", {})
    settings = {"optimizer": OptimizerName.adamw, "has_ema": False, "accumulates": False, **others}
    check_combination(
        strategy(name, **options),
        PrecisionConfig(name=PrecisionName[precision]),
        ComputeConfig(
            compile=Compile[compute[0]], activation_checkpointing=ActivationCheckpointing[compute[1]]
        ),
        world_size=world_size,
        **settings,
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "hsdp", "world_size": 6}, r"shard_size=4 does not divide 6 ranks; give one of 1, 2, 3, 6"),
        (
            {"options": {"static_graph": True}, "accumulates": True},
            r"static_graph=true with several micro-batches.*set strategy.static_graph=false",
        ),
        ({"name": "zero2", "precision": "fp16"}, r"precision=fp16 with strategy=zero2.*use precision=bf16"),
        (
            {"name": "zero1", "precision": "float8"},
            r"precision=float8 with strategy=zero1.*use strategy=fsdp2",
        ),
        ({"precision": "float8"}, r"precision=float8 with compute.compile=none.*use compute=compiled"),
        (
            {"name": "zero3", "optimizer": OptimizerName.muon},
            r"optimizer=muon with strategy=zero3.*use optimizer adamw or lion",
        ),
        (
            {"name": "fsdp2", "options": {"cpu_offload": True}, "optimizer": OptimizerName.lamb},
            r"optimizer=lamb with strategy.cpu_offload=true.*use one of optimizer adamw, lion, stable_adamw, or "
            r"strategy.cpu_offload=false",
        ),
        ({"name": "zero3", "has_ema": True}, r"ema with strategy=zero3.*set ema=null"),
        ({"name": "zero3", "compute": ("block", "none")}, r"compile=block with strategy=zero3.*compile=none"),
    ],
)
def test_what_cannot_work_together(settings, words):
    with pytest.raises(ConfigError, match=words):
        check(**settings)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="says what a machine without a GPU is told; run it on one"
)
def test_synchronised_batch_norm_needs_a_gpu():
    with pytest.raises(ConfigError, match=r"sync_batchnorm=true, and torch sees no CUDA device"):
        check(options={"sync_batchnorm": True})


@pytest.mark.parametrize("name", [name.value for name in StrategyName])
def test_what_can_work_together(name):
    check(name, precision="bf16", compute=("none", "full"), accumulates=True)
    check(name, precision="fp32", world_size=4)


@pytest.mark.parametrize("name", ["fsdp2", "hsdp", "zero1"])
def test_sharding_without_a_process_group_says_how_to_start(name):
    with pytest.raises(
        ConfigError, match=rf"strategy={name} needs a process group.*torchrun --nproc_per_node=1"
    ):
        build_strategy(strategy(name), PrecisionConfig(name=PrecisionName.fp32), PLAIN, single_process())


# Precision


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_autocast_computes_in_the_dtype_of_the_precision(name, dtype):
    with autocast(PrecisionName[name], CPU):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == dtype == compute_dtype(PrecisionName[name])
    assert compute_dtype(PrecisionName.float8) == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words"), [("tf32", "no TensorFloat-32"), ("float8", "no float8 matrix units")]
)
def test_precisions_of_a_gpu_are_refused_on_a_cpu(name, words):
    with pytest.raises(ConfigError, match=words):
        check_precision(PrecisionName[name], CPU)


def test_only_tf32_lets_float32_products_be_shortened():
    before, before_cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_matmul_precision(PrecisionName.tf32)
        assert torch.get_float32_matmul_precision() == "high"
        set_matmul_precision(PrecisionName.fp32)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = before_cudnn


@pytest.mark.skipif(importlib.util.find_spec("torchao") is not None, reason="torchao is installed; remove it")
def test_float8_without_torchao_says_what_to_install():
    with pytest.raises(ConfigError, match="pip install torchao"):
        convert_to_float8({})


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="pip install torchao to run this")
def test_float8_replaces_the_linears_of_blocks_that_fit_and_renames_nothing():
    block = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, 10))
    names = list(block.state_dict())
    assert convert_to_float8({"block": block}) == 2  # 10 is no multiple of 16
    assert list(block.state_dict()) == names


def test_the_loss_scale_follows_torchs():
    mine, theirs = LossScaler(CPU), torch.amp.GradScaler("cpu", growth_interval=3)
    mine.GROWTH_INTERVAL = 3
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflows in (0, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0):
        theirs.scale(parameter.sum() * (float("inf") if overflows else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        mine.update(torch.tensor(float(overflows)))
        assert mine.scale.item() == theirs.get_scale()
    again = LossScaler(CPU)
    again.load(mine.state())
    assert again.state() == mine.state() == {"scale": theirs.get_scale(), "good_steps": 0.0}


# Gradients


@pytest.mark.parametrize("max_norm", [None, 0.3, 100.0])
def test_clipping_is_torchs(max_norm):
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), ())]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    mine = [parameter.grad.clone() for parameter in parameters]
    expected = nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)
    norm = GradientScale(None, CPU).clip(mine, max_norm)
    assert norm.dtype == torch.float32
    assert norm.ndim == 0
    torch.testing.assert_close(norm, expected)
    for gradient, parameter in zip(mine, parameters, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_fp16_steps_equal_fp32_steps_and_an_overflow_is_left_out():
    steps = {}
    for precision in ("fp32", "fp16"):
        spread, model, optimizer = prepared(precision=precision)
        steps[precision] = [train_step(spread, model, optimizer, step) for step in range(3)]
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for (loss, norm), (scaled_loss, scaled_norm) in zip(steps["fp32"], steps["fp16"], strict=True):
        # The towers computed in float32 here; a power of two as loss scale changes no digit.
        assert loss == scaled_loss
        torch.testing.assert_close(norm, scaled_norm)
    assert spread.scaler_state() == {"scale": 65536.0, "good_steps": 3.0}
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    _, norm = train_step(spread, model, optimizer, 3, scale=1e36)
    assert not norm.isfinite()
    assert spread.scaler_state() == {"scale": 32768.0, "good_steps": 0.0}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(tensor, moments[index][key]) for key, tensor in entries.items())
    spread.load_scaler_state({"scale": 8.0, "good_steps": 5.0})
    assert spread.scaler_state() == {"scale": 8.0, "good_steps": 5.0}


@pytest.mark.parametrize("build", [adamw, timm_optimizer("lion")], ids=["fused", "other"])
def test_a_skipped_step_changes_nothing(build):
    spread, model, optimizer = prepared(build)
    train_step(spread, model, optimizer, 0)
    before = MemoryState(spread.pieces(model, optimizer))
    train_step(spread, model, optimizer, 1, skip=1.0)
    after = MemoryState(spread.pieces(model, optimizer))
    statistics = ("running_mean", "running_var", "num_batches_tracked")  # forward ran
    for name in before.names():
        if not name.endswith(statistics):
            assert torch.equal(before.tensors[name], after.tensors[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())
    train_step(spread, model, optimizer, 1)
    assert not torch.equal(after.tensors["model/text.weight"], model.model.text.weight)


# State


def test_numbers_travel_as_tensors_and_come_back_as_numbers():
    for number in (3, 2.5):
        assert as_saved(as_tensor(number)) == number
        assert type(as_saved(as_tensor(number))) is type(number)
    step = torch.tensor(3.0)
    assert as_saved(as_tensor(step)) is step
    assert as_tensor(None) is None
    assert as_tensor(True) is None


def test_tensors_are_dealt_evenly_and_each_once():
    named = [(str(index), torch.zeros(size)) for index, size in enumerate((50, 1, 30, 20, 3, 2))]
    shares = [deal(named, rank, 3) for rank in range(3)]
    assert sorted(piece.name for share in shares for piece in share) == [name for name, _ in named]
    assert [sum(piece.tensor.numel() for piece in share) for share in shares] == [50, 30, 26]
    assert owners_of([("a", 1), ("b", 1)], 1) == {"a": 0, "b": 0}
    assert deal([("x", torch.tensor(2.0))], 0, 1) == [Piece("x", (), 0, torch.tensor(2.0))]


@pytest.mark.parametrize(
    "build",
    [
        adamw,
        timm_optimizer("lion"),
        timm_optimizer("lamb"),
        timm_optimizer("nadamw"),
        timm_optimizer("adamp"),
    ],
    ids=["adamw", "lion", "lamb", "nadamw", "adamp"],
)
def test_a_loaded_run_goes_on_as_the_saved_one(build):
    spread, model, optimizer = prepared(build)
    for step in range(3):
        train_step(spread, model, optimizer, step)
    state = MemoryState(spread.pieces(model, optimizer))
    other_spread, other, other_optimizer = prepared(build, seed=9)
    other_spread.load(other, other_optimizer, state)
    assert MemoryState(other_spread.pieces(other, other_optimizer)).names() == state.names()
    for step in range(3, 6):
        first = train_step(spread, model, optimizer, step)
        second = train_step(other_spread, other, other_optimizer, step)
        assert first[0] == second[0]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_state_has_the_names_and_shapes_of_the_plain_model():
    spread, model, optimizer = prepared()
    train_step(spread, model, optimizer, 0)
    pieces = {piece.name: piece for piece in spread.pieces(model, optimizer)}
    assert {name for name in pieces if name.startswith("model/")} == {
        f"model/{n}" for n in Pair().state_dict()
    }
    assert pieces["model/logit_scale"].shape == ()
    assert pieces["optimizer/logit_scale/exp_avg"].shape == ()
    assert pieces["optimizer/text.weight/step"].shape == ()
    assert not any(name.startswith("optimizer/frozen") for name in pieces)


def test_a_state_before_the_first_step_has_no_optimizer_and_loads():
    spread, model, optimizer = prepared()
    state = MemoryState(spread.pieces(model, optimizer))
    assert all(name.startswith("model/") for name in state.names())
    train_step(spread, model, optimizer, 0)
    spread.load(model, optimizer, state)
    assert not optimizer.state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("model/text.weight"), r"no weights for text.weight \(1 of 11 tensors\)"),
        (
            lambda tensors: tensors.update({"model/text.weight": torch.zeros(5, 3)}),
            r"has text.weight as \[5, 3\], the model as \[5, 4\]",
        ),
    ],
)
def test_a_state_of_another_model_is_refused(change, words):
    spread, model, optimizer = prepared()
    state = MemoryState(spread.pieces(model, optimizer))
    change(state.tensors)
    with pytest.raises(DataError, match=words):
        spread.load(model, optimizer, state)


def test_clamping_one_parameter():
    spread, model, _ = prepared()
    spread.clamp(model, "logit_scale", 0.0, 1.0)
    assert spread.plain(model).logit_scale.item() == 1.0


# Copies


def doubled(self, images, texts):
    raise AssertionError("a copy must not call the methods of the trained model")


def test_a_copy_of_a_skeleton_is_plain():
    model = Pair()
    model.forward = types.MethodType(doubled, model)
    model.visual[0].forward = lambda x: doubled(None, x, x)
    skeleton = Skeleton(model)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with skeleton.filled(weights, model.eval()) as copied:
        assert type(copied) is Pair
        assert not copied.training
        assert {name: p.requires_grad for name, p in copied.named_parameters()} == {
            name: p.requires_grad for name, p in model.named_parameters()
        }
        plain = Pair().eval()
        plain.load_state_dict(model.state_dict())
        images, texts = torch.randn(2, 6), torch.randn(2, 4)
        assert all(
            torch.equal(a, b) for a, b in zip(copied(images, texts), plain(images, texts), strict=True)
        )
    assert all(p.numel() == 0 for p in copied.parameters())
    assert model.text.weight.numel() == 20


def test_parameters_without_dimensions_get_one_and_lose_it():
    model = Pair()
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    give_dimension(model)
    assert model.logit_scale.shape == (1,)
    with without_dimension(model, shapes):
        assert model.logit_scale.shape == ()
        assert model.state_dict()["logit_scale"].shape == ()
    assert model.logit_scale.shape == (1,)
    assert model.logit_scale.requires_grad


def test_the_whole_model_of_one_process_is_the_model_itself(caplog):
    spread, model, _ = prepared()
    caplog.clear()  # of what building it said
    with spread.whole(model) as whole:
        assert whole is spread.plain(model) is model.model
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "expected"), [("fp32", "fp32"), ("tf32", "fp32"), ("float8", "bf16"), ("fp16", "fp16")]
)
def test_what_evaluation_calls_a_precision(name, expected):
    assert encoder_precision(PrecisionName[name]) == expected
