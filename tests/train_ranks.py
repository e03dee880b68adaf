"""Programs that the tests run on one or more gloo ranks, each a process of its own.

gloo_ranks.py starts them. The file is imported under its bare name (see the `ranks` fixture), because a test module's
own name means nothing in another process.
"""

import gc
import os
import signal
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

import train.run as training
from crawl2clip import storage
from crawl2clip.distributed import World
from train.checkpoints import checkpoint_write
from train.checkpoints.published_run import PublishedRun
from train.config import TrainConfig
from train.step import TrainStep


def train(world: World, config: TrainConfig) -> int:
    """A whole run, or what is left of one."""
    return training.train(config, world)


def train_and_die(world: World, config: TrainConfig, step: int) -> int:
    """A run that SIGKILL ends at the start of `step`, on every rank."""
    _before_step(step, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    return training.train(config, world)


def train_and_die_saving(world: World, config: TrainConfig, step: int) -> int:
    """A run that SIGKILL ends when the files of the checkpoint of `step` are there, and its manifest is not."""
    plain = checkpoint_write.write_manifest

    def die(folder: Any, world_size: int, about: Any) -> None:
        if about["step"] == step:
            os.kill(os.getpid(), signal.SIGKILL)
        plain(folder, world_size, about)

    checkpoint_write.write_manifest = die
    return training.train(config, world)


def train_and_note(world: World, config: TrainConfig, last: int | None) -> int:
    """A run that notes which samples each step draws; SIGKILL ends it after step `last`."""

    def note(train_step: TrainStep, batch: Any, number: int) -> None:
        if number - 1 == last:
            os.kill(os.getpid(), signal.SIGKILL)
        with open(Path(config.run_folder) / f"samples_{number}", "a", encoding="utf-8") as file:
            file.write(f"{' '.join(map(str, batch.sample_ids.tolist()))} ")

    _before_steps(note)
    return training.train(config, world)


def train_with_nan(world: World, config: TrainConfig, step: int, rank: int) -> int:
    """A run in which one rank's images of `step` are not a number, the first time it is done.

    The files `bad_<step>_<rank>` say how many samples had to be replaced, the last time a step was done.
    """
    done = []

    def poison(train_step: TrainStep, batch: Any, number: int) -> None:
        counted = storage.local_path(config.run_folder) / f"bad_{number}_{world.rank}"
        counted.write_text(str(len(batch.bad_draws)))
        if number != step or world.rank != rank or done:
            return
        done.append(number)
        plain = train_step.augment

        def once(*arguments: Any) -> torch.Tensor:
            train_step.augment = plain
            return plain(*arguments) * float("nan")

        train_step.augment = once  # pyright: ignore[reportAttributeAccessIssue] # a function will do

    _before_steps(poison)
    return training.train(config, world)


def train_and_signal(world: World, config: TrainConfig, step: int, rank: int) -> int:
    """A run in which one rank gets SIGUSR1 before `step`."""
    _before_step(step, lambda _: world.rank == rank and os.kill(os.getpid(), signal.SIGUSR1))
    return training.train(config, world)


def in_environment(
    world: World, variables: dict[str, str], program: Callable[..., Any], *arguments: Any
) -> Any:
    """A program on ranks whose environment has some variables more: ranks are forked from an older one."""
    os.environ.update(variables)
    return program(world, *arguments)


def train_and_die_publishing(world: World, config: TrainConfig, name: str, request: int = 1) -> int:
    """A run that SIGKILL ends in the middle of publishing, before a request for the object whose address ends so."""
    plain, asked_for = storage.asked, []

    def asked(address: str, ask: Callable[[Any], Any]) -> Any:
        if address.endswith(name):
            asked_for.append(address)
        if len(asked_for) == request:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(address, ask)

    storage.asked = asked
    at_once(PublishedRun)
    return training.train(config, world)


def at_once(published: type[PublishedRun]) -> None:
    """Publishes in the thread that saves, so that a test knows what is in the store at a step."""
    plain = published.wake

    def wake(self: PublishedRun) -> None:
        self.try_to_publish()
        plain(self)

    published.wake = wake


def train_and_weigh(world: World, config: TrainConfig) -> list[dict[str, Any]]:
    """A run; at each stage's beginning, how much memory tensors take and which of the models before are still there."""
    plain, opened, found = training.open_session, [], []

    def opening(*arguments: Any) -> Any:
        found.append(
            {"bytes": bytes_in_tensors(), "alive": [name for name, ref in opened if ref() is not None]}
        )
        session = plain(*arguments)
        parts = {
            "model": session.model,
            "plain": session.strategy.plain(session.model),
            "optimizer": session.optimizer,
        }
        opened.extend((name, weakref.ref(part)) for name, part in parts.items())
        return session

    training.open_session = opening
    training.train(config, world)
    return found


def bytes_in_tensors() -> int:
    """The memory of all tensors that Python knows of; no cycle is collected first."""
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    storages = [
        (part._local_tensor if isinstance(part, DTensor) else part).untyped_storage() for part in tensors
    ]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def train_while_put(world: World, config: TrainConfig, name: str, step: int) -> int:
    """A run whose store takes an object only when training is at `step`."""
    plain, reached = storage.asked, threading.Event()

    def asked(address: str, ask: Callable[[Any], Any]) -> Any:
        if address.endswith(name) and not reached.wait(120):
            raise TimeoutError(f"training has not come to step {step}")
        return plain(address, ask)

    storage.asked = asked
    _before_step(step, lambda _: reached.set())
    return training.train(config, world)


def _before_step(step: int, act: Callable[[TrainStep], Any]) -> None:
    _before_steps(lambda train_step, batch, number: act(train_step) if number == step else None)


def _before_steps(act: Callable[[TrainStep, Any, int], Any]) -> None:
    plain = TrainStep.__call__

    def acting(self: TrainStep, batch: Any, number: int, **flags: bool) -> Any:
        act(self, batch, number)
        return plain(self, batch, number, **flags)

    TrainStep.__call__ = acting
