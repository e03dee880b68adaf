"""Programs that the strategy tests run on gloo ranks, each a process of its own.

The file is imported under its bare name, because a test module's own name means nothing there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from crawl2clip.distributed import World, single_process
from train.model.compute import ActivationCheckpointing, Compile, ComputeConfig, apply_compute
from train.model.ema import Ema, EmaConfig
from train.model.precision import PrecisionConfig, PrecisionName, autocast
from train.model.towers import Towers
from train.monitoring.norms import NormWatch
from train.strategies import Strategy, StrategyConfig, StrategyName, build_strategy

OPTIONS: dict[str, dict[str, Any]] = {
    "ddp": {"static_graph": False, "sync_batchnorm": False},
    "fsdp2": {"reshard_after_forward": True, "cpu_offload": False},
    "hsdp": {"reshard_after_forward": True, "cpu_offload": False, "shard_size": 2},
}
LR, BATCH, VOCABULARY, CONTEXT = 3e-3, 8, 64, 8


class MemoryState:
    """A StateReader of tensors in memory."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return sorted(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        return self.tensors[name] if self.tensors[name].ndim == 0 else self.tensors[name][start:stop]


def collect(world: World, strategy: Strategy, model: nn.Module, optimizer: Any) -> MemoryState:
    """The whole state out of every rank's pieces; each row must come from exactly one rank."""
    whole: dict[str, torch.Tensor] = {}
    seen: dict[str, torch.Tensor] = {}
    mine = [
        (p.name, p.shape, p.start, p.tensor.detach().cpu().clone()) for p in strategy.pieces(model, optimizer)
    ]
    for name, shape, start, tensor in [piece for rank in world.all_gather_object(mine) for piece in rank]:
        whole.setdefault(name, torch.full(shape, -7).to(tensor.dtype))
        count = seen.setdefault(name, torch.zeros(shape[0] if shape else 1, dtype=torch.int64))
        rows = slice(start, start + len(tensor)) if shape else slice(None)
        count[rows] += 1
        if shape:
            whole[name][rows] = tensor
        else:
            whole[name] = tensor.reshape(())
    assert all(bool((count == 1).all()) for count in seen.values()), "a row on no rank, or on two"
    return MemoryState(whole)


def tiny_model(seed: int = 1) -> nn.Module:
    """Two towers of two small blocks, odd sizes, so that shards are uneven and some empty."""
    from open_clip import CLIP

    torch.manual_seed(seed)
    return CLIP(
        embed_dim=10,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 24, "layers": 2, "head_width": 12},
        text_cfg={"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": 20, "heads": 2, "layers": 2},
    )


def strategy_of(
    name: str, world: World, precision: str = "fp32", compute: ComputeConfig | None = None, **options: Any
) -> Strategy:
    config = StrategyConfig(name=StrategyName[name], **{**OPTIONS.get(name, {}), **options})
    return build_strategy(
        config, PrecisionConfig(name=PrecisionName[precision]), compute or compute_of(), world
    )


def compute_of(compile: str = "none", activation_checkpointing: str = "none") -> ComputeConfig:
    return ComputeConfig(
        compile=Compile[compile], activation_checkpointing=ActivationCheckpointing[activation_checkpointing]
    )


