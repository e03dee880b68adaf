"""What is computed twice to save memory, and what is compiled to save time: both block by block.

A block is what a tower repeats: a transformer block, or a block of a ResNet or ConvNeXt stage. Its `forward` is
replaced on the instance, so no parameter, buffer or module gets another name, and hooks (of FSDP2, DeepSpeed or
others) stay around it. Compiling blocks costs seconds where compiling the whole model costs minutes, since all
blocks of a tower share one compiled code. It comes after packed_text.install and before the strategy's prepare.
"""

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from omegaconf import MISSING
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from crawl2clip.errors import ConfigError

logger = logging.getLogger(__name__)

IMAGE_TOWER = "visual"  # open_clip's name for it; all other blocks see texts, whose lengths vary

_COMPILED_VARIANTS = (
    64  # code versions kept for one block code: towers x training or not x gradients or not x shapes
)
_SAVED_OPERATIONS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "convolution",
    "_scaled_mm",  # float8
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)
"""Matrix products and attention: most of a block's time, a part of its memory (as torchtitan's selective mode)."""

Forward = Callable[..., Any]


class Compile(Enum):
    """none, or each block by torch.compile."""

    none = "none"
    block = "block"


class ActivationCheckpointing(Enum):
    """What of a block is kept for backward: everything; products and attention; its inputs alone."""

    none = "none"
    selective = "selective"
    full = "full"


@dataclass(kw_only=True)
class ComputeConfig:
    """Time against memory, block by block."""

    compile: Compile = MISSING
    activation_checkpointing: ActivationCheckpointing = MISSING


