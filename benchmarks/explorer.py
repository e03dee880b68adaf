"""The explorer: build time, memory, recall and latency of searches, against clip-retrieval's back and exact faiss.

    python benchmarks/explorer.py [rows=1000000] [dim=512] [queries=200] [budget_gb=1] [folder=FOLDER] [peer_python=...]
                                 [rows_per_shard=10000] [exact_rows=100000]

Vectors are synthetic, in clusters (benchmarks/explorer_data.py). `build` is the whole stage=index with two workers,
recall measured. Latency is that of HTTP requests on loopback to a server in a process of its own, one after the other,
40 results each, the query's embedding in the request: what comes after the tower. Image queries lie like the data;
text queries lie further off, as CLIP's texts do. `filtered` searches each have a filter that was never asked before
(a language and a range of scores of their own), `again` the same ones once more. The floor is exact search by faiss
over the same vectors in float32, one query at a time; the peer is clip-retrieval's KnnService.query with Arrow metadata
on the index that ours has built, without HTTP. Recall@10 is against exact search. Memory is what the server holds of
its own (anonymous) and with the mapped files it has touched (resident).
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evaluate_runs import ROOT, run
from benchmarks.explorer_data import centres, near, write_run
from data_pipeline.embeddings import image_name
from data_pipeline.stage import finished_shards

DEFAULTS = {"rows": "1000000", "dim": "512", "queries": "200", "budget_gb": "1", "folder": "", "peer_python": "",
            "exact_rows": "100000", "rows_per_shard": "10000"}  # fmt: skip
SHOWN = 40
TARGET_MS, TARGET_RECALL, TARGET_MEMORY_MB = 50.0, 0.95, 1000.0


def main(words: list[str]) -> None:
    """Makes the data, builds, asks, prints the table and the result lines."""
    settings = {**DEFAULTS, **dict(word.split("=", 1) for word in words)}
    unknown = settings.keys() - DEFAULTS.keys()
    if unknown:
        raise SystemExit(f"unknown {', '.join(sorted(unknown))}; known: {', '.join(DEFAULTS)}")
    rows, dim, count, per_shard = (
        int(settings[name]) for name in ("rows", "dim", "queries", "rows_per_shard")
    )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(settings["folder"] or made).resolve() / f"run-{rows}-{dim}-{per_shard}"
        write_run(folder, rows, dim, per_shard)
        build(folder, settings)
        generator = np.random.default_rng(7)
        image = near(centres(dim), generator, count)
        text = near(centres(dim), generator, count, spread=2.5)
        truth = {"image": exact(folder, image), "text": exact(folder, text)}
        print_floor(truth["image"][1])
        ask(folder, {"image": image, "text": text}, {name: found[0] for name, found in truth.items()})
        if settings["peer_python"]:
            print_peer(folder, settings["peer_python"], image, truth["image"][0])


def build(folder: Path, settings: dict[str, str]) -> None:
    """Builds the index, once a folder, and prints what it cost."""
    if (folder / "index" / "whole" / "whole.stats.json").exists():
        print("the index is there already: its build is not measured")
    else:
        command = [sys.executable, "benchmarks/explorer_build.py", str(folder), "2", settings["budget_gb"],
                   settings["exact_rows"]]  # fmt: skip
        cost = run(command, folder / "build.log", threads=2, device="cpu")
        million = 1e6 / int(settings["rows"])
        print(
            f"build: {cost.cpu_s:.0f} CPU s, {cost.wall_s:.0f} s wall, {cost.peak_memory_mb:.0f} MB",
            flush=True,
        )
        print(f"result name=index_build_cpu_s_per_million ours={cost.cpu_s * million:.1f} unit=s")
        print(f"result name=index_build_wall_s_per_million ours={cost.wall_s * million:.1f} unit=s")
    record = json.loads((folder / "index" / "whole" / "whole.index.json").read_text())["modalities"]["image"]
    print(f"index: {record}", flush=True)


def exact(folder: Path, queries: np.ndarray) -> tuple[list[list[str]], list[float]]:
    """The uids of the ten nearest vectors to each query by comparing with all, and the time of each query's in ms."""
    import faiss

    clip = folder / "tags" / "clip"
    best = [np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), object)]
    spent = np.zeros(len(queries))
    faiss.omp_set_num_threads(1)
    for name in finished_shards(clip):
        values = np.load(clip / image_name(name, "b32")).astype(np.float32)
        uids = np.load(clip / f"{name}.uids.npy")
        flat = faiss.IndexFlatIP(values.shape[1])
        flat.add(values)
        scores, places = [], []
        for number, query in enumerate(queries):
            started = time.perf_counter()
            found = flat.search(query[None], 10)
            spent[number] += time.perf_counter() - started
            scores.append(found[0][0])
            places.append(found[1][0])
        named = np.array(
            [[f"{int(uids[p][0]):016x}{int(uids[p][1]):016x}" for p in row] for row in places], object
        )
        all_scores, all_uids = np.hstack([best[0], np.stack(scores)]), np.hstack([best[1], named])
        order = np.argsort(-all_scores, axis=1)[:, :10]
        best = [np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_uids, order, 1)]
    return best[1].tolist(), (1000 * spent).tolist()


