"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd, all on loopback, in one folder.

Debian's `slurm-wlm` and `munge` bring the programs. Both nodes have this machine's name and ports of their own, so
whatever runs on "n1" and "n2" shares the file system, as on a cluster, and nothing else. Every process of it carries
the folder in its environment, which is how `stop` finds what is left, however a test ended.
"""

import ctypes
import getpass
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
START_S = 180
GPUS = 2  # of each node; they have no device behind them, so Slurm grants them and torch sees none

_CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
ReturnToService=2
SlurmdTimeout=6
SlurmctldTimeout=10
KillWait=10
JobRequeue=1
FirstJobId={first_job}
MaxArraySize=1001
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={n1} CPUs=4 RealMemory=8000 Gres=gpu:{gpus}
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={n2} CPUs=4 RealMemory=8000 Gres=gpu:{gpus}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=narrow Nodes=n1 MaxTime=10 State=UP
"""


def missing_programs() -> list[str]:
    """What this machine lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


class SlurmCluster:
    """The cluster, from `start` to `stop`.

    Attributes:
        folder: of its settings, state and logs.
        environment: what a process needs to talk to it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin",
            "OMP_NUM_THREADS": "1",
        }
        for name in [name for name in self.environment if name.startswith(("SLURM_JOB", "SBATCH_"))]:
            del self.environment[name]
        self.user = getpass.getuser()
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Returns when both nodes are idle."""
        ports = _free_ports(3)
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            _CONFIGURATION.format(
                folder=self.folder, host=host, user=self.user, gpus=GPUS,
                first_job=random.SystemRandom().randrange(1_000_000, 60_000_000),  # logs are named after it
                control=ports[0], n1=ports[1], n2=ports[2],
            )
        )  # fmt: skip
        devices = [self.folder / f"gpu{number}" for number in range(GPUS)]
        for device in devices:
            device.touch()
        (self.folder / "gres.conf").write_text(
            f"AutoDetect=off\nNodeName=n[1-2] Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n"
        )
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for name in ("state", *NODES):
            (self.folder / name).mkdir()
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed", "--num-threads=2",
        )  # fmt: skip
        self.wait_for(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._spawn("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), "two idle nodes")

    def start_node(self, node: str) -> None:
        """Starts a node's slurmd."""
        self._spawn("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """Ends a node's slurmd and all that its jobs started by SIGKILL, as a power cut does."""
        self.processes[node].kill()
        self.processes.pop(node).wait()
        jobs = set(self._our_processes()) & set(self._with_variable(f"SLURMD_NODENAME={node}"))
        # slurmstepd, which would report the end of what it started, goes first.
        steps = {parent for parent in map(_parent, jobs) if parent and _name(parent).startswith("slurmstepd")}
        for pid in [*steps, *jobs]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_delayed(self) -> None:
        """Lets what was requeued start soon, see `restart`."""
        for line in self.ask("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i %r").splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                self.run("scontrol", "update", f"jobid={job}", "StartTime=now+3")

    def states(self) -> dict[str, str]:
        """node -> its state, in sinfo's words."""
        lines = self.ask("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def ask(self, *command: str | Path, check: bool = False) -> str:
        """What a command of Slurm's prints."""
        return self.run(*command, check=check).stdout

    def run(
        self,
        *command: str | Path,
        check: bool = False,
        cwd: Path = ROOT,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command that sees the cluster."""
        return subprocess.run(
            [str(word) for word in command], env=self.environment | dict(environment or {}), cwd=cwd,
            capture_output=True, text=True, timeout=240, check=check,
        )  # fmt: skip

    def restart(self, job: str, timeout_s: float = 300) -> None:
        """Waits until a job has been put back into the queue, and lets it start soon: Slurm waits two minutes.

        Not in the same second: a node takes a credential of the second in which it ended the job for one that is
        revoked ("Job credential revoked"), and Slurm then gives the job up.
        """

        def waits() -> bool:
            return "PENDING BeginTime" in self.ask("squeue", "-h", "-r", "-j", job, "-o", "%T %r")

        self.wait_for(waits, f"job {job} back in the queue", timeout_s)
        self.run("scontrol", "update", f"jobid={job}", "StartTime=now+3", check=True)

    def submit(self, command: str, *words: str, **environment: str) -> str:
        """A job's number, by `python -m crawl2clip.submit`, called from another folder than the checkout."""
        done = self.run(
            sys.executable, "-m", "crawl2clip.submit", command, *words,
            cwd=self.folder, environment={"PYTHONPATH": str(ROOT), **environment},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[1].strip(",")

    def log(self, command: str, job: str) -> str:
        """What a job has said so far, its nodes' own logs included."""
        logs = (ROOT / "runs" / "slurm").glob(f"crawl2clip-{command}-{job}*.log")
        return "\n".join(path.read_text(errors="replace") for path in sorted(logs))

    def job_state(self, job: str) -> str:
        """A job's state, such as RUNNING or COMPLETED."""
        for word in self.ask("scontrol", "-o", "show", "job", job).split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
        return "UNKNOWN"

    def wait_for_job(self, job: str, states: Sequence[str], timeout_s: float = 400) -> None:
        """Waits until a job is in one of the states."""
        self.wait_for(lambda: self.job_state(job) in states, f"job {job} in {states}", timeout_s)

    def wait_for(self, reached: Callable[[], bool], what: str, timeout_s: float = START_S) -> None:
        """Waits until something holds.

        Raises:
            TimeoutError: it does not within the time; the message has the ends of the logs.
        """
        deadline = time.monotonic() + timeout_s
        while not reached():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {timeout_s} s\n{self.ask('squeue')}\n{self._logs()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Ends every process of the cluster and removes its folder."""
        for pid in self._our_processes():
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for process in self.processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _spawn(self, program: str, *arguments: str, name: str | None = None) -> None:
        name = name or program
        path = shutil.which(program, path=self.environment["PATH"])
        assert path is not None
        with open(self.folder / f"{name}.out", "ab") as out:
            self.processes[name] = subprocess.Popen(
                [path, *arguments],
                env=self.environment,
                cwd=self.folder,
                stdout=out,
                stderr=out,
                preexec_fn=_end_with_parent,
            )

    def processes_of(self, job: str) -> list[int]:
        """What a job started and is still there, by its environment."""
        return [pid for pid in self._with_variable(f"SLURM_JOB_ID={job}") if pid in self._our_processes()]

    def _our_processes(self) -> list[int]:
        return self._with_variable(f"SLURM_CONF={self.folder}/slurm.conf")

    def _with_variable(self, variable: str) -> list[int]:
        mark = variable.encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    environment = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mark in environment.split(b"\0"):
                    found.append(int(entry.name))
        return found

    def _logs(self) -> str:
        ends = [
            f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}"
            for path in sorted(self.folder.glob("*.out"))
        ]
        return "\n".join(ends)


def _parent(pid: int) -> int | None:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None


def _name(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[0].decode(errors="replace").rpartition("/")[2]
    return ""


def _end_with_parent() -> None:
    """Has the kernel end this process when the one that started it is gone, also by SIGKILL."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
