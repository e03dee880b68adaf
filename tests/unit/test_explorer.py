"""The explorer's service on a small run: every route, the policy on all of them, and hostile input."""

import io
import json
import re
import struct
import zlib

import numpy as np
import polars as pl
import pytest
from explorer_run import DIM, build_index, jpeg, write_run
from PIL import Image
from toy_stages import Inline

from crawl2clip.config import CONFIG_DIR
from crawl2clip.errors import ConfigError
from crawl2clip.schema import array_to_uids
from data_pipeline.metadata_columns import NamedColumns
from data_pipeline.metadata_lists import read_list
from data_pipeline.subset import open_uids
from data_pipeline.takedown import make_stages, take_down

pytest.importorskip("faiss", reason="faiss is not installed: pip install -e '.[data,explorer]'")
pytest.importorskip("fastapi", reason="fastapi is not installed: pip install -e '.[data,explorer]'")

from omegaconf import OmegaConf
from starlette.testclient import TestClient

from data_pipeline.explorer import takedown
from data_pipeline.explorer.config import ExplorerConfig, Showing
from data_pipeline.explorer.engine import Explorer
from data_pipeline.explorer.library import Library
from data_pipeline.explorer.service import make_service
from data_pipeline.explorer.towers import check_same


class FakeTowers:
    """A text is the embedding whose number it is; an upload is embedding 3."""

    names = ("tiny",)

    def __init__(self, made):
        self._made = made

    def encode_text(self, text, tower=None):
        number = int(text) if text.isdigit() else len(text) % 100 + 10
        return self._made.images[number].astype(np.float32)

    def encode_image(self, image):
        return self._made.images[3].astype(np.float32)


def config(*runs, **changes):
    values = OmegaConf.load(CONFIG_DIR / "explorer.yaml")
    for key in ("defaults", "hydra"):
        values.pop(key)
    values.runs = [str(run) for run in runs]
    values.text_search = False
    values.limits.requests_per_s, values.limits.burst = 1e6, 1_000_000
    for key, value in changes.items():
        OmegaConf.update(values, key.replace("__", "."), value)
    made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ExplorerConfig), values))
    assert isinstance(made, ExplorerConfig)
    return made


