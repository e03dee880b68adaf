"""`python -m crawl2clip.node_check`: run by srun on every node of a job before its work, so that a broken node is named
in the first lines of the log and not after an hour of waiting for a collective.

Each node looks at itself, then tells the first node, over the port that the job's processes will meet at; so the way
there is tried as well. The first node waits for all, prints a line a node, and fails when one failed or kept silent.
"""

import argparse
import json
import os
import socket
import sys
import time
import uuid
from pathlib import Path

WAIT_S = 120.0  # for the slowest node to import torch from a cold file system
_RETRY_S = 0.5


def problems_of_node(needs_gpu: bool, folders: list[str]) -> list[str]:
    """What is wrong with this node; empty when nothing is."""
    found = []
    if needs_gpu:
        found += _gpu_problems()
    for folder in folders:
        problem = _write_problem(Path(folder))
        if problem:
            found.append(problem)
    return found


def _gpu_problems() -> list[str]:
    granted = os.environ.get("SLURM_GPUS_ON_NODE", "")
    if granted in ("", "0"):
        return [
            "no GPU was granted: the cluster file's gres asks for none, or sbatch was called without --gres=gpu:N; "
            "to run on cores alone say device=cpu"
        ]
    import torch

    seen = torch.cuda.device_count()
    if seen < int(granted):
        return [
            f"Slurm granted {granted} GPU(s) and torch sees {seen}: look at nvidia-smi, the driver and the container's "
            "GPU option there, or leave the node out with --exclude"
        ]
    return []


def _write_problem(folder: Path) -> str | None:
    """Why no file can be written in a folder, which is made if it is not there; None when one can."""
    probe = folder / f".preflight-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("written to see whether it can be\n")
        probe.unlink()
    except OSError as error:
        return f"cannot write to {folder} ({error.strerror}): give a folder that every node can write to"
    return None


def gather(host: str, port: int, nodes: int, own: list[str], wait_s: float) -> dict[str, list[str]]:
    """On the first node: what every node found, by its name. A node that did not report within the time is missing.

    Raises:
        OSError: the port cannot be listened on.
    """
    found = {node_name(): own}
    with socket.create_server(("", port), backlog=nodes, reuse_port=False) as server:
        deadline = time.monotonic() + wait_s
        while len(found) < nodes:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                break
            with connection:
                connection.settimeout(10)
                try:
                    said = json.loads(connection.makefile("rb").readline())
                    found[str(said["node"])] = [str(problem) for problem in said["problems"]]
                    connection.sendall(b"heard\n")
                except (OSError, ValueError, KeyError, TypeError):
                    continue  # not one of ours
    return found


def report(host: str, port: int, problems: list[str], wait_s: float) -> str | None:
    """On the other nodes: tells the first one. Returns why it cannot be reached, or None."""
    deadline, error = time.monotonic() + wait_s, ""
    said = json.dumps({"node": node_name(), "problems": problems}).encode() + b"\n"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((host, port), timeout=10) as connection:
                connection.sendall(said)
                if connection.makefile("rb").readline() == b"heard\n":
                    return None
                error = "something else answers there"
        except socket.gaierror as failure:
            return f"the name {host} is not known here ({failure.strerror})"
        except OSError as failure:
            error = str(failure)
        time.sleep(_RETRY_S)
    return f"{error} for {wait_s:g} s"


def node_name() -> str:
    """This node, as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def main(arguments: list[str]) -> int:
    """The command; returns the exit status: 0 when this node, and on the first node every node, is fit."""
    parser = argparse.ArgumentParser(prog="python -m crawl2clip.node_check")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--rendezvous", required=True, help="HOST:PORT on the first node")
    parser.add_argument("--needs-gpu", type=int, choices=(0, 1), default=0)
    parser.add_argument("--wait", type=float, default=float(os.environ.get("CRAWL2CLIP_PREFLIGHT_S", WAIT_S)))
    parser.add_argument("folders", nargs="*", help="must be writable")
    asked = parser.parse_args(arguments)
    host, _, port = asked.rendezvous.rpartition(":")
    problems = problems_of_node(bool(asked.needs_gpu), asked.folders)
    if os.environ.get("SLURM_NODEID", "0") != "0":
        unreached = report(host, int(port), problems, asked.wait)
        if unreached is not None:  # nobody else can say it
            problems.append(
                f"cannot reach the rendezvous {host}:{port}: {unreached}. Set CRAWL2CLIP_RENDEZVOUS to a name of the "
                "first node that the others know, and open the port between nodes"
            )
            print(_line(node_name(), problems), file=sys.stderr, flush=True)
        return 1 if problems else 0
    try:
        found = gather(host, int(port), asked.nodes, problems, asked.wait)
    except OSError as error:
        print(
            _line(node_name(), [f"port {port} cannot be listened on ({error}); set CRAWL2CLIP_PORT"]),
            file=sys.stderr,
        )
        return 1
    return _summary(found, asked.nodes, asked.rendezvous)


def _summary(found: dict[str, list[str]], nodes: int, rendezvous: str) -> int:
    for name in sorted(found):
        print(_line(name, found[name]), file=sys.stderr)
    bad = sorted(name for name in found if found[name])
    silent = nodes - len(found)
    if silent:
        print(f"preflight: {silent} of {nodes} nodes did not report to {rendezvous}", file=sys.stderr)
    if bad:
        print(
            f"preflight: {len(bad)} of {nodes} nodes failed; to go on without them: --exclude={','.join(bad)}",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    return 1 if bad or silent else 0


def _line(name: str, problems: list[str]) -> str:
    return f"preflight: {name}: {'; '.join(problems) or 'ok'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
