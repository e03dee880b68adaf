"""A list in a JSON file item by item: what the whole parser reads is read the same, and what it refuses is refused."""

import json
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crawl2clip.errors import DataError
from data_pipeline import json_items
from data_pipeline.json_items import read_items


def read(path, text):
    path.write_text(text, encoding="utf-8")
    others = {}
    return list(read_items(path, "list", others)), others


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=100)
@given(
    items=st.lists(_JSON, max_size=5),
    before=st.dictionaries(st.text(max_size=3), _JSON, max_size=3),
    after=st.dictionaries(st.text(max_size=3), _JSON, max_size=3),
    block=st.integers(1, 9),
    indent=st.sampled_from([None, 0, 3]),
)
def test_whatever_is_in_it_and_wherever_it_is_cut_it_is_read_as_by_json(
    tmp_path, monkeypatch, items, before, after, block, indent
):
    monkeypatch.setattr(json_items, "_BLOCK", block)
    value = {**before, "list": items, **after}
    found, others = read(tmp_path / "file", json.dumps(value, indent=indent, ensure_ascii=False))
    assert found == items
    assert others == {**value, "list": len(items)}


TEXT = '{"a": {"b": [1, 2]}, "list": [{"c": "d"}, 12.5, "e"], "f": null}'


@pytest.mark.parametrize("size", range(len(TEXT)))
def test_a_file_that_is_cut_off_anywhere_is_told(tmp_path, size):
    with pytest.raises(DataError, match=r"file is not valid JSON \(.*\); delete it and run the step"):
        read(tmp_path / "file", TEXT[:size])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"expected \{ at character 0, found '\[\]'"),
        ('{"list": [1 2]}', r"expected , or \] at character 12, found '2\]\}'"),
        ('{"list": [1,]}', "Expecting value at character 12"),
        ('{"list": []} x', "expected nothing more at character 13"),
        ('{"list": {}}', r"expected \[ at character 9"),
        ("{list: []}", 'expected a key in " at character 1'),
        ('{"list" []}', "expected : at character 8"),
        ("[" * 100_000, r"expected \{"),
        ('{"list": ' + "[" * 100_000, "is not valid JSON"),
        ('{"list": ["\\ud83"]}', "Invalid"),
    ],
)
def test_what_is_no_such_object_is_told(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path / "file", text)


def test_bytes_that_are_no_text_and_a_file_that_is_missing_are_told(tmp_path):
    (tmp_path / "file").write_bytes(b'{"list": ["\xff"]}')
    with pytest.raises(DataError, match=r"file is not valid JSON \(.*0xff"):
        list(read_items(tmp_path / "file", "list", {}))
    with pytest.raises(DataError, match="none is missing; check the path"):
        list(read_items(tmp_path / "none", "list", {}))


def test_memory_is_that_of_an_item(tmp_path):
    (tmp_path / "file").write_text(json.dumps({"list": [{"name": f"{n:090d}"} for n in range(20_000)]}))
    tracemalloc.start()
    assert sum(1 for _ in read_items(tmp_path / "file", "list", {})) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000  # the file has 2 MB


def test_an_item_that_is_longer_than_a_block_is_read(tmp_path):
    items = ["x" * 300_000, {"a": list(range(50_000))}]
    assert read(tmp_path / "file", json.dumps({"list": items, "b": 1})) == (items, {"list": 2, "b": 1})
