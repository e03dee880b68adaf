"""img2dataset on one list, in its own environment; for benchmarks/download.py.

    python img2dataset_peer.py FOLDER LIST.json SETTINGS.json

SETTINGS are keyword arguments of its `download`. Prints what came of the rows.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else every worker asks PyPI


def main(folder: Path, pairs: list[list[str]], settings: dict[str, object]) -> dict[str, object]:
    """Downloads the list."""
    import pandas as pd  # pyright: ignore[reportMissingImports]
    from img2dataset import download  # pyright: ignore[reportMissingImports]

    folder.mkdir(parents=True)
    listed = folder / "list.parquet"
    pd.DataFrame(pairs, columns=["url", "caption"]).to_parquet(listed)
    started = time.monotonic()
    download(
        url_list=str(listed), output_folder=str(folder / "out"), input_format="parquet", url_col="url",
        caption_col="caption", output_format="webdataset", **settings,
    )  # fmt: skip
    wall_s = time.monotonic() - started
    tables = [pd.read_parquet(path) for path in sorted((folder / "out").glob("*.parquet"))]
    table = pd.concat(tables)
    lost = table[table.status != "success"].status.value_counts().to_dict()
    return {
        "rows": len(table), "stored": int((table.status == "success").sum()),
        "lost": {str(name): int(number) for name, number in lost.items()}, "wall_s": round(wall_s, 2),
    }  # fmt: skip


if __name__ == "__main__":
    print(
        json.dumps(
            main(
                Path(sys.argv[1]),
                json.loads(Path(sys.argv[2]).read_text()),
                json.loads(Path(sys.argv[3]).read_text()),
            )
        )
    )