def client(made, *others, **changes):
    asked = config(made.folder, *(other.folder for other in others), **changes)
    explorer = Explorer(asked)
    explorer.towers = FakeTowers(made)
    return TestClient(
        make_service(asked, explorer), base_url="http://127.0.0.1:8090", raise_server_exceptions=False
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    made = write_run(tmp_path_factory.mktemp("explorer") / "run")
    build_index(made.folder)
    return made


@pytest.fixture(scope="module")
def api(made):
    return client(made)


def search(api, status=200, **asked):
    answer = api.post("/api/search", json={"fold": False, **asked})
    assert answer.status_code == status, answer.text
    return answer.json()


def results(api, **asked):
    return [result["uid"] for result in search(api, **asked)["results"]]


def as_list(made, number):
    return [float(value) for value in made.images[number]]


def test_info_describes_the_index(api):
    info = api.get("/api/info").json()
    assert info["rows"] == 240
    assert info["modalities"] == ["image", "text"]
    assert info["recipes"] == ["half"]
    assert info["columns"]["language"] == "categories"
    assert info["columns"]["punsafe"] == "numbers"
    assert info["safety"] == {"unsafe": "blur", "untagged": "show", "max_punsafe": 0.5}
    assert info["runs"][0]["index"]["image"]["recall_at_10"] == 1.0


def test_a_text_a_pair_and_an_embedding_find_the_same(api, made):
    uid = made.rows["uid"][17]
    for term in ({"text": "17"}, {"uid": uid}, {"embedding": as_list(made, 17)}):
        found = search(api, query=[term], limit=5)["results"]
        assert found[0]["uid"] == uid
        assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
        assert [each["similarity"] for each in found] == sorted(
            (each["similarity"] for each in found), reverse=True
        )


def test_positive_and_negative_examples_add_up(api, made):
    query = [{"text": "17"}, {"text": "30", "weight": -0.5}]
    vector = made.images[17].astype(np.float32) - 0.5 * made.images[30].astype(np.float32)
    expected = np.nan_to_num(made.images.astype(np.float32), nan=-1) @ (vector / np.linalg.norm(vector))
    expected[5] = -1
    assert results(api, query=query, limit=1) == [made.rows["uid"][int(expected.argmax())]]


def test_pages_go_on_to_the_end_without_a_gap_or_a_repeat(api, made):
    for asked in ({"query": [{"text": "17"}]}, {}):
        found, cursor = [], 0
        while cursor is not None:
            page = search(api, cursor=cursor, limit=37, **asked)
            found += [each["uid"] for each in page["results"]]
            cursor = page["next"]
        assert len(found) == len(set(found)) == (239 if asked else 240)


def test_the_range_of_similarity_is_kept_to(api):
    found = search(api, query=[{"text": "17"}], min_similarity=0.1, max_similarity=0.5, limit=200)["results"]
    assert found
    assert all(0.1 <= each["similarity"] <= 0.5 for each in found)


def test_filters_keep_what_they_say(api, made):
    rows = made.rows
    en = set(rows.filter(pl.col("language") == "en")["uid"])
    for filters, expected in (
        ([{"column": "language", "any_of": ["en"]}], en),
        ([{"column": "language", "any_of": ["en", None]}], en | set(rows.filter(pl.col("language").is_null())["uid"])),
        ([{"column": "language", "none_of": ["en"]}], set(rows["uid"]) - en),
        ([{"column": "clip_score", "min": 0.25, "max": 0.5}],
         set(rows.filter(pl.col("clip_score").is_between(0.25, 0.5))["uid"])),
        ([{"column": "language", "any_of": ["en"]}, {"column": "domain", "any_of": ["a.example"]}],
         set(rows.filter((pl.col("language") == "en") & pl.col("url").str.contains("a.example"))["uid"])),
        ([{"column": "text", "contains": "CAPTION 17 "}], {rows["uid"][17]}),
        ([{"column": "decision_half", "any_of": ["too_low"]}], set(rows.filter(~pl.col("kept"))["uid"])),
        ([{"column": "language", "any_of": ["xx"]}], set()),
    ):  # fmt: skip
        found = search(api, filters=filters, limit=200)
        cursor, all_found = found["next"], {each["uid"] for each in found["results"]}
        if cursor is not None:
            all_found |= set(results(api, filters=filters, limit=200, cursor=cursor))
        assert all_found == expected
        assert found["matching"] == len(expected)
        ranked = set(results(api, query=[{"text": "17"}], filters=filters, limit=200))
        assert ranked <= expected


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"filters": [{"column": "langage", "any_of": ["en"]}]}, "did you mean 'language'"),
        ({"filters": [{"column": "language"}]}, "has no condition; give one of any_of"),
        ({"filters": [{"column": "language", "min": 1}]}, "has categories, not a range; filter it with any_of"),
        ({"filters": [{"column": "clip_score", "any_of": ["x"]}]}, "has numbers, not any_of; filter it with min"),
        ({"filters": [{"column": "text", "min": 1}]}, "text takes `contains` alone"),
        ({"query": [{"uid": "0" * 32}]}, "which is not here; give the uid of a result"),
        ({"query": [{"embedding": [1.0, 2.0]}]}, "has 2 numbers; those of this index have 32"),
        ({"query": [{"embedding": [0.0] * DIM}]}, "all zero or too large"),
        ({"query": [{"text": "17"}, {"text": "17", "weight": -1}]}, "cancel each other out"),
        ({"query": [{"text": "a", "uid": "0" * 32}]}, "give exactly one"),
        ({"query": [{"text": "a", "weight": 99}]}, "less than or equal to 10"),
        ({"quarry": []}, "Extra inputs are not permitted"),
        ({"limit": 100_000}, "less than or equal to 200"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_is_told_why(api, asked, words):
    assert words in search(api, 422, **asked)["error"]


@pytest.mark.parametrize("size", [1e-30, 1e20])
def test_the_length_of_an_embedding_does_not_matter(api, made, size):
    query = [{"embedding": [value * size for value in as_list(made, 17)]}]
    assert results(api, query=query, limit=1) == [made.rows["uid"][17]]


@pytest.mark.parametrize("values", [["x"], [None], [[1.0]], {"a": 1}, "1, 2", [], [True, 1e999]])
def test_an_embedding_is_a_list_of_numbers(api, values):
    answer = api.post(
        "/api/search", content=json.dumps({"query": [{"embedding": values}]}),
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 422
    assert "embedding" in answer.json()["error"]


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"query":' * 30_000, b"\xff\xfe", b"", b"null", b'{"limit": ' + b"9" * 5000]
)
def test_a_body_that_is_no_request_is_told_as_an_error(api, body):
    answer = api.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]
    for method, path, status in (("GET", "/nothing", 404), ("DELETE", "/api/info", 405)):
        answer = api.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def test_a_cursor_past_the_end_ends(api):
    for asked in ({}, {"query": [{"text": "17"}]}):
        assert (search(api, cursor=10**30, **asked)["results"], search(api, cursor=10**30)["next"]) == (
            [],
            None,
        )


def test_a_table_that_is_gone_or_damaged_is_named(tmp_path):
    made = write_run(tmp_path / "run", rows=30, shards=1)
    build_index(made.folder)
    api, uid = client(made), made.rows["uid"][3]
    for path in ("tags/language/00000000.parquet", "raw/00000000.parquet"):
        (made.folder / path).write_bytes(b"PAR1 and no more")
        answer = api.get(f"/api/samples/{uid}")
        assert answer.status_code == 422
        assert f"{path} cannot be read" in answer.json()["error"]
    (made.folder / "raw/00000000.parquet").unlink()
    assert "raw/00000000.parquet cannot be read" in api.get(f"/api/samples/{uid}").json()["error"]


def test_what_is_not_finite_is_refused(api):
    body = '{"query": [{"embedding": [' + ", ".join(["1e39"] * DIM) + "]}]}"
    answer = api.post("/api/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    for value in ("NaN", "Infinity", "1e999"):
        body = f'{{"query": [{{"embedding": [{value}]}}]}}'
        answer = api.post("/api/search", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE rows; --", '" OR 1=1', "<script>x</script>", "../../etc/passwd", "\x00\x01", "%s%n{0}", "💥" * 50],
)  # fmt: skip
def test_injected_text_is_only_text(api, text):
    assert search(api, query=[{"text": text}], limit=3)["results"]
    assert search(api, filters=[{"column": "text", "contains": text}])["results"] == []
    assert search(api, filters=[{"column": "language", "any_of": [text]}])["results"] == []
    search(api, 422, filters=[{"column": text, "any_of": ["x"]}])


@pytest.mark.parametrize(
    "uid", ["../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "0" * 31 + "G", "A" * 32, "0" * 33, "%00"]
)
def test_a_uid_is_a_uid_or_nothing(api, uid):
    for route in ("samples", "images"):
        assert api.get(f"/api/{route}/{uid}").status_code in (404, 422)
    assert "0" * 32 in api.get(f"/api/samples/{'0' * 32}").json()["error"]
    for path in ("/../config.py", "/static/style.css", "/..%2f__main__.py", "/explorer.yaml"):
        assert api.get(path).status_code == 404


def test_near_duplicates_and_equal_addresses_fold_into_one(tmp_path):
    images = np.eye(DIM, dtype=np.float16).repeat(4, axis=0)[:60].copy()
    images[1, 31] = 0.1  # nearly the first
    made = write_run(tmp_path / "run", rows=60, images=images)
    build_index(made.folder)
    found = search(client(made), query=[{"uid": made.rows["uid"][0]}], fold=True, limit=60)["results"]
    assert len(found) == 15
    assert sorted(len(each["folded"]) for each in found) == [3] * 15
    everything = {uid for each in found for uid in (each["uid"], *each["folded"])}
    assert everything == set(made.rows["uid"])


def test_facets_count_what_the_other_filters_leave(api, made):
    filters = [{"column": "language", "any_of": ["en"]}]
    found = api.post("/api/facets", json={"filters": filters}).json()
    by_column = {facet["column"]: facet for facet in found["facets"]}
    assert found["rows"] == 60
    languages = {each["value"]: each["count"] for each in by_column["language"]["values"]}
    assert languages == {"en": 60, "de": 60, "ja": 60}
    assert by_column["language"]["missing"] == 60
    domains = {each["value"]: each["count"] for each in by_column["domain"]["values"]}
    en = made.rows.filter(pl.col("language") == "en")
    assert domains == {
        f"{x}.example": len(en.filter(pl.col("url").str.contains(f"{x}.example"))) for x in "abc"
    }
    assert sum(by_column["clip_score"]["counts"]) == 60
    assert sum(by_column["punsafe"]["counts"]) == 60
    verdicts = {each["value"]: each["count"] for each in by_column["decision_half"]["values"]}
    assert verdicts == {"kept": 60}  # every fourth row is English, and even
    assert "clip_error" not in by_column  # no value, no facet


def test_a_sample_tells_where_it_came_from_and_why(api, made):
    detail = api.get(f"/api/samples/{made.rows['uid'][101]}").json()
    assert detail["provenance"]["crawl_file"] == "crawl/x.warc.gz"
    assert detail["provenance"]["offset"] == 123
    assert detail["tags"]["language"]["language"] == "de"
    verdict = detail["decisions"][0]
    assert (verdict["recipe"], verdict["kept"], verdict["reason"]) == ("half", False, "too_low")
    rule = verdict["rules"][0]
    assert (rule["outcome"], rule["condition"]) == ("failed", "clip_score >= 0.5")
    assert rule["values"]["clip_score"] == pytest.approx(101 / 240)
    funnel = api.get("/api/funnel").json()
    assert funnel[0]["recipes"][0]["rows_out"] == 120


def test_pictures_come_in_few_sizes_and_small(api, made):
    answer = api.get(f"/api/images/{made.rows['uid'][0]}?size=128")
    assert answer.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(answer.content)).size == (48, 40)
    assert api.get(f"/api/images/{made.rows['uid'][0]}?size=9999").status_code == 422


def test_the_right_picture_or_none(made, tmp_path):
    other = write_run(tmp_path / "run", rows=30, shards=1)
    build_index(other.folder)
    api = client(other)
    uid = other.rows["uid"][3]
    shown = Image.open(io.BytesIO(api.get(f"/api/images/{uid}").content)).convert("RGB").getpixel((5, 5))
    assert np.allclose(shown, (int(uid[:2], 16), 3, 77), atol=6)
    tar = other.folder / "raw" / "00000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[512 * 10 :])  # as if another writer had replaced it
    assert api.get(f"/api/images/{uid}").status_code == 404


def unsafe_uid(made):
    return made.rows["uid"][15]  # punsafe 0.5


def test_unsafe_images_are_blurred_whatever_is_asked(api, made):
    uid = unsafe_uid(made)
    row = next(n for n, each in enumerate(made.rows["uid"]) if each == uid)
    for asked in ({"query": [{"text": str(row)}]}, {"query": [{"text": str(row)}], "limit": 1}):
        hit = next(each for each in search(api, **asked)["results"] if each["uid"] == uid)
        assert hit["showing"] == "blur"
        assert hit["url"] is None
    detail = api.get(f"/api/samples/{uid}").json()
    assert detail["url"] is None
    assert detail["provenance"]["page_url"] is None
    assert "sha256" not in detail["download"]
    assert all(each["url"] is None for each in detail["near_duplicates"] if each["showing"] == "blur")
    exported = api.post("/api/export", json={"format": "jsonl"})
    assert uid not in exported.text
    assert int(exported.headers["x-rows"]) == 120
    for extra in ({"safety": "show"}, {"unsafe": "show"}, {"blur": False}):
        search(api, 422, **extra)
    plain = api.get(f"/api/images/{uid}?size=256&safe=false&blur=0")
    assert plain.status_code == 200  # unknown words in an address change nothing: still blurred


def test_a_blurred_picture_shows_no_detail(tmp_path):
    made = write_run(tmp_path / "run", rows=30, shards=1)
    build_index(made.folder)
    from data_pipeline.explorer.images import picture

    checks = Image.fromarray((np.indices((256, 256)).sum(0) // 8 % 2 * 255).astype(np.uint8)).convert("RGB")
    sharp, blurred = (
        np.asarray(Image.open(io.BytesIO(picture(checks, 256, blurred=flag))).convert("L"))
        for flag in (False, True)
    )
    assert sharp.std() > 100
    assert blurred.std() < 10


def test_withheld_images_are_nowhere(made):
    api = client(made, safety__unsafe=Showing.withhold)
    unsafe = set(made.rows.filter(pl.col("punsafe") >= 0.5)["uid"])
    found, cursor = set(), 0
    while cursor is not None:
        page = search(api, query=[{"text": "17"}], cursor=cursor, limit=200)
        found |= {each["uid"] for each in page["results"]}
        cursor = page["next"]
    assert len(found) > 100
    assert not found & unsafe
    assert search(api)["matching"] == 120
    assert api.post("/api/facets", json={}).json()["rows"] == 120
    uid = unsafe_uid(made)
    assert api.get(f"/api/samples/{uid}").status_code == 404
    assert api.get(f"/api/images/{uid}").status_code == 404


def test_untagged_images_follow_their_own_policy(tmp_path):
    made = write_run(tmp_path / "run", rows=30, shards=1, punsafe=False)
    build_index(made.folder)
    assert {each["showing"] for each in search(client(made))["results"]} == {"show"}
    assert {each["showing"] for each in search(client(made, safety__untagged=Showing.blur))["results"]} == {
        "blur"
    }
    away = client(made, host="192.0.2.7")  # not this machine only: what nobody has judged is blurred
    assert {each["showing"] for each in search(away)["results"]} == {"blur"}


def test_violence_is_hidden_by_prompts(made):
    api = client(made, safety__violent_prompts=["17"], safety__harmless_prompts=["30"])
    shown = results(api, query=[{"text": "17"}], hide_violence=True, limit=200)
    assert made.rows["uid"][17] not in shown
    assert made.rows["uid"][30] in shown


def test_takedown_holds_at_once_and_everywhere(tmp_path):
    made = write_run(tmp_path / "run", rows=60, shards=1)
    build_index(made.folder)
    api = client(made)
    uid = made.rows["uid"][2]
    assert results(api, query=[{"text": "2"}], limit=1) == [uid]
    assert takedown.main([str(made.folder), "--uid", uid]) == 0
    assert uid not in results(api, query=[{"text": "2"}], limit=200)
    assert uid not in results(api, limit=200)
    assert search(api)["matching"] == 59
    assert api.get(f"/api/samples/{uid}").status_code == 404
    assert api.get(f"/api/images/{uid}").status_code == 404
    assert uid not in api.post("/api/export", json={"format": "jsonl"}).text
    assert "not here" in search(api, 422, query=[{"uid": uid}])["error"]
    assert takedown.main([str(made.folder), "--domain", "a.example", "--url", made.rows["url"][1]]) == 0
    left = set(made.rows["uid"][3:].filter(~made.rows["url"][3:].str.contains("a.example")))
    assert set(results(api, limit=200)) == left
    assert len(open_uids(made.folder / takedown.FILE)) == 60 - len(left)


def test_what_is_taken_out_of_the_shards_is_hidden_by_an_open_explorer(tmp_path):
    made = write_run(tmp_path / "run", rows=60, shards=1)
    build_index(made.folder)
    api = client(made)
    gone, kept = made.rows["uid"][2], made.rows["uid"][3]
    assert gone in results(api, query=[{"text": "2"}], limit=200)
    (tmp_path / "list.txt").write_text(f"uid:{gone}\n")
    stages = make_stages(made.folder, [str(tmp_path / "list.txt")], "one", 0)
    assert take_down(stages, Inline()) == {"uid": 1}
    assert gone not in results(api, query=[{"text": "2"}], limit=200)
    assert api.get(f"/api/samples/{gone}").status_code == 404
    assert not (made.folder / "index").exists()
    build_index(made.folder)
    again = client(made)
    assert search(again)["matching"] == 59
    assert results(again, query=[{"uid": kept}], limit=1) == [kept]


def test_takedown_says_what_it_lacks(tmp_path, capsys):
    made = write_run(tmp_path / "run", rows=10, shards=1)
    build_index(made.folder)
    assert takedown.main([str(made.folder), "--domain", "nowhere.example"]) == 2
    assert "no pair was named, or none has such an address" in capsys.readouterr().err
    assert takedown.main([str(made.folder), "--uid", "xyz"]) == 2
    assert "'xyz' is not a uid" in capsys.readouterr().err


def test_two_runs_are_searched_together_and_one_is_added_without_a_rebuild(made, tmp_path):
    other = write_run(tmp_path / "run", rows=50, shards=1, seed=3, name="second")
    build_index(other.folder)
    before = {path: path.stat().st_mtime_ns for path in (made.folder / "index").rglob("*") if path.is_file()}
    api = client(made, other)
    assert api.get("/api/info").json()["rows"] == 290
    for run, number in ((made, 20), (other, 20)):
        query = [{"embedding": as_list(run, number)}]
        assert results(api, query=query, limit=1) == [run.rows["uid"][number]]
    assert before == {
        path: path.stat().st_mtime_ns for path in (made.folder / "index").rglob("*") if path.is_file()
    }


def test_models_that_differ_are_refused_with_both_names(made, tmp_path):
    model = {
        "name": "tiny", "model": "ViT-L-14", "pretrained": "openai", "text_model": None, "weights_sha256": None,
        "languages": [],
    }  # fmt: skip
    other = write_run(tmp_path / "run", rows=20, shards=1, model=model)
    build_index(other.folder)
    with pytest.raises(ConfigError, match=r"ViT-B-32 / openai and ViT-L-14 / openai; .* cannot be compared"):
        Library([str(made.folder), str(other.folder)])
    indexed = {"model": None, "pretrained": "/a/export", "weights_sha256": "a" * 64}
    check_same(indexed, {"model": None, "pretrained": "/moved/export", "weights_sha256": "a" * 64})
    with pytest.raises(
        ConfigError, match=r"made with .* /a/export \(weights aaaaaaaaaaaa\), .* ViT-B-32 / openai"
    ):
        check_same(indexed, {"model": "ViT-B-32", "pretrained": "openai", "weights_sha256": None})


def test_exports_are_read_by_reshard_and_download(api, made, tmp_path):
    filters = [{"column": "language", "any_of": ["en"]}]
    expected = set(made.rows.filter((pl.col("language") == "en") & (pl.col("punsafe") < 0.5))["uid"])
    path = tmp_path / "x.npy"
    path.write_bytes(api.post("/api/export", json={"filters": filters, "format": "npy"}).content)
    assert set(array_to_uids(np.asarray(open_uids(path)))) == expected
    for format, read in (("parquet", pl.read_parquet), ("csv", pl.read_csv), ("jsonl", pl.read_ndjson)):
        answer = api.post("/api/export", json={"filters": filters, "format": format})
        path = tmp_path / f"x.{format}"
        path.write_bytes(answer.content)
        assert set(read(path)["uid"]) == expected
        assert list(_metadata_pairs(path)) == list(zip(read(path)["url"], read(path)["text"], strict=True))
    searched = api.post(
        "/api/export", json={"query": [{"text": "10"}], "fold": False, "rows": 5, "format": "jsonl"}
    )
    rows = [json.loads(line) for line in searched.text.splitlines()]
    assert rows[0]["uid"] == made.rows["uid"][10]
    assert rows[0]["similarity"] > 0.999


def _metadata_pairs(path):
    """The pairs that the pipeline's own reader of lists finds in a file."""

    def lose(fault):
        raise AssertionError(fault)

    for row in read_list(path, path.name, NamedColumns(None, None), 1 << 20, lose):
        yield row[:2]


def png_bomb(side):
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


def test_an_upload_is_embedded(api, made):
    answer = api.post("/api/embeddings/image", content=jpeg((9, 9, 9)))
    assert results(api, query=[{"embedding": answer.json()["embedding"]}], limit=1) == [made.rows["uid"][3]]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 30, "has 16777216 x 16777216 pixels"),
        (b"BM" + b"\xff" * 60, "the bmp header says -1 x 1 pixels"),
        (png_bomb(60_000), "has 60000 x 60000 pixels; this server takes 40,000,000 at most"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "the upload is svg, not an image"),
        (b"", "of an unknown type"),
        (b"GIF89a", "does not decode"),
        (jpeg((1, 2, 3))[:200], "does not decode"),
        (b"http://169.254.169.254/latest/meta-data", "of an unknown type"),
    ],
)
def test_uploads_that_are_no_image_are_refused(api, body, words):
    answer = api.post("/api/embeddings/image", content=body)
    assert answer.status_code == 422
    assert words in answer.json()["error"]


def test_large_bodies_are_refused_before_they_are_read(api):
    sent = 0

    def stream():
        nonlocal sent
        for _ in range(100):
            sent += 1_000_000
            yield bytes(1_000_000)

    answer = api.post("/api/embeddings/image", content=b"x", headers={"content-length": "100000000"})
    assert answer.status_code == 413
    answer = api.post("/api/embeddings/image", content=stream())
    assert answer.status_code == 413
    assert "more than 10,000,000 bytes" in answer.json()["error"]
    answer = api.post("/api/search", content=b"{" + b" " * 400_000 + b"}")
    assert answer.status_code == 413


def test_rates_are_limited_by_address(made):
    api = client(made, limits__requests_per_s=0.001, limits__burst=3)
    answers = [api.get("/api/info") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 3
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 1000


def test_other_sites_get_nothing(api):
    assert api.get("/api/info", headers={"host": "evil.example"}).status_code == 421
    assert api.get("/api/info", headers={"host": "localhost:1"}).status_code == 200
    refused = api.post("/api/search", json={}, headers={"origin": "http://evil.example"})
    assert refused.status_code == 403
    for method in ("OPTIONS", "GET"):
        answer = api.request(method, "/api/info", headers={"access-control-request-method": "GET"})
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert "default-src 'none'" in api.get("/").headers["content-security-policy"]
    assert api.get("/api/info").headers["x-content-type-options"] == "nosniff"


def test_the_page_and_its_files_name_no_other_host(api):
    page = api.get("/").text
    assert '<script type="module" src="app.js">' in page
    from data_pipeline.explorer.service import STATIC

    for path in STATIC.iterdir():
        text = api.get(f"/{path.name}").text
        assert text == path.read_text(encoding="utf-8")
        # The two of the W3C are names of namespaces, which no browser fetches.
        assert not re.findall(r"""https?://(?!www\.w3\.org/(?:2000/svg|1999/xhtml)\b)\w|["'(]//""", text), (
            path.name
        )


def luminance(colour):
    """Of a colour #rrggbb, as the W3C's accessibility guidelines (WCAG 2.2) define it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_text_has_the_contrast_that_the_guidelines_ask_for(api):
    schemes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r":root \{(.*?)\}", api.get("/style.css").text, re.DOTALL)
    ]
    assert len(schemes) == 2  # light and dark
    pairs = [
        (text, ground)
        for text in ("text", "quiet", "accent", "kept", "dropped")
        for ground in ("page", "surface")
    ]
    for scheme in schemes:
        for text, ground in [*pairs, ("on-accent", "accent"), ("text", "warn")]:
            low, high = sorted(luminance(scheme[name]) for name in (text, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_openapi_describes_every_route(api):
    described = api.get("/openapi.json").json()["paths"]
    assert set(described) == {
        "/api/info", "/api/search", "/api/facets", "/api/samples/{uid}", "/api/images/{uid}",
        "/api/embeddings/image", "/api/export", "/api/funnel",
    }  # fmt: skip
    assert api.get("/docs").status_code == 404  # it would load scripts from elsewhere


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"port": 70_000}, "port is 70000; give 0 to 65535"),
        ({"duplicate_cosine": 1.5}, "duplicate_cosine is 1.5; give above 0, at most 1"),
        ({"safety__max_punsafe": 2.0}, "safety.max_punsafe is 2.0; give 0 to 1"),
        ({"limits__running": 0}, "limits.running is 0; give a number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(change, words):
    with pytest.raises(ConfigError, match=words):
        config("x", **change)
    with pytest.raises(ConfigError, match="runs is empty"):
        config()
