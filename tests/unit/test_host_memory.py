"""Weights in host memory beside a GPU (cpu_offload, offload_optimizer), without one: what lies where."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from fake_cuda import DEVICE, Traffic, fake_cuda, real_tensors
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.testing._internal.distributed.fake_pg import FakeStore

from train.monitoring.norms import l2_norms
from train.optimization.stable_adamw import root_mean_squares
from train.strategies.gradients import leaving_out

CPU = torch.device("cpu")


@pytest.fixture
def on_fake_cuda(monkeypatch):
    with fake_cuda(monkeypatch):
        yield


@pytest.fixture
def mesh(on_fake_cuda):
    """Rank 0 of two, whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    with real_tensors():
        made = DeviceMesh("cuda", [0, 1])
    yield made
    dist.destroy_process_group()


def shard_in_host_memory(mesh):
    """As FSDP2 makes it with CPUOffloadPolicy: [8, 3] over two ranks."""
    meta = TensorMeta(torch.Size([8, 3]), (3, 1), torch.float32)
    return DTensor(torch.ones(4, 3), DTensorSpec(mesh, (Shard(0),), meta), requires_grad=False)


def test_the_flag_is_beside_the_parameters_before_a_fused_step_reads_it(on_fake_cuda):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    with Traffic() as traffic, leaving_out(optimizer, torch.zeros((), device=DEVICE), CPU):
        assert optimizer.found_inf.device == CPU
    assert traffic.asynchronous_reads == []


def test_norms_are_summed_on_the_device(on_fake_cuda, monkeypatch):
    summed = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, group: summed.append(tensor.device))
    norms = l2_norms({"a": [torch.ones(3), torch.ones(0)], "b": []}, DEVICE, SimpleNamespace())
    assert summed == [DEVICE]
    assert {norm.device for norm in norms.values()} == {DEVICE}


def test_rates_of_stable_adamw_are_beside_the_shards(mesh):
    shard = shard_in_host_memory(mesh)
    assert root_mean_squares([shard.to_local()], [shard]).device == CPU


def test_state_like_a_shard_in_host_memory_is_there_too(mesh):
    shard = shard_in_host_memory(mesh)
    assert shard.device == CPU
    assert torch.empty_like(shard).to_local().device == CPU
    assert torch.empty_like(shard).placements == shard.placements
