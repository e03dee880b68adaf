"""A program that the optimizers' and the running average's test runs on gloo ranks."""

from functools import partial
from typing import Any

import timm.optim.muon
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from crawl2clip.distributed import World
from train.model.ema import Ema, EmaConfig
from train.optimization.optimizer import OptimizerConfig, OptimizerName, build_optimizer

STEPS = 4
NEWTON_SCHULZ = timm.optim.muon.zeropower_via_newtonschulz
Case = tuple[str, dict[str, Any], tuple[int, ...]]
"""An optimizer's name, its options, and the shape of the mesh: shards, or replicas and shards."""


def run_cases(world: World, cases: list[Case]) -> list[Any]:
    """What `sharded_against_whole` found in each case on this rank."""
    return [sharded_against_whole(world.rank, world.world_size, *case) for case in cases]


class Model(nn.Module):
    """Rows that two ranks share unevenly, and one (logit_scale) that only the first can have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, 5)
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        # First, not last: it would take the gradient of the biases before it to rounding noise, which Adam blows up.
        self.bn = nn.BatchNorm1d(4)
        self.logit_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(self.bn(x))
        for block in self.blocks:
            x = x + block(x)
        return (x * self.logit_scale - 1).square().mean()


def steps(model: nn.Module, config: OptimizerConfig, ema: Ema) -> None:
    """Every rank sees the same samples, so that averaged gradients are those of one process."""
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        # The third batch is a hundred times the others: StableAdamW then clips.
        model(torch.randn(8, 4, generator=generator) * (100 if step == 3 else 1)).backward()
        optimizer.step()
        ema.update(model, step)


def full(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whole, wherever it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_against_whole(
    rank: int, world_size: int, name: str, options: dict[str, Any], mesh_shape: tuple[int, ...]
) -> tuple[dict[str, float], list[tuple[str, tuple[int, ...], int, Any]], dict[str, Any], bool]:
    """The largest difference of each weight and average from one process's; the average's pieces; it, whole."""
    # In bfloat16 Newton-Schulz blows rounding up in the directions of small singular values, some percent of an update.
    timm.optim.muon.zeropower_via_newtonschulz = partial(NEWTON_SCHULZ, dtype=torch.float64)
    config = OptimizerConfig(
        name=OptimizerName[name], lr=1e-2, betas=[0.9, 0.95], weight_decay=0.1, **options
    )
    ema_config = EmaConfig(decay=0.9, every_steps=1, warmup_steps=0)
    alone = Model()
    expected = Ema(alone, ema_config)
    steps(alone, config, expected)

    model = Model()
    names = ("replicate", "shard")[-len(mesh_shape) :]
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=names)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    average = Ema(model, ema_config)
    steps(model, config, average)

    with torch.no_grad():
        before = {key: full(tensor).clone() for key, tensor in model.state_dict().items()}
        off = difference(before, alone.state_dict())
        with expected.swapped(alone), average.swapped(model):
            whole = {key: full(tensor).clone() for key, tensor in model.state_dict().items()}
            off |= {f"ema/{key}": value for key, value in difference(whole, alone.state_dict()).items()}
        after = {key: full(tensor) for key, tensor in model.state_dict().items()}
    pieces = [
        (piece.name, piece.shape, piece.start, piece.tensor.numpy().copy())
        for piece in average.pieces(model, rank, world_size)
    ]
    restored = all(torch.equal(before[key], after[key]) for key in before)
    return off, pieces, {key: value.numpy() for key, value in whole.items()}, restored


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest absolute difference of each tensor."""
    return {key: (found[key].double() - expected[key].double()).abs().max().item() for key in expected}
