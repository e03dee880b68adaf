"""Downloading, ours against img2dataset: the same list, server, workers, size and quality, in turn.

    python benchmarks/download.py [images=2000] [large=60] [repeats=3] [workers=2] [faults=1] [parts=1] [peer=1] \
        [schemes=http,https]

A server of its own process (download_server.py, 8 hosts on loopback, HTTP and HTTPS) hands out 640 x 480 JPEGs of 60 to
100 kB and a set of 3000 x 2000. Both sides store the short side 256, area averaging, quality 95, as webdataset tars
with as many worker processes. CPU time is user and system time of a run's whole process tree, from start to end; what a
run with few images takes is start-up, what each image adds to that is the steady state. Ours with robots.txt,
X-Robots-Tag, address checks, MD5, SHA-256 and perceptual hash on; the peer hashes SHA-256.
"""

import ctypes
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from download_images import make_images
from download_parts import print_parts
from tree_memory import TreeMemory

NUM_HOSTS = 8
FEW = 40  # images of the run that shows what a start costs
PEER = "img2dataset==1.47.0"
_PR_SET_CHILD_SUBREAPER = 36


def main(words: list[str]) -> None:
    """Runs everything and prints the table and the result lines."""
    options = {"images": "2000", "large": "60", "repeats": "3", "faults": "1", "peer": "1"}
    options |= {"schemes": "http,https", "workers": "2", "parts": "1"} | dict(
        word.split("=", 1) for word in words
    )
    adopt_orphans()
    folder = Path(tempfile.gettempdir()) / "crawl2clip-benchmark-download"
    make_images(folder / "images", "small", 200)
    make_images(folder / "images", "large", 16)
    peer = prepare_peer(folder / "img2dataset") if options["peer"] == "1" else None
    with Web(folder / "images") as web, tempfile.TemporaryDirectory() as scratch:
        bench = Bench(web, Path(scratch), peer, int(options["repeats"]), int(options["workers"]))
        for scheme in filter(None, options["schemes"].split(",")):
            bench.steady(
                scheme, "small", int(options["images"]), exact_target=5.3 if scheme == "http" else 6.0
            )
        if int(options["large"]):
            bench.steady("http", "large", int(options["large"]), exact_target=None)
        if options["parts"] == "1":
            print_parts(folder / "images")
        if options["faults"] == "1":
            bench.faults()


