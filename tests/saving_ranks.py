"""Programs that save checkpoints on one or two real processes, and are killed while they do.

They are forked from the server of gloo_ranks.py, but say more than one thing before they end or are killed. The file
is imported under its bare name, because a test module's own name means nothing in another process.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gloo_ranks import free_port, joined, server

import train.checkpoints.checkpoint_write
from crawl2clip.distributed import World, single_process
from crawl2clip.errors import DataError
from train.checkpoints.checkpoint_folder import find_newest
from train.checkpoints.saving import SaveConfig, Saver
from train.checkpoints.state import Piece, StateReader

TIMEOUT_S = 60
_ROWS = 200_000  # 800 kB a tensor: long enough to write for a kill to meet it


def config(**values: Any) -> SaveConfig:
    """Settings of a run that saves at every step."""
    return SaveConfig(
        **{"every_steps": 1, "every_minutes": None, "keep_last": 2, "asynchronous": True, **values}
    )


def expected(step: int) -> dict[str, torch.Tensor]:
    """The state that every program saves at a step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "model/weight": torch.randn(_ROWS, generator=generator),
        "model/half": torch.randn(7, 3, generator=generator).bfloat16(),
        "optimizer/weight/step": torch.tensor(step),
    }


def pieces_of(step: int, rank: int, world_size: int) -> list[Piece]:
    """A rank's share of it; the scalar is on the last rank."""
    pieces = []
    for name, tensor in expected(step).items():
        if not tensor.ndim:
            if rank == world_size - 1:
                pieces.append(Piece(name, (), 0, tensor))
            continue
        begin, end = (len(tensor) * part // world_size for part in (rank, rank + 1))
        pieces.append(Piece(name, tuple(tensor.shape), begin, tensor[begin:end]))
    return pieces


def differences(found: StateReader, step: int) -> list[str]:
    """Tensors that are not bit for bit those of the step."""
    return [
        name
        for name, tensor in expected(step).items()
        if found.read(name).dtype != tensor.dtype or not torch.equal(found.read(name), tensor)
    ]


class Running:
    """A process that runs a program and tells what it says through a pipe."""

    def __init__(self, program: Callable[..., Any], *arguments: Any) -> None:
        context = server()
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_main, args=(theirs, program, arguments), daemon=True)
        self.process.start()
        theirs.close()

    def next(self) -> Any:
        """The next thing it says; EOFError once it has ended."""
        if not self._pipe.poll(TIMEOUT_S):
            raise TimeoutError(f"the process said nothing for {TIMEOUT_S} s")
        return self._pipe.recv()

    def rest(self) -> list[Any]:
        """Everything it still says; waits for its end."""
        said = []
        try:
            while True:
                said.append(self.next())
        except EOFError:
            self.process.join(TIMEOUT_S)
            return said

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


def _main(pipe: Any, program: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    program(pipe.send, *arguments)


def save_for_ever(say: Callable[[Any], None], folder: Path) -> None:
    """Goes on from the newest checkpoint and saves step after step; says each step that is known to be saved."""
    found = find_newest(folder, repair=True)
    step = found.step if found is not None else 0
    with Saver(folder, config(), single_process(), {"run": "kills"}) as saver:
        say(step)
        while True:
            saver.save(step + 1, pieces_of(step + 1, 0, 1), {"step": step + 1})
            say(step)  # save has waited for the one before
            step += 1


def start_ranks(program: Callable[..., Any], world_size: int, *arguments: Any) -> list[Running]:
    """`program(world, say, *arguments)` on gloo ranks."""
    port = free_port()
    return [Running(_on_rank, rank, world_size, port, program, arguments) for rank in range(world_size)]


def _on_rank(
    say: Callable[[Any], None],
    rank: int,
    world_size: int,
    port: int,
    program: Callable[..., Any],
    arguments: Any,
) -> None:
    with joined(rank, world_size, port) as world:
        program(world, say, *arguments)


def save_steps(world: World, say: Callable[[Any], None], folder: Path, steps: list[int]) -> None:
    """Saves the steps, then says what every rank finds: the newest step and which tensors differ."""
    find_newest(folder, repair=True, world=world)
    with Saver(folder, config(), world, {"run": "ranks"}) as saver:
        for step in steps:
            saver.save(step, pieces_of(step, world.rank, world.world_size), {"step": step})
        saver.finish()
    say(newest(world, folder))


def load(world: World, say: Callable[[Any], None], folder: Path) -> None:
    """Says what every rank finds."""
    say(newest(world, folder))


def newest(world: World, folder: Path) -> tuple[int, list[str]]:
    """The newest checkpoint's step and the tensors that are not what they should be."""
    found = find_newest(folder, repair=True, world=world)
    assert found is not None
    return found.step, differences(found, found.step)


def die_before_the_manifest(world: World, say: Callable[[Any], None], folder: Path, victim: int) -> None:
    """Saves step 1; at step 2 the victim is killed by SIGKILL: rank 1 before its part, rank 0 after all parts."""
    with Saver(folder, config(), world, {"run": "ranks"}, timeout_s=2) as saver:
        saver.save(1, pieces_of(1, world.rank, 2), {})
        saver.finish()
        if world.rank == victim:
            name = "write_manifest" if victim == 0 else "write_part"
            setattr(train.checkpoints.checkpoint_write, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        saver.save(2, pieces_of(2, world.rank, 2), {})
        write = saver._write
        assert write is not None
        write.join()
        say(saver.failed)


def fail_on_one(world: World, say: Callable[[Any], None], folder: Path, victim: int) -> None:
    """Saves step 1; at step 2 the victim's disk is full. The ranks share the flag as a loop would at its next step."""
    with Saver(folder, config(), world, {"run": "ranks"}) as saver:
        saver.save(1, pieces_of(1, world.rank, 2), {})
        saver.finish()
        if world.rank == victim:

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            train.checkpoints.checkpoint_write.write_part = full
        saver.save(2, pieces_of(2, world.rank, 2), {})
        for _ in range(1000):
            if any(world.all_gather_object(saver.failed)):
                break
        try:
            saver.finish()
        except DataError as error:
            say(str(error))
