"""What DeepSpeed keeps of a ZeRO-3 model that nobody uses any more, and how the memory in it is given back.

DeepSpeed 0.19 has two holders that live as long as the process: the stack of modules in forward, whose bottom is
every model it ever had, and a `functools.lru_cache` on a method of its parameter coordinator. Out of the cache nothing
can be taken, so modules and parameters stay as shells: objects without a tensor, and without a way to anything else.
"""

from torch import nn


def empty_shells(towers: nn.Module) -> None:
    """Takes everything out of a model's modules and parameters; the engine has removed its hooks before."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK

    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not towers]
    modules, parameters = list(towers.modules()), list(towers.parameters())
    for parameter in parameters:
        parameter.data = parameter.data.new_empty(0)
        vars(parameter).clear()  # DeepSpeed's shard of it, and its optimizer
    for module in modules:
        vars(module).clear()