def adamw(model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """AdamW with two groups that differ in weight decay and in a scale of the learning rate."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": 0.2, "lr_scale": 1.0},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, "lr_scale": 0.5},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.98), eps=1e-6, fused=fused)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch of a step: images [8, 3, 16, 16] and texts [8, 8] that end with the largest token."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator)
    texts = torch.randint(1, VOCABULARY - 1, (BATCH, CONTEXT), generator=generator)
    texts[:, -1] = VOCABULARY - 1
    return images, texts


def rows_of(world: World, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.chunk(world.world_size)[world.rank]


class Gather(torch.autograd.Function):
    """All ranks' rows; backward gives a rank the sum of what the ranks' losses say about its rows."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        everyone = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def infonce(outputs: dict[str, torch.Tensor], world: World) -> torch.Tensor:
    """This rank's part of the symmetric InfoNCE loss; features are gathered with their gradient."""
    images, texts = outputs["image_features"].float(), outputs["text_features"].float()
    all_images, all_texts = images, texts
    if world.world_size > 1:
        all_images, all_texts = Gather.apply(images), Gather.apply(texts)
    targets = torch.arange(len(images)) + world.rank * len(images)
    scale = outputs["logit_scale"].reshape(())
    forth = F.cross_entropy(scale * images @ all_texts.T, targets)
    return (forth + F.cross_entropy(scale * texts @ all_images.T, targets)) / 2


def forward_backward(
    world: World, strategy: Strategy, model: nn.Module, step: int, micro_batches: int, precision: str
) -> torch.Tensor:
    """The loss of a step's batch, its gradients added; several micro-batches go through cached features."""
    images, texts = (rows_of(world, tensor) for tensor in batch(step))
    cast = lambda: autocast(PrecisionName[precision], world.device)  # noqa: E731
    if micro_batches == 1:
        with cast():
            outputs = model(images, texts)
        loss = infonce(outputs, world)
        strategy.backward(model, loss, last=True)
        return loss.detach()
    parts = list(zip(images.chunk(micro_batches), texts.chunk(micro_batches), strict=True))
    with torch.no_grad(), cast():
        cached = [model(*part) for part in parts]
    leaves = {
        name: torch.cat([outputs[name] for outputs in cached]).requires_grad_()
        for name in ("image_features", "text_features")
    }
    leaves["logit_scale"] = cached[0]["logit_scale"].clone().requires_grad_()
    loss = infonce(leaves, world)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    for index, part in enumerate(parts):
        last = index == len(parts) - 1
        with cast():
            outputs = model(*part)
        surrogate = sum(
            (outputs[name] * gradients[name].chunk(micro_batches)[index]).sum()
            for name in ("image_features", "text_features")
        )
        if last:
            surrogate = surrogate + (outputs["logit_scale"] * gradients["logit_scale"]).sum()
        strategy.backward(model, surrogate, last=last)
    return loss.detach()


def run_steps(
    world: World, strategy: Strategy, model: nn.Module, optimizer: Any, steps: range, **settings: Any
) -> dict[str, list[float]]:
    """Trains for some steps: losses of the global batch and gradient norms."""
    settings = {"micro_batches": 1, "precision": "fp32", "max_norm": 1.0, "skip": (), **settings}
    losses, norms = [], []
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 - step / 40) * group["lr_scale"]
        loss = forward_backward(
            world, strategy, model, step, settings["micro_batches"], settings["precision"]
        )
        norms.append(strategy.clip_gradients(model, settings["max_norm"]).item())
        strategy.step(model, optimizer, torch.tensor(float(step in settings["skip"])))
        strategy.clamp(model, "logit_scale", 0.0, 4.6052)
        losses.append(world.all_reduce_sum(loss).item() / world.world_size)
    return {"losses": losses, "norms": norms}


def train(world: World, name: str, num_steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """A run of some steps: losses, norms, the state at the end, what the whole model gives, and a step left out."""
    settings = dict(settings)
    options, compute = settings.pop("options", {}), compute_of(**settings.pop("compute", {}))
    precision, fused = settings.get("precision", "fp32"), settings.pop("fused", True)
    strategy = strategy_of(name, world, precision, compute, **options)
    plain = tiny_model(seed=1 + world.rank)  # rank 0's weights must reach everyone
    apply_compute(plain, compute)
    model, optimizer = strategy.prepare(Towers(plain), lambda plain: adamw(plain, fused=fused))
    measured = run_steps(world, strategy, model, optimizer, range(num_steps), **settings)
    scaler = strategy.scaler_state()
    state = collect(world, strategy, model, optimizer)
    features = None
    with strategy.whole(model) as whole, torch.no_grad():
        if world.rank == 0:  # alone: a collective in forward would wait for ever
            features = whole.eval()(*batch(99))[0].numpy().copy()
        whole.train()
        kinds = [type(module).__name__ for module in whole.modules()]
        scale_shape = tuple(whole.state_dict()["logit_scale"].shape)
    run_steps(
        world,
        strategy,
        model,
        optimizer,
        range(num_steps, num_steps + 1),
        **{**settings, "skip": (num_steps,)},
    )
    after = collect(world, strategy, model, optimizer)
    return {
        **measured,
        "state": arrays_of(state),
        "skipped_equal": all(torch.equal(state.tensors[name], after.tensors[name]) for name in state.names()),
        "features": features,
        "kinds": kinds,
        "scale_shape": scale_shape,
        "scaler": scaler,
    }


def arrays_of(state: MemoryState) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in state.tensors.items()}