class Web:
    """The server's process; a context manager.

    Attributes:
        ports: scheme -> address -> port.
        dead: a port where connections are refused.
        authority: certificates to trust.
    """

    def __init__(self, images: Path) -> None:
        self._images = images
        self.authority = images / "authority.pem"

    def __enter__(self) -> "Web":
        self._process = subprocess.Popen(
            [sys.executable, script("download_server.py"), self._images, str(NUM_HOSTS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        told = json.loads(self._process.stdout.readline())
        self.ports, self.dead = {scheme: told[scheme] for scheme in ("http", "https")}, told["dead"]
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def urls(self, scheme: str, kind: str, count: int) -> list[list[str]]:
        """(url, text) pairs of good images, spread over the hosts."""
        hosts = list(self.ports[scheme].items())
        return [
            [f"{scheme}://{address}:{port}/{kind}/{number}.jpg", f"picture {number}"]
            for number in range(count)
            for address, port in [hosts[number % len(hosts)]]
        ]

    def bad_urls(self, each: int) -> dict[str, list[str]]:
        """Fault -> URLs."""
        hosts = [f"{address}:{port}" for address, port in self.ports["http"].items()]
        faults = {
            kind: [f"http://{hosts[number % len(hosts)]}/{kind}/{number}" for number in range(each)]
            for kind in ("missing", "busy", "cut", "stall", "drip", "drip_header", "endless")
        }
        return faults | {"dead": [f"http://127.0.0.1:{self.dead}/{number}" for number in range(each)]}


class Bench:
    """Runs of both sides on the same lists."""

    def __init__(self, web: Web, scratch: Path, peer: Path | None, repeats: int, workers: int) -> None:
        self.web = web
        self.scratch = scratch
        self.peer = peer
        self.repeats = repeats
        self.workers = workers
        self.runs = 0

    def ours(self, pairs: list[list[str]], limit_s: float = 600.0, **settings: object) -> dict:
        """One run of ours: what it told, CPU and wall seconds, and its processes' peak memory together."""
        settings = {
            "download.user_agent": "crawl2clip-benchmark/1.0 (+https://example.org/bot)",
            "download.allow_loopback": True, "download.per_host_connections": 64,
            "download.per_host_requests_per_s": 1e6, "recipe.min_bytes": 0, "executor.num_workers": self.workers,
        } | {name.replace("__", "."): value for name, value in settings.items()}  # fmt: skip
        return self._run(Path(sys.executable), "download_ours.py", pairs, settings, limit_s)

    def theirs(self, pairs: list[list[str]], limit_s: float = 600.0, **settings: object) -> dict:
        """One run of img2dataset."""
        assert self.peer is not None
        settings = {
            "processes_count": self.workers, "thread_count": 32, "image_size": 256, "resize_mode": "keep_ratio",
            "resize_only_if_bigger": True, "encode_quality": 95, "number_sample_per_shard": 1250, "timeout": 10,
            "retries": 0, "enable_wandb": False, "disallowed_header_directives": None,
        } | settings  # fmt: skip
        return self._run(self.peer, "img2dataset_peer.py", pairs, settings, limit_s)

    def _run(self, python: Path, name: str, pairs: list[list[str]], settings: dict, limit_s: float) -> dict:
        self.runs += 1
        folder = self.scratch / str(self.runs)
        listed, chosen = self.scratch / "list.json", self.scratch / "settings.json"
        listed.write_text(json.dumps(pairs))
        chosen.write_text(json.dumps(settings))
        environment = os.environ | {"SSL_CERT_FILE": str(self.web.authority), "OMP_NUM_THREADS": "1"}
        before, began = cpu_of_children(), time.monotonic()
        process = subprocess.Popen(
            [python, script(name), folder, listed, chosen],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True, start_new_session=True,
        )  # fmt: skip
        ended = True
        with TreeMemory(process.pid) as memory:
            try:
                printed, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                ended = False
                os.killpg(process.pid, signal.SIGKILL)
                printed, _ = process.communicate()
        reap_orphans(self.web)
        told: dict = json.loads(printed.splitlines()[-1]) if ended and process.returncode == 0 else {}
        told |= {"ended": ended, "cpu_s": cpu_of_children() - before, "all_s": time.monotonic() - began}
        told["peak_mb"] = memory.peak_mb
        shutil.rmtree(folder, ignore_errors=True)
        return told

    def steady(self, scheme: str, kind: str, count: int, exact_target: float | None) -> None:
        """Start-up and CPU time an image, of ours exact and scaled and of the peer, in turn."""
        few, many = self.web.urls(scheme, kind, FEW), self.web.urls(scheme, kind, FEW + count)
        sides = {
            "exact": lambda pairs: self.ours(pairs),
            "scaled": lambda pairs: self.ours(pairs, download__images__decoding="scaled"),
        }
        if self.peer is not None:
            sides["img2dataset"] = lambda pairs: self.theirs(pairs)
        starts: dict[str, list[float]] = {side: [] for side in sides}
        costs: dict[str, list[float]] = {side: [] for side in sides}
        speeds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(self.repeats):
            for side, run in sides.items():
                short, long = run(few), run(many)
                if (short.get("stored"), long.get("stored")) != (len(few), len(many)):
                    raise SystemExit(f"{side} stored {long} of {len(many)}, {short} of {len(few)}")
                costs[side].append(1e3 * (long["cpu_s"] - short["cpu_s"]) / count)
                starts[side].append(short["cpu_s"] - FEW * costs[side][-1] / 1e3)
                speeds[side].append(count / max(1e-9, long["wall_s"] - short["wall_s"]))
        for side in sides:
            print(
                f"{scheme} {kind} {side}: {middle(costs[side]):.2f} CPU ms an image "
                f"({min(costs[side]):.2f} to {max(costs[side]):.2f}), start {middle(starts[side]):.1f} CPU s, "
                f"{middle(speeds[side]):.0f} images/s",
                flush=True,
            )
        peers = {"peer": middle(costs["img2dataset"])} if "img2dataset" in costs else {}
        name = f"download_{scheme}_{kind}"
        target = {"target": exact_target} if exact_target else {}
        result(f"{name}_exact_cpu_ms", middle(costs["exact"]), **peers, **target)
        target = {"target": exact_target - (1.0 if scheme == "http" else 0.9)} if exact_target else {}
        result(f"{name}_scaled_cpu_ms", middle(costs["scaled"]), **peers, **target)
        starts_peer = {"peer": middle(starts["img2dataset"])} if peers else {}
        result(f"{name}_start_cpu_s", middle(starts["exact"]), **starts_peer, target=2.0, unit="s")

    def faults(self) -> None:
        """The same good images among bad ones: who ends, how soon, with how many of the good ones."""
        good, each = 400, 20
        for title, kinds in (
            ("dead hosts, 404, 429, cut bodies, silence", ("dead", "missing", "busy", "cut", "stall")),
            ("a byte a second, in body and header", ("drip", "drip_header")),
            ("endless bodies", ("endless",)),
        ):
            bad = self.web.bad_urls(each if kinds != ("endless",) else 2)
            pairs = self.web.urls("http", "small", good)
            pairs += [[url, f"bad {number}"] for kind in kinds for number, url in enumerate(bad[kind])]
            settings = {f"download__{name}": 5.0 for name in ("connect_timeout_s", "first_byte_timeout_s")}
            settings |= {"download__read_timeout_s": 5.0, "download__max_host_failures": 1000}
            run = self.ours(pairs, 90.0, **settings)
            print(f"faults, {title}: ours {told(run, good)}", flush=True)
            if self.peer is not None:
                run = self.theirs(pairs, 90.0, timeout=5)
                print(f"faults, {title}: img2dataset {told(run, good)}", flush=True)


def told(run: dict, good: int) -> str:
    """What came of a run with faults."""
    if not run["ended"]:
        return f"had not ended after {run['all_s']:.0f} s and was killed; {run['peak_mb']:.0f} MB at most"
    return (
        f"ended after {run['all_s']:.0f} s, {run.get('stored')} stored of {good} good; "
        f"lost {run.get('lost')}; {run['peak_mb']:.0f} MB at most"
    )


def prepare_peer(folder: Path) -> Path:
    """The Python of the peer's virtual environment, made when it is not there."""
    python = folder / "bin" / "python"
    if not list(folder.glob("lib/*/site-packages/img2dataset")):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER], check=True)
    return python


def adopt_orphans() -> None:
    """Makes processes whose parent is killed ours, so that their CPU time is counted."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(web: Web) -> None:
    """Waits for what a run left behind; the server is no orphan and stays."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        orphans = [int(pid) for pid in children if int(pid) != web._process.pid]
        if not orphans:
            return
        for pid in orphans:
            os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def cpu_of_children() -> float:
    """User and system seconds of all processes that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def script(name: str) -> Path:
    """A file beside this one."""
    return Path(__file__).with_name(name)


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def result(name: str, ours: float, *, unit: str = "ms", **others: float) -> None:
    """Prints a result line."""
    rest = " ".join(f"{key}={value:.3f}" for key, value in others.items())
    print(f"result name={name} ours={ours:.3f} {rest} unit={unit}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
