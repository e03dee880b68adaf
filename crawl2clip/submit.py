"""`python -m crawl2clip.submit train|evaluate|pipeline|ray cluster=NAME [nodes=N] [...]`: one job, by its sbatch file.

Everything that is the cluster's comes from its file (see `crawl2clip.cluster`), everything else goes to the command.
It may be called from any folder: the job runs in the checkout that this file belongs to.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from crawl2clip.cluster import explain_refusal, job_environment, load_cluster, quoted, sbatch_options
from crawl2clip.errors import ConfigError, Crawl2ClipError, unknown_name

CHECKOUT = Path(__file__).resolve().parents[1]
COMMANDS = {"train": "gpu", "evaluate": "gpu", "pipeline": "cpu", "ray": "cpu"}
"""The sbatch files, and the kind of node that each runs on."""
OWN_WORDS = {
    "cluster": "a name in configs/cluster or a path (always given)",
    "nodes": "how many nodes",
    "kind": "gpu or cpu, in place of the command's own kind of node",
    "time": "in place of the file's",
    "partition": "in place of the file's",
    "dry_run": "true: only print what would be submitted",
}
HELP = """\
usage: python -m crawl2clip.submit train|evaluate|pipeline|ray cluster=NAME [nodes=N] [WORD ...]

Submits slurm/COMMAND.sbatch. These words are taken here, all others go to the command:
{words}
Example:
  python -m crawl2clip.submit train cluster=h100 nodes=4 experiment=clip_b32_laion400m data.shards=/data run_name=b32
"""


def submission(words: list[str]) -> tuple[list[str], dict[str, str], str, bool]:
    """The sbatch command, its environment, the cluster file and whether it is only to be shown.

    Raises:
        ConfigError: a word is missing or unknown.
    """
    if not words or words[0] not in COMMANDS:
        raise ConfigError(unknown_name("command", words[0] if words else "", COMMANDS))
    command, rest = words[0], words[1:]
    own = {
        word.partition("=")[0]: word.partition("=")[2] for word in rest if word.partition("=")[0] in OWN_WORDS
    }
    passed = [word for word in rest if word.partition("=")[0] not in OWN_WORDS]
    if "cluster" not in own:
        raise ConfigError(
            "cluster=NAME is missing; give a name in configs/cluster, or the path of a YAML file"
        )
    kind = own.get("kind", COMMANDS[command])
    if kind not in ("gpu", "cpu"):
        raise ConfigError(f"kind is {kind!r}; give gpu or cpu")
    cluster = load_cluster(own["cluster"])
    nodes = cluster.gpu if kind == "gpu" else cluster.cpu
    for name in ("time", "partition"):
        if name in own:
            setattr(nodes, name, own[name])
    number = own.get("nodes", "1")
    if not number.isdigit() or number == "0":
        raise ConfigError(f"nodes is {number!r}; give a whole number from 1 on")
    logs = CHECKOUT / "runs" / "slurm"
    options = [
        "--parsable", f"--nodes={number}", f"--chdir={CHECKOUT}", f"--output={logs}/%x-%j.log",
        *sbatch_options(cluster, nodes),
    ]  # fmt: skip
    environment = job_environment(cluster, CHECKOUT, os.environ.get("CRAWL2CLIP_PYTHON", sys.executable))
    if command == "pipeline" and any(word.startswith("executor=slurm") for word in passed):
        source = own["cluster"]
        is_file = source.endswith((".yaml", ".yml"))  # named from here, and the job runs in the checkout
        passed.append(f"executor.cluster={Path(source).resolve() if is_file else source}")
    line = ["sbatch", *options, str(CHECKOUT / "slurm" / f"{command}.sbatch"), *passed]
    return line, environment, own["cluster"], own.get("dry_run", "") == "true"


def submit(line: list[str], environment: dict[str, str], source: str) -> str:
    """Calls sbatch; returns the job's number.

    Raises:
        ConfigError: sbatch is not there, or refuses.
    """
    if shutil.which("sbatch") is None:
        raise ConfigError(
            "sbatch is not found; call this on a login node of the cluster, or load its slurm module"
        )
    (CHECKOUT / "runs" / "slurm").mkdir(parents=True, exist_ok=True)  # or the job ends without a word
    done = subprocess.run(line, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(explain_refusal(done.stderr, f"cluster={source}", partitions()))
    return done.stdout.strip().partition(";")[0]


def partitions() -> list[str]:
    """The partitions of the cluster; none when it cannot be asked."""
    asked = subprocess.run(["sinfo", "-h", "-o", "%R"], capture_output=True, text=True, check=False)
    return sorted(set(asked.stdout.split()))


def main(words: list[str]) -> int:
    """The command; returns the exit status."""
    if not words or words[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name + '=':<11}{meaning}" for name, meaning in OWN_WORDS.items())
        print(HELP.format(words=listed))
        return 0 if words else 2
    try:
        line, environment, source, dry_run = submission(words)
        if dry_run:
            print(quoted([*(f"{name}={value}" for name, value in environment.items()), *line]))
            return 0
        job = submit(line, environment, source)
    except Crawl2ClipError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"job {job}, log {CHECKOUT / 'runs' / 'slurm'}/crawl2clip-{words[0]}-{job}.log")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
