"""One optimizer step, and the numbers it leaves behind.

The numbers travel to the host without waiting for them: `TrainStep` starts the copy, `Reading.values` waits
for it. The loop reads them one step late, when they have long arrived. Whether a step counts is decided on the
device: where the loss or the gradient of any rank is not finite, the optimizer leaves everything as it is.
"""

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from crawl2clip.distributed import World
from train.augmentation.augment import BatchAugment
from train.data.decode import BAD_SAMPLE_REASONS
from train.data.sample_order import derive_seed
from train.data.sample_reader import Batch
from train.losses.loss import Loss, Outputs
from train.losses.teacher import Teacher
from train.model.compute import statistics_kept
from train.model.packed_text import PackedTexts
from train.monitoring.norms import NormWatch
from train.monitoring.safety import skip_flag
from train.monitoring.watchdog import Phase
from train.optimization.optimizer import set_lr
from train.strategies import Strategy

_MODEL = 2  # stream of random numbers of dropout and patch dropout
_FEATURES = ("image_features", "text_features")

Note = Callable[[Phase, int], None]
"""Told what begins, and of which step."""


@dataclass(frozen=True)
class StepNumbers:
    """What a step measured, the same on every rank."""

    step: int  # optimizer steps done, this one included
    lr: float
    loss: float  # of the global batch
    grad_norm: float  # L2, over all parameters, before clipping
    logit_scale: float  # that the loss was computed with
    skipped: bool  # loss or gradient not finite: weights and optimizer state are as before
    bad_draws: dict[str, int]  # samples of the global batch that had to be replaced, by reason; all are named
    text_tokens: int  # of the global batch's captions as computed: without padding where captions are packed
    stop: bool  # whether a signal reached any rank
    save: bool  # whether rank 0's clock asks for a checkpoint
    norms: dict[str, float]  # by tower, in the steps that measure them