def ask(folder: Path, queries: dict[str, np.ndarray], truth: dict[str, list[list[str]]]) -> None:
    """Asks a server, prints latency, recall and memory."""
    server = subprocess.Popen(
        [sys.executable, "-m", "data_pipeline.explorer", f"runs=[{folder}]", "port=0", "text_search=false",
         "limits.requests_per_s=100000", "limits.burst=1000000"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert server.stdout is not None
    try:
        address = re.search(r"127\.0\.0\.1:\d+", server.stdout.readline())
        assert address is not None
        connection = http.client.HTTPConnection(address[0], timeout=600)
        search(connection, queries["image"][0], [])  # maps are opened, threads are started
        for name, vectors in queries.items():
            before = cpu_ms(server.pid)
            plain = [search(connection, vector, []) for vector in vectors]
            report(f"{name}_search", [ms for ms, _ in plain], cpu_ms(server.pid) - before)
            hits = [
                len(set(found[:10]) & set(wanted))
                for (_, found), wanted in zip(plain, truth[name], strict=True)
            ]
            recall = sum(hits) / (10 * len(hits))
            print(f"result name={name}_recall_at_10 ours={recall:.4f} target={TARGET_RECALL}", flush=True)
            filters = [own_filter(number) for number in range(len(vectors))]
            for label in ("filtered", "filtered_again"):
                before = cpu_ms(server.pid)
                timed = [
                    search(connection, vector, asked) for vector, asked in zip(vectors, filters, strict=True)
                ]
                report(f"{name}_{label}", [ms for ms, _ in timed], cpu_ms(server.pid) - before)
        before = cpu_ms(server.pid)
        facets = [
            post(connection, "/api/facets", {"filters": own_filter(1000 + number)})[0] for number in range(10)
        ]
        report("facets", facets, cpu_ms(server.pid) - before, target=None)
        status = Path(f"/proc/{server.pid}/status").read_text()
        anonymous, resident = (
            int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 1000 for field in ("RssAnon", "VmRSS")
        )
        print(f"result name=server_anonymous_mb ours={anonymous:.0f} target={TARGET_MEMORY_MB:.0f} unit=MB")
        print(f"result name=server_resident_mb ours={resident:.0f} unit=MB", flush=True)
    finally:
        server.terminate()
        server.wait(60)


def own_filter(number: int) -> list[dict]:
    """A filter that no other query has: a third of the rows of a language, more or less."""
    language = ("en", "de", "fr")[number % 3]
    low = 0.2 + 0.0001 * number
    return [
        {"column": "language", "any_of": [language]},
        {"column": "clip_score", "min": low, "max": low + 0.06},
    ]


def search(
    connection: http.client.HTTPConnection, vector: np.ndarray, filters: list[dict]
) -> tuple[float, list[str]]:
    """The time of one search in ms, and the uids found."""
    asked = {
        "query": [{"embedding": [round(float(value), 6) for value in vector]}],
        "filters": filters,
        "limit": SHOWN,
    }
    ms, answer = post(connection, "/api/search", {**asked, "fold": False})
    return ms, [each["uid"] for each in answer["results"]]


def post(connection: http.client.HTTPConnection, path: str, value: dict) -> tuple[float, dict]:
    """The time of a request in ms, and its answer."""
    body = json.dumps(value)
    started = time.perf_counter()
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse().read()
    ms = 1000 * (time.perf_counter() - started)
    return ms, json.loads(answer)


def cpu_ms(pid: int) -> float:
    """Processor time that a process has used, which a busy machine does not stretch as it does the clock."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(name: str, times: list[float], used_ms: float, target: float | None = TARGET_MS) -> None:
    """Prints p50 and p95, and the server's processor time for each request."""
    p50, p95 = np.percentile(times, [50, 95])
    aim = "" if target is None else f" target={target:g}"
    print(f"result name={name}_p50_ms ours={p50:.1f} unit=ms")
    print(f"result name={name}_p95_ms ours={p95:.1f}{aim} unit=ms")
    print(f"result name={name}_cpu_ms ours={used_ms / len(times):.1f} unit=ms", flush=True)


def print_floor(times: list[float]) -> None:
    """The exact search's latency."""
    p50, p95 = np.percentile(times, [50, 95])
    print(f"result name=exact_faiss_p50_ms floor={p50:.1f} unit=ms")
    print(f"result name=exact_faiss_p95_ms floor={p95:.1f} unit=ms", flush=True)


def print_peer(folder: Path, python: str, queries: np.ndarray, truth: list[list[str]]) -> None:
    """clip-retrieval's back on the same index."""
    from data_pipeline.explorer.library import Library

    library = Library([str(folder)])
    record = library.runs[0].record["image"]
    with tempfile.TemporaryDirectory() as made:
        arrow, asked = Path(made) / "arrow", Path(made) / "queries.npy"
        arrow.mkdir()
        for part in library.runs[0].parts:
            (arrow / f"{part.name}.arrow").symlink_to(part.folder / f"{part.name}.rows.arrow")
        np.save(asked, queries)
        index = folder / "index" / "whole" / "whole.image.faiss"
        done = subprocess.run(
            [python, "benchmarks/clip_back_peer.py", str(index), str(arrow), str(asked), str(SHOWN)],
            cwd=ROOT, input=json.dumps({"lists": record["lists"]}), capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    if done.returncode != 0:
        print(f"the peer failed: {done.stderr[-2000:]}")
        return
    told = json.loads(done.stdout.splitlines()[-1])
    p50, p95 = np.percentile(told["ms"], [50, 95])
    hits = sum(
        len(set(library.take(np.array(rows[:10]), [])["uid"]) & set(wanted))
        for rows, wanted in zip(told["rows"], truth, strict=True)
    )
    print(f"result name=clip_back_search_p50_ms peer={p50:.1f} unit=ms")
    print(f"result name=clip_back_search_p95_ms peer={p95:.1f} unit=ms")
    print(f"result name=clip_back_recall_at_10 peer={hits / (10 * len(truth)):.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
