"""A CUDA device on a machine without one: tensors with a device, a dtype and a shape, and no numbers.

torch's fake tensors refuse to mix devices as real ones do. `Traffic` adds what they do not look at: what makes the
host wait, numbers that it reads and copies from memory that is not page-locked. What this cannot show is whether a
kernel works, and how fast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
_HOPPER = (9, 0)

__all__ = ["DEVICE", "Traffic", "fake_cuda", "move_to_fake_cuda", "real_tensors"]

real_tensors = unset_fake_temporarily
"""Inside this, tensors have numbers again: for what the host computes before it sends anything."""


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H100 as far as torch asks, and the only backward there can be: see `_backward`."""
    from torch.nn.attention import varlen

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda *_: _HOPPER)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(varlen, "_cudnn_version_and_major_capability", lambda _: (92600, _HOPPER[0]))
    monkeypatch.setattr(torch.Tensor, "pin_memory", _pin)
    monkeypatch.setattr(torch.Tensor, "backward", _backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def move_to_fake_cuda(module: nn.Module, device: torch.device) -> nn.Module:
    """In place of Module.to, which cannot turn tensors into fake ones."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return module


class Traffic(TorchDispatchMode):
    """Counts copies from the host to the device, and names what makes the host wait; numbers read are made up."""

    def __init__(self) -> None:
        super().__init__()
        self.num_copies = 0
        self.waits: list[str] = []
        self.asynchronous_reads: list[str] = []  # copies to the host that nothing waits for

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:  # item(), float(), if
            if args[0].device.type == "cpu":
                return 1.0
            self.waits.append(f"a number of shape {list(args[0].shape)} is read")
            return 0.0
        out = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default:
            source, asynchronous = args[0], kwargs.get("non_blocking", False)
        elif func is torch.ops.aten.copy_.default:
            source, asynchronous = args[1], kwargs.get("non_blocking", len(args) > 2 and args[2])
        else:
            return out
        if source.device.type == "cuda" and out.device.type == "cpu" and asynchronous:
            self.asynchronous_reads.append(f"{list(source.shape)} {source.dtype}")
        if source.device.type == "cpu" and out.device.type == "cuda":
            self.num_copies += 1
            if not asynchronous or not getattr(source, "is_pinned_here", False):
                self.waits.append(f"{list(source.shape)} {source.dtype}, non_blocking={asynchronous}")
        return out


def _pin(tensor: torch.Tensor) -> torch.Tensor:
    with real_tensors():
        copy = tensor.clone()
    copy.is_pinned_here = True  # pyright: ignore[reportAttributeAccessIssue]
    return copy


def _backward(loss: torch.Tensor, *_: Any, **__: Any) -> None:
    """Gives every leaf that the loss depends on a gradient; runs the project's own backward functions on the way.

    torch's engine asks the driver for a device before it runs anything, fake or not.
    """
    assert loss.grad_fn is not None
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and function.__module__.startswith("train."):
            for gradient in function.backward(node, torch.empty_like(loss)):
                assert gradient is None or gradient.device == DEVICE
        waiting += [following for following, _ in node.next_functions]