class Reading:
    """A step's numbers on their way to the host."""

    def __init__(self, step: int, lr: float, numbers: torch.Tensor, norm_names: list[str]) -> None:
        self._step, self._lr, self._norm_names = step, lr, norm_names
        self._arrived: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            pinned = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host = pinned.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = numbers

    def values(self) -> StepNumbers:
        """The numbers; waits until the device has done this step."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, stop, save, text_tokens, *rest = self._host.tolist()
        replaced = [round(rest.pop(0)) for _ in BAD_SAMPLE_REASONS]
        grad_norm, scale, skip, *norms = rest
        return StepNumbers(
            step=self._step,
            lr=self._lr,
            loss=loss,
            grad_norm=grad_norm,
            logit_scale=scale,
            skipped=skip > 0,
            bad_draws=dict(zip(BAD_SAMPLE_REASONS, replaced, strict=True)),
            text_tokens=round(text_tokens),
            stop=stop > 0,
            save=save > 0,
            norms=dict(zip(self._norm_names, norms, strict=True)),
        )


@dataclass
class TrainStep:
    """Batch in, updated model out. Randomness follows from (seed, step, rank) and the samples' positions alone.

    Attributes:
        model: as the strategy prepared it.
        texts_of: lays out token ids for the text tower, see Towers.
        lr_at: the learning rate of a step.
        autocast: makes the context of the towers' forward.
        teacher: of distillation; None without.
        micro_batches: parts that a rank's rows are computed in. The loss sees all of them at once: features are
            computed without gradient first, then again part by part with the loss's gradient of them (Gao et al.
            2021, GradCache), with the same random numbers.
        note: told what begins.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    loss: Loss
    augment: BatchAugment
    texts_of: Callable[[torch.Tensor], torch.Tensor | PackedTexts]
    lr_at: Callable[[int], float]
    autocast: Callable[[], AbstractContextManager[object]]
    norms: NormWatch
    world: World
    note: Note
    seed: int
    max_grad_norm: float | None
    max_logit_scale: float | None
    micro_batches: int = 1
    teacher: Teacher | None = None

    def __call__(self, batch: Batch, step: int, *, stop: bool, save: bool) -> Reading:
        """Does optimizer step `step`, counted from 1, on this rank's rows of its batch.

        Args:
            batch: of this rank.
            step: counted from 1 over the whole run.
            stop: whether a signal reached this rank.
            save: whether this rank's clock asks for a checkpoint.
        """
        lr = self.lr_at(step)
        set_lr(self.optimizer, lr)
        self.note(Phase.forward, step)
        device = self.world.device
        images = batch.images.to(device, non_blocking=True)
        positions = batch.positions.to(device, non_blocking=True)
        images = self.augment(images, positions, self.seed)
        texts = [self.texts_of(tokens) for tokens in batch.text_tokens.chunk(self.micro_batches)]
        # The loader pins its batches, not what is made of them here; from other memory no copy is asynchronous.
        pinned = [part.pin_memory() for part in texts] if device.type == "cuda" else texts
        moved = [part.to(device, non_blocking=True) for part in pinned]
        parts = list(zip(images.chunk(self.micro_batches), moved, strict=True))
        if self.micro_batches == 1:
            loss, scale = self._at_once(*parts[0], batch.text_tokens, step)
        else:
            loss, scale = self._in_parts(parts, step)
        grad_norm = self.strategy.clip_gradients(self.model, self.max_grad_norm)
        reasons = Counter(draw.reason for draw in batch.bad_draws)
        told = [stop, save, sum(map(num_tokens, texts)), *(reasons[reason] for reason in BAD_SAMPLE_REASONS)]
        return self._update(step, lr, loss, scale, grad_norm, told)

    def _at_once(
        self, images: torch.Tensor, texts: torch.Tensor | PackedTexts, tokens: torch.Tensor, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self._forward(images, texts, step, 0)
        if self.teacher is not None:
            with self.autocast():
                outputs |= self.teacher(images, tokens.to(images.device, non_blocking=True))
        loss = self.loss(outputs, self.strategy.group)
        self.note(Phase.backward, step)
        self.strategy.backward(self.model, loss, last=True)
        return loss.detach(), outputs["logit_scale"].detach()

    def _in_parts(
        self, parts: list[tuple[torch.Tensor, torch.Tensor | PackedTexts]], step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Batch norm would take the same samples into its running statistics twice.
        with torch.no_grad(), statistics_kept(self.model):
            kept = [self._forward(*part, step, number) for number, part in enumerate(parts)]
        leaves: Outputs = {name: torch.cat([part[name] for part in kept]) for name in _FEATURES}
        leaves |= {name: value.clone() for name, value in kept[-1].items() if name not in _FEATURES}
        for leaf in leaves.values():
            leaf.requires_grad_()
        loss = self.loss(leaves, self.strategy.group)
        loss.backward()
        self.note(Phase.backward, step)
        first = 0
        for number, part in enumerate(parts):
            outputs = self._forward(*part, step, number)
            rows = slice(first, first + len(outputs["image_features"]))
            first, last = rows.stop, number == len(parts) - 1
            # The chain rule: a scalar whose gradient with respect to the outputs is the loss's.
            pulled = [(outputs[name], _gradient(leaves[name])[rows]) for name in _FEATURES]
            if last:
                pulled += [
                    (outputs[name], _gradient(leaves[name])) for name in leaves if name not in _FEATURES
                ]
            surrogate = torch.stack(
                [(value.float() * gradient.float()).sum() for value, gradient in pulled]
            ).sum()
            self.strategy.backward(self.model, surrogate, last=last)
        return loss.detach(), leaves["logit_scale"].detach()

    def _forward(
        self, images: torch.Tensor, texts: torch.Tensor | PackedTexts, step: int, part: int
    ) -> Outputs:
        torch.manual_seed(
            derive_seed(self.seed, _MODEL, step, self.world.rank, part)
        )  # dropout, patch dropout
        with self.autocast():
            return self.model(images, texts)

    def _update(
        self,
        step: int,
        lr: float,
        loss: torch.Tensor,
        scale: torch.Tensor,
        grad_norm: torch.Tensor,
        told: list[int],
    ) -> Reading:
        """The optimizer's step, unless a number is not finite; and everything that was measured, float64."""
        device = loss.device
        own = torch.zeros(len(told), dtype=torch.float64, device=device)
        for place, value in enumerate(told):
            if value:  # nearly all are zero
                own[place].fill_(value)  # not a copy: one from the host would wait for the device
        summed = self.world.all_reduce_sum(torch.cat([loss.double().reshape(1), own]))
        summed[0] /= self.world.world_size
        skip = skip_flag(summed[0], grad_norm)
        self.note(Phase.optimizer, step)
        measures = self.norms.due(step)
        if measures:
            self.norms.before()
        self.strategy.step(self.model, self.optimizer, skip)
        if self.max_logit_scale is not None:
            # Radford et al. 2021, section 2.5.
            self.strategy.clamp(self.model, "logit_scale", 0.0, math.log(self.max_logit_scale))
        norms = self.norms.after() if measures else {}
        rest = [grad_norm, scale, skip, *norms.values()]
        return Reading(
            step, lr, torch.cat([summed, torch.stack([n.double().reshape(()) for n in rest])]), list(norms)
        )


def num_tokens(texts: torch.Tensor | PackedTexts) -> int:
    """Tokens that the text tower computes for a batch of captions, padding included where there is any."""
    return texts.tokens.numel() if isinstance(texts, PackedTexts) else texts.numel()


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    # An output that the loss does not use has none.
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
