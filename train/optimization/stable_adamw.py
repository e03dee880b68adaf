"""StableAdamW: AdamW whose step shrinks for a tensor when its second moment lags behind its gradients.

Works on plain tensors and on the shards of FSDP2, where the root mean square is that of the whole tensor.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate

_ops: Any = torch  # its _foreach_ functions, one launch for many tensors, have no public names


class StableAdamW(torch.optim.Optimizer):
    """Wortsman et al. 2023, algorithm 2.

    With the debiased rates b_t = b (1 - b^(t-1)) / (1 - b^t) in the moments v (of g) and u (of g^2):

        RMS_t = sqrt(mean(g^2 / max(u, eps^2)))
        eta_t = lr / max(1, RMS_t)
        theta = theta - eta_t * weight_decay * theta - eta_t * v / (sqrt(u) + eps)

    The mean is over one tensor. Their released code clips the second term only; this follows the paper. At
    RMS_t <= 1 a step differs from AdamW's in how eps enters (after the debiasing, not before it) and in nothing else.

    State of each parameter: step ([] float32, on the CPU), exp_avg (v) and exp_avg_sq (u), of its shape.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step for every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[Any, list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((self._advance(parameter), _spread(parameter)), []).append(parameter)
            for (number, _), parameters in alike.items():
                self._update(parameters, number, group)
        return loss

    def _advance(self, parameter: torch.Tensor) -> float:
        """The number of the step that this parameter is about to do, from 1."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        return float(state["step"])

    def _update(self, parameters: list[torch.Tensor], number: float, group: dict[str, Any]) -> None:
        """Algorithm 2 for parameters that are at the same step and spread over the same ranks."""
        beta1, beta2 = (beta * (1 - beta ** (number - 1)) / (1 - beta**number) for beta in group["betas"])
        weights = [_local(parameter) for parameter in parameters]
        grads = [_local(parameter.grad) for parameter in parameters]  # pyright: ignore[reportArgumentType] # has one
        first = [_local(self.state[parameter]["exp_avg"]) for parameter in parameters]
        second = [_local(self.state[parameter]["exp_avg_sq"]) for parameter in parameters]
        _ops._foreach_lerp_(first, grads, 1 - beta1)
        _ops._foreach_mul_(second, beta2)
        _ops._foreach_addcmul_(second, grads, grads, value=1 - beta2)

        floor = _ops._foreach_clamp_min(second, group["eps"] ** 2)
        _ops._foreach_sqrt_(floor)
        ratios = _ops._foreach_div(grads, floor)
        clip = root_mean_squares(ratios, parameters).clamp_min(1.0)
        del floor, ratios
        rates = list((group["lr"] / clip).unbind())

        denominators = _ops._foreach_sqrt(second)
        _ops._foreach_add_(denominators, group["eps"])
        updates = _ops._foreach_div(first, denominators)
        if group["weight_decay"]:
            _ops._foreach_add_(updates, weights, alpha=group["weight_decay"])
        _ops._foreach_mul_(updates, rates)
        _ops._foreach_sub_(weights, updates)


def root_mean_squares(tensors: list[torch.Tensor], parameters: list[torch.Tensor]) -> torch.Tensor:
    """[P] root mean square of each tensor over the whole parameter it is a shard of; one collective for all."""
    norms = _ops._foreach_norm(tensors)  # of an empty shard 0
    # Numbers as arguments, not as a tensor: that would be a copy which the host waits for.
    _ops._foreach_mul_(norms, [parameter.numel() ** -0.5 for parameter in parameters])
    squares = torch.stack(list(norms)) ** 2
    like = parameters[0]
    if isinstance(like, DTensor):
        placements = [Partial() if place.is_shard() else Replicate() for place in like.placements]
        # Shards in host memory (cpu_offload): `from_local` moves to the mesh's device, and the result must come back.
        summed = DTensor.from_local(squares, like.device_mesh, placements).full_tensor()
        squares = summed.to(squares.device)
    return squares.sqrt()


def _spread(tensor: torch.Tensor) -> Any:
    """Over which ranks a tensor is spread and how; None when it is not."""
    return (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
