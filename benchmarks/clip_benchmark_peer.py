"""clip_benchmark's command line in a process of its own: `python -O clip_benchmark_peer.py COMMANDS.json`.

The file is a list of commands, each a list of arguments, run one after another so that the imports are paid for once.
clip_benchmark's linear probe refuses a CPU: it asserts that the device is "cuda" and calls .cuda() on what it trains.
`-O` leaves the assertion out, and where there is no GPU .cuda() is made to return the thing as it is; the regressions
then run on the CPU. All else is `clip_benchmark ARGUMENTS...`. The last line printed is the most GPU memory.
"""

import json
import sys
from pathlib import Path

# This folder has an evaluate.py and a train.py, which nobody should find by mistake.
sys.path.pop(0)

import torch
from clip_benchmark.cli import main


def _as_it_is(self, *_, **__):
    return self


if __name__ == "__main__":
    if not torch.cuda.is_available():
        torch.nn.Module.cuda = torch.Tensor.cuda = _as_it_is
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        sys.argv = ["clip_benchmark", *arguments]
        main()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(json.dumps({"peak_gpu_bytes": peak}))
