"""WAT records in every spelling that JSON allows: the typed reading gives what plain `json.loads` gives."""

from functools import partial

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wat_forms import Object, record, records, write

from data_pipeline import wat
from data_pipeline.page import TEXT_SOURCES, Page
from data_pipeline.records import RecordFault


def _plainly(payload, wanted):
    """What `read_wat_page` gives when every record is read by json.loads, key by key."""
    refuse = partial(_refuse, msgspec.DecodeError("not tried"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wat, "_decode", refuse)
        return wat.read_wat_page(payload, wanted)


def _refuse(error, payload):
    raise error


@given(
    records,
    st.sampled_from(["", "", " ", "\n\t", "\r\n  "]),
    st.sampled_from(["ascii", "none", "slash", "all"]),
    st.sets(st.sampled_from(TEXT_SOURCES), min_size=1),
)
@example(
    record(
        Object([("Links", [Object([("path", "A@/href"), ("path", "IMG@/src"), ("alt", "x")])])]),
        [],
        "http://a/",
        None,
    ),
    "",
    "ascii",
    {"alt"},
)
@settings(max_examples=150, deadline=None)
def test_a_record_reads_the_same_typed_and_plainly(record, space, escape, wanted):
    payload = write(record, space, escape).encode("utf-8", "surrogatepass")
    typed, plain = wat.read_wat_page(payload, wanted), _plainly(payload, wanted)
    if plain is RecordFault.record_wrong_form and isinstance(typed, Page):
        assert typed.images == []  # a record without HTML: nothing is lost by either
    else:
        assert typed == plain


@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_any_bytes_within_a_record_give_a_page_or_a_reason(rubbish, start, end):
    links = [Object([("path", "IMG@/src"), ("url", "a.jpg"), ("alt", "A picture")])] * 3
    payload = write(
        record(Object([("Head", Object()), ("Links", links)]), Object(), "http://a/", "2024"), "", "ascii"
    ).encode()
    spoilt = payload[:start] + rubbish + payload[end:]
    assert isinstance(wat.read_wat_page(spoilt, {"alt"}), (Page, RecordFault))