def load_and_train(
    world: World, name: str, arrays: dict[str, np.ndarray], first: int, num_steps: int
) -> dict[str, Any]:
    """Takes up a state, gives it back, and trains on from step `first`, beside a single process that does the same."""
    saved = MemoryState({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
    strategy = strategy_of(name, world)
    model, optimizer = strategy.prepare(Towers(tiny_model(seed=5)), adamw)
    strategy.load(model, optimizer, saved)
    state = collect(world, strategy, model, optimizer)
    measured = run_steps(world, strategy, model, optimizer, range(first, first + num_steps))
    alone = single_process()
    strategy = strategy_of("ddp", alone)
    model, optimizer = strategy.prepare(Towers(tiny_model(seed=6)), adamw)
    strategy.load(model, optimizer, saved)
    expected = run_steps(alone, strategy, model, optimizer, range(first, first + num_steps))["losses"]
    return {**measured, "state": arrays_of(state), "expected": expected}


def tower_norms(
    world: World, name: str, options: dict[str, Any], micro_batches: int
) -> list[dict[str, float]]:
    """What NormWatch measures in three steps of a model with a frozen parameter and one that no loss depends on."""
    strategy = strategy_of(name, world, **options)
    plain = tiny_model()
    plain.positional_embedding.requires_grad_(False)
    plain.visual.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model, optimizer = strategy.prepare(Towers(plain), adamw)
    watch, found = NormWatch(lambda: strategy.parts(model), world.device, every_steps=1), []
    for step in range(3):
        forward_backward(world, strategy, model, step, micro_batches, "fp32")
        strategy.clip_gradients(model, 1.0)
        watch.before()
        strategy.step(model, optimizer, torch.tensor(0.0))
        found.append({key: value.item() for key, value in watch.after().items()})
    return found


class NormalizedPair(nn.Module):
    """A CLIP in miniature whose image tower normalises over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
        self.text = nn.Linear(4, 5)
        self.logit_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            F.normalize(self.visual(images), dim=-1),
            F.normalize(self.text(texts), dim=-1),
            self.logit_scale.exp(),
        )


def trained_on_different_rows(
    world: World, strategy: Strategy, after_step: Callable[[nn.Module], None]
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A normalised pair after two steps in which every rank saw rows of its own."""
    torch.manual_seed(0)
    model, optimizer = strategy.prepare(Towers(NormalizedPair()), adamw)
    generator = torch.Generator().manual_seed(world.rank)
    for _ in range(2):
        outputs = model(torch.randn(4, 6, generator=generator), torch.randn(4, 4, generator=generator))
        strategy.backward(model, infonce(outputs, world), last=True)
        strategy.step(model, optimizer, torch.tensor(0.0))
        after_step(strategy.plain(model))
    return model, optimizer


def batch_norm_statistics(world: World, name: str) -> dict[str, Any]:
    """Running means after steps on different rows: this rank's own, the whole model's, the saved one."""
    strategy = strategy_of(name, world)
    model, optimizer = trained_on_different_rows(world, strategy, lambda _: None)
    own = strategy.plain(model).get_buffer("visual.1.running_mean").numpy().copy()
    with strategy.whole(model) as whole:
        everyones = whole.get_buffer("visual.1.running_mean").numpy().copy()
    saved = collect(world, strategy, model, optimizer).tensors["model/visual.1.running_mean"].numpy()
    return {"own": own, "whole": everyones, "saved": saved}


def averaged_statistics(world: World, name: str) -> dict[str, np.ndarray]:
    """The average of the running means after such steps: this rank's own, and what all ranks' pieces are together."""
    strategy, averages = strategy_of(name, world), []

    def average(plain: nn.Module) -> None:
        if not averages:
            averages.append(Ema(plain, EmaConfig(decay=0.5, every_steps=1, warmup_steps=0)))
        averages[0].update(plain, 1)

    model, _ = trained_on_different_rows(world, strategy, average)
    plain = strategy.plain(model)
    with averages[0].swapped(plain):
        own = plain.get_buffer("visual.1.running_mean").numpy().copy()
    pieces = averages[0].pieces(plain, world.rank, world.world_size)
    mine = [(p.start, p.tensor.numpy().copy()) for p in pieces if p.name == "ema/visual.1.running_mean"]
    given = [piece for rank in world.all_gather_object(mine) for piece in rank]
    return {
        "own": own,
        "saved": np.concatenate([rows for _, rows in sorted(given, key=lambda piece: piece[0])]),
    }
