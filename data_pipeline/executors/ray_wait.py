"""`python -m data_pipeline.executors.ray_wait HOST:PORT NODES` returns when that many nodes have joined a Ray."""

import logging
import sys
import time

WAIT_S = 180.0


def wait_for_nodes(address: str, nodes: int, wait_s: float) -> str | None:
    """Waits for the nodes; returns what is wrong when they do not come in time."""
    import ray

    deadline, found, said = time.monotonic() + wait_s, 0, ""
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
            found = sum(bool(node["Alive"]) for node in ray.nodes())
            if found >= nodes:
                return None
        except (ConnectionError, RuntimeError, ValueError) as error:
            said = f" ({str(error).splitlines()[0]})"
        time.sleep(1)
    return f"{found} of {nodes} Ray nodes joined {address} within {wait_s:g} s{said}; the nodes' own logs say why"


if __name__ == "__main__":
    problem = wait_for_nodes(sys.argv[1], int(sys.argv[2]), WAIT_S)
    if problem:
        print(f"error: {problem}", file=sys.stderr)
    sys.exit(4 if problem else 0)
