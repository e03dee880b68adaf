"""What trains during one stage, built from settings and a checkpoint; a new stage or a roll back builds it anew."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from crawl2clip import storage
from crawl2clip.distributed import World
from crawl2clip.models import ModelConfig, architecture_of, build_model, preprocess_cfg_of, tokenizer_of
from crawl2clip.store_copies import copy_weights
from evaluate.ranks import once_a_node
from train.augmentation.augment import BatchAugment
from train.checkpoints.state import Piece, StateReader
from train.checkpoints.state_files import StateFiles
from train.config import TrainConfig, model_of
from train.data.sample_order import derive_seed
from train.data.text_mask import TextMask, shorten_texts
from train.data.training_data import Samples, TrainingData, build_data
from train.losses.loss import LossName, build_loss, check_trainable
from train.losses.teacher import build_teacher
from train.model.compute import apply_compute, blocks_of, check_repeatable
from train.model.ema import Ema
from train.model.precision import PrecisionName, autocast, convert_to_float8
from train.model.resize import resized_state
from train.model.towers import Towers
from train.monitoring.norms import NormWatch
from train.optimization.optimizer import build_optimizer, freeze_parameters
from train.optimization.parameter_rules import trained_towers
from train.stages import Stage, stage_lr
from train.step import Note, TrainStep
from train.strategies import Strategy, build_strategy

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """One stage's model, optimizer and data.

    Attributes:
        model_config: of the stage's model.
        model: as the strategy prepared it.
        ema: the running average of its weights; None without.
        trains: whether anything of the image tower, and of the text tower, does.
    """

    stage: Stage
    model_config: ModelConfig
    strategy: Strategy
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema | None
    data: TrainingData
    train_step: TrainStep
    world: World
    trains: tuple[bool, bool]

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The plain model to evaluate and export, with the averaged weights where there are some. Collective."""
        plain = self.strategy.plain(self.model)
        with self.ema.swapped(plain) if self.ema else nullcontext(), self.strategy.whole(self.model) as whole:
            yield whole

    def pieces(self) -> list[Piece]:
        """This rank's share of everything that is trained."""
        pieces = self.strategy.pieces(self.model, self.optimizer)
        if self.ema is not None:
            plain = self.strategy.plain(self.model)
            pieces += self.ema.pieces(plain, self.world.rank, self.world.world_size)
        return pieces

    def load(self, state: StateReader) -> None:
        """Takes up a saved state of this stage's shapes, whoever wrote it."""
        self.strategy.load(self.model, self.optimizer, state)
        if self.ema is not None:
            self.ema.load(self.strategy.plain(self.model), state)

    def close(self) -> None:
        """Lets go of the model, which nothing may use afterwards; its memory is free once garbage is collected."""
        self.strategy.close(self.model)


def open_data(config: TrainConfig, stage: Stage, samples: Samples, world: World) -> TrainingData:
    """The data of a stage, captions as its model reads them; stages of one context length and mask can share it."""
    if stage.text_mask is TextMask.cut:
        tokenizer = tokenizer_of(config.model.name, architecture_of(model_of(config, stage)))
        return build_data(samples, tokenizer, config.data, config.seed, world)
    # As many tokens as the run's own model takes, of which the mask chooses.
    tokenizer = tokenizer_of(config.model.name, architecture_of(config.model))
    shorten = functools.partial(
        shorten_texts, mask=stage.text_mask, context_length=stage.context_length, seed=config.seed
    )
    return build_data(samples, tokenizer, config.data, config.seed, world, shorten=shorten)


def open_session(
    config: TrainConfig, stage: Stage, data: TrainingData, state: StateFiles | None, world: World, note: Note
) -> Session:
    """Builds what trains in a stage, with the weights of the checkpoint, or fresh ones.

    Args:
        config: of the run.
        stage: to train.
        data: of the stage, see `open_data`.
        state: the checkpoint to take up; None at the beginning.
        world: the ranks.
        note: told what a step is doing.

    Raises:
        ConfigError, DataError: model, loss, optimizer or checkpoint do not fit.
    """
    model_config = model_of(config, stage)
    if state is not None:  # which has the weights that a pretrained model started with
        model_config = dataclasses.replace(model_config, pretrained=None)
    local_config = with_local_weights(model_config, world)
    torch.manual_seed(derive_seed(config.seed))
    model = build_model(local_config)
    check_trainable(model, config.model.name, config.loss)
    freeze_parameters(model, config.optimizer)
    trains = trained_towers(model)
    # Before anything takes the model apart: a sharded one no longer knows its shapes.
    reader = resized_state(state, model, architecture_of(model_config)) if state is not None else None
    if reader is not None and reader.resized:
        logger.info("resized to this stage's lengths: %s", ", ".join(reader.resized))
    teacher = None
    if config.loss.name is LossName.distillation:
        assert config.loss.teacher is not None  # LossConfig checks this
        teacher = build_teacher(
            with_local_weights(config.loss.teacher, world), model_config, model, world.device
        )
    preprocess = copy.deepcopy(preprocess_cfg_of(model))
    towers = Towers(model)
    if config.precision.name is PrecisionName.float8:
        convert_to_float8(blocks_of(model))
    if config.train.accumulation_steps > 1:
        check_repeatable(model, config.compute)
    apply_compute(model, config.compute)
    strategy = build_strategy(config.strategy, config.precision, config.compute, world)
    wrapped, optimizer = strategy.prepare(towers, lambda plain: build_optimizer(plain, config.optimizer))
    plain = strategy.plain(wrapped)
    train_step = TrainStep(
        model=wrapped,
        optimizer=optimizer,
        strategy=strategy,
        loss=build_loss(config.loss),
        augment=BatchAugment(config.augment, stage.image_size, preprocess["mean"], preprocess["std"]),
        texts_of=towers.texts_of,
        lr_at=lambda step: stage_lr(stage, config.schedule, step),
        autocast=lambda: autocast(config.precision.name, world.device),
        norms=NormWatch(lambda: strategy.parts(wrapped), world.device, config.safety.norms_every_steps),
        world=world,
        note=note,
        seed=config.seed,
        max_grad_norm=config.optimizer.max_grad_norm,
        max_logit_scale=config.loss.max_logit_scale,
        micro_batches=config.train.accumulation_steps,
        teacher=teacher,
    )
    ema = Ema(plain, config.ema) if config.ema is not None else None
    session = Session(stage, model_config, strategy, wrapped, optimizer, ema, data, train_step, world, trains)
    if state is not None and reader is not None:
        session.load(reader)
        strategy.load_scaler_state(state.progress["scaler"])
    return session


def with_local_weights(config: ModelConfig, world: World) -> ModelConfig:
    """The same model with weights on this machine: those at an address are brought once a node. Collective.

    Raises:
        DataError: there are none at the address; on every rank.
    """
    pretrained = config.pretrained
    if pretrained is None or not pretrained.startswith(storage.SCHEME):
        return config
    once_a_node(world, lambda: copy_weights(pretrained))
    return dataclasses.replace(config, pretrained=str(storage.local_path(pretrained)))
