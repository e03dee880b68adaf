"""Exports: the released column names and types, a row for each pair, embeddings in the order of the rows."""

import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_stages import Inline

from crawl2clip.errors import ConfigError, DataError
from crawl2clip.schema import DOWNLOAD_SCHEMA, UID_DTYPE, uid_of, uids_to_array
from data_pipeline.embeddings import write_uids
from data_pipeline.export import ExportForm, export, main, openai_models

ROWS = [
    {
        "uid": uid_of(f"http://a.b/{n}.jpg", f"text {n}"), "url": f"http://a.b/{n}.jpg", "text": f"text {n}",
        "text_source": "alt", "status": "success" if n != 3 else "timeout", "original_width": 100 + n,
        "original_height": 50, "md5": f"{n:032x}", "sha256": f"{n:064x}",
        "license": "https://creativecommons.org/licenses/by/4.0/" if n == 1 else None,
    }
    for n in range(8)
]  # fmt: skip
MODELS = [
    {"name": "mine", "model": "ViT-L-14", "pretrained": "openai", "text_model": None},
    {"name": "mclip", "model": "ViT-B-32", "pretrained": "openai", "text_model": "multilingual"},
]


def finish(folder, names, **manifest):
    for name in names:
        (folder / f"{name}.stats.json").write_text("{}")
    (folder / "manifest.json").write_text(
        json.dumps({"shards": [{"name": name} for name in names], **manifest})
    )


@pytest.fixture
def run_dir(tmp_path):
    """A run of two raw shards, tagged, with pairs 0 to 5 but the failed one kept."""
    root, names = tmp_path / "run", ["00000000", "00000001"]
    for folder in ("raw", "tags/clip", "tags/language", "tags/unsafe", "subset"):
        (root / folder).mkdir(parents=True)
    for name, part in zip(names, (ROWS[:5], ROWS[5:]), strict=True):
        padded = [{**dict.fromkeys(DOWNLOAD_SCHEMA.names), **row} for row in part]
        pq.write_table(pa.Table.from_pylist(padded, DOWNLOAD_SCHEMA), root / f"raw/{name}.parquet")
        uids = [row["uid"] for row in part if row["status"] == "success"]
        numbers = [ROWS.index(row) for row in part if row["status"] == "success"]
        scores = pl.Series([n / 10 for n in numbers], dtype=pl.Float32)
        clip = pl.DataFrame(
            {"uid": uids, "clip_score": scores, "clip_score_mine": scores, "nsfw": "UNLIKELY"}
        )
        clip.write_parquet(root / f"tags/clip/{name}.parquet")
        pl.DataFrame({"uid": uids[::-1], "language": "en"}).write_parquet(
            root / f"tags/language/{name}.parquet"
        )
        pl.DataFrame({"uid": uids, "punsafe": scores}).write_parquet(root / f"tags/unsafe/{name}.parquet")
        write_uids(root / f"tags/clip/{name}.uids.npy", uids[::-1])
        for kind in ("image", "text"):
            values = np.array([[n, n + 0.5] for n in numbers[::-1]], np.float16)
            np.save(root / f"tags/clip/{name}.{kind}.mine.npy", values)
    finish(root / "raw", names)
    for tagger in ("language", "unsafe"):
        finish(root / "tags" / tagger, names)
    finish(root / "tags" / "clip", names, settings={"models": MODELS})
    np.save(
        root / "subset/subset.uids.npy",
        uids_to_array([row["uid"] for row in ROWS[:6] if row["status"] == "success"]),
    )
    return root


def exported(form, run_dir, tmp_path):
    rows = export(ExportForm(form), run_dir, tmp_path / form, Inline())
    return rows, pl.read_parquet(tmp_path / form / "metadata" / "*.parquet")


def test_laion400m(run_dir, tmp_path):
    rows, table = exported("laion400m", run_dir, tmp_path)
    assert rows == len(table) == 5
    assert dict(table.schema) == {
        "SAMPLE_ID": pl.Int64, "URL": pl.String, "TEXT": pl.String, "HEIGHT": pl.Int32, "WIDTH": pl.Int32,
        "LICENSE": pl.String, "NSFW": pl.String, "similarity": pl.Float64,
    }  # fmt: skip
    second = table.row(1, named=True)
    assert (second["URL"], second["TEXT"], second["WIDTH"], second["HEIGHT"]) == (
        "http://a.b/1.jpg",
        "text 1",
        101,
        50,
    )
    assert second["LICENSE"].endswith("/by/4.0/")
    assert table["LICENSE"][0] == "?"
    assert second["similarity"] == pytest.approx(0.1)
    assert second["SAMPLE_ID"] % 2**64 == int(ROWS[1]["uid"][:16], 16)


