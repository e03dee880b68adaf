"""clip-retrieval's back on given queries: INDEX ARROW_FOLDER QUERIES.npy COUNT; times in ms and row numbers as JSON.

Run by benchmarks/explorer.py with the Python of an environment that has clip-retrieval. Its own KnnService.query and
Arrow metadata, without HTTP, model and safety model, on the very index that ours has built; it has no filters.
"""

import json
import sys
import time
from types import SimpleNamespace

import numpy as np


def main(index_path: str, arrow_folder: str, queries_path: str, count: str) -> None:
    """Runs the queries."""
    import clip_retrieval.clip_back  # noqa: F401 # the package's attribute of that name is a function
    import faiss

    back = sys.modules["clip_retrieval.clip_back"]
    index = faiss.read_index(index_path, faiss.IO_FLAG_ONDISK_SAME_DIR)
    settings = json.loads(sys.stdin.read())
    if settings["lists"]:
        index.nprobe = settings["lists"]
        index.make_direct_map()  # it reconstructs every result
    resource = SimpleNamespace(
        image_index=index, text_index=None, metadata_is_ordered_by_ivf=False, safety_model=None,
        violence_detector=None, metadata_provider=back.ArrowMetadataProvider(arrow_folder),
        columns_to_return=["url", "text"], aesthetic_embeddings=None,
    )  # fmt: skip
    service = back.KnnService(clip_resources={"x": resource})
    times, found = [], []
    for query in np.load(queries_path):
        started = time.perf_counter()
        results = service.query(
            embedding_input=query.tolist(), modality="image", num_images=int(count), num_result_ids=int(count),
            indice_name="x", deduplicate=False,
        )  # fmt: skip
        times.append(1000 * (time.perf_counter() - started))
        found.append([int(each["id"]) for each in results])
    print(json.dumps({"ms": times, "rows": found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
