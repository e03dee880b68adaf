"""Self-attention over captions that lie end to end, without rows for padding.

Rows are sorted by the length of their caption, so that captions of one length are one block of rows that can
be viewed as a batch: on the CPU each length is one call of scaled_dot_product_attention, and nothing is
padded, gathered or scattered. On CUDA, half precision takes torch's variable-length kernel; what that
kernel has not (float32, old devices, old torch) and what a compiled block traces is padded to the longest
caption of the batch, for the attention alone.

Shapes: T rows of all captions, B captions, H heads, E width of a head, L longest caption.
"""

import inspect
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_KERNEL_ROWS = 128  # queries that a block of FlashAttention's forward takes at a time


@dataclass(frozen=True)
class Layout:
    """Where each caption lies among the rows; stands in for the attention mask of an open_clip block.

    Attributes:
        starts: int32 [B + 1], first row of each caption, shortest caption first; the last entry is T.
        lasts: int64 [B], last row of each caption, in the same order.
        slots: int64 [T], row of each token in a [B * longest] padded batch.
        groups: (captions, tokens in each) for every length there is, shortest first; on the host.
        longest: tokens of the longest caption.
    """

    starts: torch.Tensor
    lasts: torch.Tensor
    slots: torch.Tensor
    groups: tuple[tuple[int, int], ...]
    longest: int

    def to(self, *_: Any, **__: Any) -> "Layout":
        """Itself: open_clip's blocks convert their mask to the dtype of the rows; nothing here has one."""
        return self


@dataclass(frozen=True)
class Ends:
    """A layout of which only the last row of each caption asks for anything, as in the last block.

    It holds the layout as it is: were one made anew in a compiled block, the compiler would look at each of its
    values, and start again for every number of lengths in a batch.
    """

    layout: Layout


def multihead_attention(
    attention: nn.MultiheadAttention, rows: torch.Tensor, layout: Layout | Ends
) -> torch.Tensor:
    """nn.MultiheadAttention on packed rows.

    Args:
        attention: of open_clip's default block; self-attention without dropout.
        rows: [T, H * E], normalised.
        layout: of these rows.

    Returns:
        [T, H * E], or [B, H * E] for Ends.
    """
    query, key, value = _project(
        rows, attention.in_proj_weight, attention.in_proj_bias, attention.num_heads, layout
    )
    mixed = attend(query, key, value, layout).flatten(1)
    return F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def custom_attention(attention: Any, rows: torch.Tensor, layout: Layout | Ends) -> torch.Tensor:
    """open_clip's Attention (norms of queries and keys, scaled heads, inner norm) on packed rows, as above."""
    query, key, value = _project(
        rows, attention.in_proj_weight, attention.in_proj_bias, attention.num_heads, layout
    )
    mixed = attend(attention.ln_q(query), attention.ln_k(key), value, layout)
    if attention.head_scale is not None:
        mixed = mixed * attention.head_scale.view(1, -1, 1)
    return attention.out_drop(attention.out_proj(attention.ln_inner(mixed.flatten(1))))


def _project(
    rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, num_heads: int, layout: Layout | Ends
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query [T or B, H, E], key and value [T, H, E]."""
    width = rows.shape[1]
    if isinstance(layout, Layout):
        query, key, value = F.linear(rows, weight, bias).view(len(rows), 3, num_heads, -1).unbind(1)
        return query, key, value
    query_weight, other_weight = weight.split([width, 2 * width])
    query_bias, other_bias = (None, None) if bias is None else bias.split([width, 2 * width])
    query = F.linear(rows.index_select(0, layout.layout.lasts), query_weight, query_bias)
    key, value = F.linear(rows, other_weight, other_bias).view(len(rows), 2, num_heads, -1).unbind(1)
    return query.view(len(query), num_heads, -1), key, value


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout | Ends
) -> torch.Tensor:
    """Causal attention within each caption.

    Args:
        query: [T, H, E]; [B, H, E] for Ends: the last row of a caption sees all of it.
        key: [T, H, E].
        value: [T, H, E].
        layout: of the rows.

    Returns:
        The shape of query.
    """
    pooled = isinstance(layout, Ends)
    layout = layout.layout if isinstance(layout, Ends) else layout
    if query.is_cuda and has_kernel(query.device.index, query.dtype, query.shape[-1]):
        return _attend_in_kernel(query, key, value, layout, pooled)
    if query.is_cuda or torch.compiler.is_compiling():
        # One call for the batch: dozens of small ones cost a GPU more than the padding, and the lengths that
        # happen to be in a batch would make the compiler start again for every batch.
        return _attend_padded(query, key, value, layout, pooled)
    return _attend_by_length(query, key, value, layout, pooled)


def _attend_by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, pooled: bool
) -> torch.Tensor:
    sizes = [count * length for count, length in layout.groups]
    queries = query.split([count for count, _ in layout.groups] if pooled else sizes)
    mixed = []
    for (count, length), q, k, v in zip(
        layout.groups, queries, key.split(sizes), value.split(sizes), strict=True
    ):
        q = q.unflatten(0, (count, len(q) // count)).transpose(1, 2)
        k, v = (part.unflatten(0, (count, length)).transpose(1, 2) for part in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=not pooled)
        mixed.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def _attend_padded(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, pooled: bool
) -> torch.Tensor:
    num_captions, longest = len(layout.lasts), layout.longest

    def padded(rows: torch.Tensor) -> torch.Tensor:
        # Copied into place, not gathered: the gradient of a copy is a gather, that of a gather a slow scatter.
        room = rows.new_zeros(num_captions * longest, *rows.shape[1:]).index_copy(0, layout.slots, rows)
        return room.unflatten(0, (num_captions, longest)).transpose(1, 2)

    if pooled:
        lengths = layout.starts.diff()
        seen = torch.arange(longest, device=query.device) < lengths[:, None]
        q = query.unsqueeze(1).transpose(1, 2)
        out = F.scaled_dot_product_attention(q, padded(key), padded(value), attn_mask=seen[:, None, None])
        return out.transpose(1, 2).squeeze(1)
    out = F.scaled_dot_product_attention(padded(query), padded(key), padded(value), is_causal=True)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, layout.slots)


def _attend_in_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, pooled: bool
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The bounds only size the kernel's grid, by blocks of up to 128 rows: one number for all captions of CLIP's
    # length, so that nothing is compiled again, and powers of two above.
    bound = 1 << math.ceil(math.log2(max(layout.longest, _KERNEL_ROWS)))
    # Not cuDNN's, which torch prefers on Hopper and which may plan anew for every number of rows.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if pooled:
            captions = torch.arange(len(layout.starts), dtype=torch.int32, device=query.device)
            out = varlen_attn(query, key, value, captions, layout.starts, 1, bound)
        else:
            out = varlen_attn(
                query, key, value, layout.starts, layout.starts, bound, bound, window_size=(-1, 0)
            )
    return cast(torch.Tensor, out)  # a pair only when more is asked for


@torch.compiler.assume_constant_result  # or the compiler traces what is asked of the driver
def has_kernel(device_index: int | None, dtype: torch.dtype, head_width: int) -> bool:
    """Whether torch has variable-length attention with windows for this CUDA device, dtype and head width."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    if (
        "window_size" not in inspect.signature(varlen_attn).parameters
    ):  # the earliest had is_causal in its place
        return False
    capable = torch.cuda.get_device_capability(device_index) >= (8, 0)  # FlashAttention 2
    return capable and dtype in (torch.float16, torch.bfloat16) and head_width % 8 == 0 and head_width <= 256