def test_laion5b(run_dir, tmp_path):
    rows, table = exported("laion5b", run_dir, tmp_path)
    assert rows == 5
    assert table.columns == [
        "URL",
        "TEXT",
        "WIDTH",
        "HEIGHT",
        "LANGUAGE",
        "similarity",
        "hash",
        "punsafe",
        "md5",
    ]
    assert table["LANGUAGE"].to_list() == ["en"] * 5
    import mmh3

    assert table["hash"].to_list() == [
        mmh3.hash64(u + t)[0] for u, t in zip(table["URL"], table["TEXT"], strict=True)
    ]
    assert mmh3.hash64("foo")[0] == -2129773440516405919  # the package's documented example, signed


def test_datacomp(run_dir, tmp_path):
    rows, table = exported("datacomp", run_dir, tmp_path)
    assert rows == 7  # every stored pair
    assert table.columns == [
        "uid", "url", "text", "original_width", "original_height", "clip_b32_similarity_score",
        "clip_l14_similarity_score", "face_bboxes", "sha256",
    ]  # fmt: skip
    assert openai_models(run_dir) == {"l14": "mine"}  # the other has a text tower of its own
    assert table["clip_b32_similarity_score"].null_count() == 7
    assert table["clip_l14_similarity_score"][2] == pytest.approx(0.2)
    subset = np.load(tmp_path / "datacomp" / "subset.npy")
    assert subset.dtype == UID_DTYPE
    assert len(subset) == 5
    for name, numbers in (("00000000", [0, 1, 2, 4]), ("00000001", [5, 6, 7])):
        arrays = np.load(tmp_path / "datacomp" / "metadata" / f"{name}.npz")
        assert sorted(arrays) == ["l14_img", "l14_txt"]
        assert arrays["l14_img"][:, 0].tolist() == arrays["l14_txt"][:, 0].tolist() == numbers
        assert arrays["l14_img"].dtype == np.float16


def test_a_datacomp_subset_there_and_back(run_dir, tmp_path):
    """A subset made from exported metadata, as DataComp's users make theirs, selects the same pairs in reshard."""
    _, table = exported("datacomp", run_dir, tmp_path)
    chosen = table.filter(pl.col("clip_l14_similarity_score") >= 0.2)["uid"]
    theirs = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in chosen], np.dtype("u8,u8"))
    theirs.sort()
    np.save(tmp_path / "theirs.npy", theirs)
    from data_pipeline.subset import is_in_subset, open_uids, uid_halves

    uids = pl.Series([row["uid"] for row in ROWS])
    inside = is_in_subset(uid_halves(uids), open_uids(tmp_path / "theirs.npy"))
    assert [n for n, found in enumerate(inside) if found] == [2, 4, 5, 6, 7]


def test_what_cannot_be_exported_is_said(run_dir, tmp_path, capsys):
    with pytest.raises(DataError, match=r"is not a run: it has no raw/manifest\.json"):
        export(ExportForm.datacomp, tmp_path, tmp_path / "x", Inline())
    exported("laion5b", run_dir, tmp_path)
    with pytest.raises(ConfigError, match="was made by another run"):
        export(ExportForm.laion400m, run_dir, tmp_path / "laion5b", Inline())
    (run_dir / "subset" / "subset.uids.npy").unlink()
    with pytest.raises(DataError, match="run stage=select: laion5b has kept pairs only"):
        export(ExportForm.laion5b, run_dir, tmp_path / "y", Inline())
    assert main(["datacomp", str(tmp_path / "nowhere"), str(tmp_path / "z")]) == 2
    assert "error: " in capsys.readouterr().err


def test_embeddings_that_lack_a_pair_are_named(run_dir, tmp_path):
    np.save(
        run_dir / "tags/clip/00000000.uids.npy",
        np.load(run_dir / "tags/clip/00000000.uids.npy")[[0, 0, 1, 2]],
    )
    with pytest.raises(DataError, match=r"00000000\.uids\.npy lacks 1 of the pairs of raw shard 00000000"):
        exported("datacomp", run_dir, tmp_path)
