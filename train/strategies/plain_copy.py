"""A plain copy of a model whose own modules a strategy has taken over, and what goes with handing out copies."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn


class Skeleton:
    """A model's modules without its weights, taken before a strategy wraps or shards them.

    `filled` gives real modules: no hooks of a strategy's, no replaced class, and no replaced method (the `forward` of
    a compiled, checkpointed or packed block would lead back to the module that is being trained).
    """

    def __init__(self, model: nn.Module) -> None:
        memo: dict[int, torch.Tensor] = {}
        for parameter in model.parameters():
            memo[id(parameter)] = nn.Parameter(_without_storage(parameter), parameter.requires_grad)
        for buffer in model.buffers():
            memo[id(buffer)] = _without_storage(buffer)
        self._model: nn.Module = copy.deepcopy(model, memo)
        for module in self._model.modules():
            for name in _replaced_methods(module):
                del module.__dict__[name]

    @contextmanager
    def filled(self, parameters: dict[str, torch.Tensor], model: nn.Module) -> Iterator[nn.Module]:
        """A model of these parameters, by name, with copies of the buffers and the mode of `model`.

        Its parameters' memory is given back at the end, whoever still holds the copy.
        """
        memo: dict[int, torch.Tensor] = {}
        for name, parameter in self._model.named_parameters():
            memo[id(parameter)] = nn.Parameter(parameters[name], parameter.requires_grad)
        buffers = dict(model.named_buffers())
        for name, buffer in self._model.named_buffers():
            memo[id(buffer)] = buffers[name].detach().clone()
        copied = copy.deepcopy(self._model, memo).train(model.training)
        parameters.clear()
        try:
            yield copied
        finally:
            for parameter in copied.parameters():
                parameter.data = parameter.data.new_empty(0)


def broadcast_from_first(tensors: Iterable[torch.Tensor], group: dist.ProcessGroup | None) -> None:
    """Overwrites tensors, in place, with rank 0's; does nothing without a group."""
    if group is None:
        return
    for tensor in tensors:
        dist.broadcast(tensor.detach(), src=0, group=group)


def give_dimension(model: nn.Module) -> None:
    """Turns parameters of shape [] (logit_scale, logit_bias) into [1], in place: FSDP2 and DeepSpeed take no others."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and parameter.ndim == 0:
                module._parameters[name] = nn.Parameter(
                    parameter.detach().reshape(1), parameter.requires_grad
                )


@contextmanager
def without_dimension(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[None]:
    """Inside the block, parameters that `give_dimension` changed are [] again, with the same memory."""
    added = [name for name, parameter in model.named_parameters() if parameter.ndim > len(shapes[name])]
    kept = []
    for path in added:
        prefix, _, name = path.rpartition(".")
        module = model.get_submodule(prefix)
        parameter = module._parameters[name]
        assert parameter is not None
        kept.append((module, name, parameter))
        module._parameters[name] = nn.Parameter(parameter.data.reshape(()), parameter.requires_grad)
    try:
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter


def _without_storage(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta")


def _replaced_methods(module: nn.Module) -> list[str]:
    return [
        name
        for name, value in module.__dict__.items()
        if callable(value) and callable(getattr(type(module), name, None))
    ]
