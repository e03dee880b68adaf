"""Starts gloo ranks as processes of their own and collects what they return.

Ranks are forked from a server that has imported the slow libraries once: a fresh interpreter for every rank of every
test would spend minutes on imports. A program and its arguments travel by name, so a program lives in a module that
the ranks can import: not in a test module, whose own name means nothing in another process, but in a file of this
folder, which pytest has on `sys.path` (ranks take the path over).
"""

import itertools
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any

import torch

from crawl2clip.distributed import World, distributed

TIMEOUT_S = 300
COLLECTIVE_TIMEOUT_S = 120
PRELOADED = [
    "torch._dynamo",
    "open_clip",
    "timm",
    "deepspeed.runtime.zero.muon.original_muon",  # DeepSpeed imports it when it looks at an optimizer
    "gloo_ranks",  # from Python 3.13 on: before, the server does not get our sys.path and passes over it
]
"""What the server imports. A process starts one server, so whoever starts it first decides for all."""
PORTS = range(15_000, 32_000)
"""Below the ports that Linux gives to outgoing connections (from 32,768 on), one of which could take a free port
between the look at it and its use."""

_numbers = itertools.count(101 * os.getpid())  # test runs side by side look at different ports


def on_ranks(program: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `program(world, *arguments)` returned on each rank, or its exception, or minus the signal it died of.

    Raises:
        TimeoutError: a rank did not end within 300 s; all of them are killed.
    """
    context = server()
    port = free_port()
    started = []
    deadline = time.monotonic() + TIMEOUT_S
    try:
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            place = (rank, world_size, port)
            process = context.Process(target=_rank_main, args=(theirs, place, program, arguments))
            process.start()
            theirs.close()
            started.append((process, ours))
        return [_outcome(process, pipe, deadline, program.__name__) for process, pipe in started]
    finally:
        for process, pipe in started:
            process.kill()
            process.join()
            pipe.close()


def results_on_ranks(program: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """What `program(world, *arguments)`, which must not return an int, returned on each rank.

    Raises:
        Exception: the first rank's that raised one.
        RuntimeError: a rank died.
    """
    outcomes = on_ranks(program, world_size, *arguments)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    for rank, outcome in enumerate(outcomes):
        if isinstance(outcome, int):
            raise RuntimeError(f"{program.__name__} ended with exit code {outcome} on rank {rank}")
    return outcomes


def server() -> Any:
    """The multiprocessing context that forks from the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def free_port() -> int:
    """A port that nobody listens on and that no outgoing connection is given; another one at each call."""
    while True:
        port = PORTS[next(_numbers) % len(PORTS)]
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port


@contextmanager
def joined(rank: int, world_size: int, port: int) -> Iterator[World]:
    """This process as a rank: with torchrun's environment, one thread, and in the process group."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    with distributed(timeout_s=COLLECTIVE_TIMEOUT_S, device="cpu") as world:
        yield world


def _rank_main(
    pipe: Any, place: tuple[int, int, int], program: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    try:
        with joined(*place) as world:
            pipe.send(program(world, *arguments))
    except Exception as error:
        pipe.send(ExceptionWithTraceback(error, error.__traceback__))  # arrives as the error, with a cause


def _outcome(process: Any, pipe: Any, deadline: float, name: str) -> Any:
    # Received before the process is joined: it cannot end while a long result is still in the pipe.
    said = []
    with suppress(EOFError):
        wait([pipe, process.sentinel], max(0.0, deadline - time.monotonic()))
        if pipe.poll():
            said.append(pipe.recv())
    process.join(max(0.0, deadline - time.monotonic()))
    if process.exitcode is None:
        raise TimeoutError(f"{name} did not end within {TIMEOUT_S} s")
    if process.exitcode == 0 and not said:
        raise RuntimeError(f"{name} ended a rank with exit code 0, and without a result")
    return said[0] if process.exitcode == 0 else process.exitcode