def apply_compute(model: nn.Module, config: ComputeConfig) -> None:
    """Lets the blocks of both towers checkpoint and compile as the config says, in place.

    Raises:
        ConfigError: compiled, checkpointed blocks with batch norm.
    """
    blocks = blocks_of(model)
    wanted = (
        config.compile is not Compile.none,
        config.activation_checkpointing is not ActivationCheckpointing.none,
    )
    if not any(wanted):
        return
    if not blocks:
        logger.warning(
            "no repeated blocks found in %s: it is neither compiled nor checkpointed", type(model).__name__
        )
        return
    if all(wanted) and (
        name := next((name for name, block in blocks.items() if has_batch_norm(block)), None)
    ):
        raise ConfigError(
            f"compute.compile=block with compute.activation_checkpointing={config.activation_checkpointing.value}: "
            f"block {name} has batch norm, whose statistics the compiled recomputation would count twice; set "
            "one of the two to none"
        )
    for name, block in blocks.items():
        if config.activation_checkpointing is not ActivationCheckpointing.none:
            selective = config.activation_checkpointing is ActivationCheckpointing.selective
            block.forward = _checkpointed(block.forward, _contexts(block, selective))
        if config.compile is Compile.block:
            block.forward = _compiled(block.forward, varying=not name.startswith(IMAGE_TOWER))
    logger.info(
        "%d blocks: compile=%s, activation_checkpointing=%s",
        len(blocks),
        config.compile.value,
        config.activation_checkpointing.value,
    )


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a model's towers by name, in the model's order; empty when it repeats nothing.

    Found by form: the children of a ModuleList or Sequential that are of one type, made of further modules, and have
    parameters. A stage that is itself mostly such a list (ConvNeXt, EfficientNet) gives its own blocks instead.
    """
    found: dict[str, nn.Module] = {}

    def visit(prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            path = f"{prefix}{name}"
            if _repeats(child):
                for index, block in child.named_children():
                    add(f"{path}.{index}", block)
            else:
                visit(f"{path}.", child)

    def add(path: str, block: nn.Module) -> None:
        inner = [
            (n, child) for n, child in _lists_in(block) if len(child) > 1 and 2 * _size(child) > _size(block)
        ]
        if not inner:
            found[path] = block
            return
        for name, child in inner:
            for index, deeper in child.named_children():
                add(f"{path}.{name}{index}", deeper)

    visit("", model)
    return found


def check_repeatable(model: nn.Module, config: ComputeConfig) -> None:
    """Refuses blocks whose forward would not draw the same random numbers a second time, as micro-batches need.

    A step of several micro-batches runs each forward twice, first without gradient. Compiled, a block that checkpoints
    is another program then, which draws in another order.

    Raises:
        ConfigError: compiled, checkpointed blocks that drop out.
    """
    if config.compile is Compile.none or config.activation_checkpointing is ActivationCheckpointing.none:
        return
    for name, block in blocks_of(model).items():
        if any(map(_drops_out, block.modules())):
            raise ConfigError(
                f"train.accumulation_steps above 1 with compute.compile={config.compile.value} and compute."
                f"activation_checkpointing={config.activation_checkpointing.value}: block {name} drops out, and its "
                "two forwards would drop different numbers, so gradients would be wrong; set one of the two to none, "
                "or train.accumulation_steps=1"
            )


def _drops_out(module: nn.Module) -> bool:
    """Of torch's kinds of dropout, and of timm's DropPath."""
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    chance = getattr(module, "p" if isinstance(module, nn.modules.dropout._DropoutNd) else "drop_prob", 0.0)
    return isinstance(chance, float) and chance > 0


def _lists_in(block: nn.Module) -> Iterator[tuple[str, Any]]:
    """A block that is itself a list of blocks, or those it holds; each with the path to it."""
    if _repeats(block):
        yield "", block
        return
    for name, child in block.named_children():
        if _repeats(child):
            yield f"{name}.", child


def _repeats(module: nn.Module) -> bool:
    children = list(module.children())
    return (
        isinstance(module, (nn.ModuleList, nn.Sequential))
        and len({type(child) for child in children}) == 1
        and not isinstance(children[0], (nn.ModuleList, nn.ModuleDict, nn.ParameterList))
        and all(any(True for _ in child.children()) and _size(child) > 0 for child in children)
    )


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _checkpointed(
    forward: Forward,
    contexts: Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]] | None,
) -> Forward:
    """A forward that keeps little for backward and computes the rest again, with the same random numbers."""
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}

    def checkpointed(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **options, **kwargs)

    return checkpointed


def _contexts(block: nn.Module, selective: bool) -> Any:
    """What surrounds a block's forward and its recomputation; None for nothing."""
    saving = (
        functools.partial(create_selective_checkpoint_contexts, _saved_operations()) if selective else None
    )
    if not has_batch_norm(block):
        return saving

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        first, again = saving() if saving else (nullcontext(), nullcontext())
        return first, _both(again, statistics_kept(block))

    return contexts


def _saved_operations() -> list[Any]:
    found = [getattr(torch.ops.aten, name, None) for name in _SAVED_OPERATIONS]
    # Attention over packed captions, where torch has it.
    found.append(getattr(torch.ops.torch_attn, "_varlen_attn", None))
    return [operation.default for operation in found if operation is not None]


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(first)
        stack.enter_context(second)
        yield


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """Inside the block, forward leaves batch norms' running statistics as they are: for a forward that is repeated."""
    norms = [norm for norm in _batch_norms(module) if norm.training and norm.track_running_stats]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # A momentum of None means the mean of all batches, whose number is counted; 0 takes nothing in.
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, saved, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted


def has_batch_norm(module: nn.Module) -> bool:
    """Whether any of its modules normalises over the batch."""
    return bool(_batch_norms(module))


def _batch_norms(module: nn.Module) -> list[Any]:
    return [norm for norm in module.modules() if isinstance(norm, nn.modules.batchnorm._BatchNorm)]


def _compiled(forward: Forward, *, varying: bool) -> Forward:
    """A forward compiled at its first call: for any length when it sees texts, for the shapes met otherwise."""
    import torch._dynamo

    limits: Any = torch._dynamo.config
    limits.cache_size_limit = max(limits.cache_size_limit, _COMPILED_VARIANTS)
    return torch.compile(forward, dynamic=True if varying else None)
