"""results.html: well-formed, self-contained, accessible, and unmoved by hostile names and broken numbers."""

import itertools
import math
import re
from xml.etree import ElementTree

import pytest
from report_results import HOSTILE, few_shot, result, retrieval

from evaluate.intervals import Estimate, seed_spread, wilson
from evaluate.reports.html import html_report, write_html
from evaluate.reports.markup import clean, element, escaped, join

NAN = Estimate(math.nan, math.nan, math.nan, "wilson_95", 0, 0.001)
SHIFTS = ("imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "objectnet")


def parsed(page: str) -> ElementTree.Element:
    """The page as XML, which is stricter than any browser: every element closed, every attribute quoted."""
    assert page.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def titles(page: str) -> list[str]:
    return ["".join(heading.itertext()) for heading in parsed(page).iter("h2")]


def calibrated(**changes):
    bins = [{"above": 0.4, "upto": 0.6, "num": 9, "accuracy": 0.5, "confidence": 0.55}]
    bins.append({"above": 0.8, "upto": 1.0, "num": 3, "accuracy": 0.7, "confidence": 0.9})
    metrics = {"acc1": wilson(31_665, 50_000, 0.001), "ece": Estimate(0.12, 0.1, 0.14, "bootstrap_95", 12)}
    return result(**{"details": {"calibration": {"bins": bins}}, "metrics": metrics, **changes})


def robust(**changes):
    return [
        result(dataset=shift, metrics={"acc1": wilson(50, 100, 0.001)}, groups={}, **changes)
        for shift in SHIFTS
    ]


def public(tag: str, hits: int):
    return result(pretrained=tag, metrics={"acc1": wilson(hits, 50_000, 0.001)}, weights_sha256=tag[:7] * 9)


def test_a_page_with_everything_has_every_part():
    checkpoints = [
        public("laion2b_s3b_x", 28_000),
        public("laion2b_s13b_x", 31_000),
        public("laion2b_s34b_x", 33_000),
    ]
    results = [calibrated(notes=["a note"]), few_shot(), retrieval(), *robust(), *checkpoints]
    page = html_report(results)
    assert titles(page) == [
        "Overview", "Few-shot", "Robustness", "Scaling", "Calibration", "All results", "Notes", "Provenance",
    ]  # fmt: skip
    assert "1 model" not in page
    assert "4 models in fp32 on 7 data sets." in page


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing():
    page = html_report([calibrated(), few_shot(), *robust()])
    tree = parsed(page)
    assert not re.search(r"<script|<link|<img|<iframe|@import|url\(|\son[a-z]+=", page)
    assert all(link.get("href", "").startswith("#") for link in tree.iter("a"))
    policy = next(meta for meta in tree.iter("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in page


def test_tables_and_figures_can_be_read_without_seeing_them():
    tree = parsed(html_report([calibrated(), few_shot(), *robust()]))
    for table in tree.iter("table"):
        assert table.find("caption") is not None
        assert all(th.get("scope") in ("col", "row") for th in table.iter("th"))
    for figure in tree.iter("figure"):
        drawing = figure.find("svg")
        assert drawing is not None
        assert drawing.get("role") == "img"
        assert (drawing.findtext("title") or "").endswith("The numbers are in the table that follows.")
        assert figure.find("details/div/table") is not None
    assert tree.get("lang") == "en"
    targets = {element.get("id") for element in tree.iter() if element.get("id")}
    assert {link.get("href") for link in tree.iter("a")} <= {f"#{name}" for name in targets}


def test_the_same_results_give_the_same_page_in_whatever_order_they_come(tmp_path):
    results = [calibrated(), few_shot(), retrieval(), *robust(), result(precision="bf16")]
    assert html_report(results) == html_report(results[::-1])
    path = write_html(results, tmp_path)
    assert path == tmp_path / "results.html"
    assert path.read_text(encoding="utf-8") == html_report(results)


def test_a_cell_has_its_value_verdict_and_colour():
    page = html_report(
        [result(), result(pretrained="laion2b_e16", metrics={"acc1": wilson(1, 4, 0.5)}, groups={})]
    )
    heat = next(table for table in parsed(page).iter("table") if table.get("class") == "heat")
    best, worst = heat.findall("tbody/tr/td")[2], heat.findall("tbody/tr/td")[1]
    assert "".join(best.itertext()) == "63.3P"
    assert best.get("class") == "best"
    # 0.6333 is 63.3% of the way from 0.001 to 1, and 90% of the colour is the fullest.
    assert best.get("style") == "--v:57.0"
    assert "published 63.33 (clip_benchmark), +0.00: PASS" in (best.get("title") or "")
    assert (worst.get("style"), worst.get("class")) == ("--v:0.0", None)


def test_what_fails_lies_open_with_what_to_check():
    page = html_report([result(metrics={"acc1": wilson(30_000, 50_000, 0.001)}, groups={})])
    assert "1 value with FAIL." in page
    assert "Tolerance: 13 checkpoints scored by two suites" in page


def test_hostile_names_are_shown_and_do_nothing():
    hostile = {"model": HOSTILE, "pretrained": HOSTILE, "dataset": HOSTILE, "notes": [HOSTILE]}
    results = [
        result(
            **hostile, groups={HOSTILE: {"acc1": wilson(1, 2)}}, provenance={HOSTILE: {HOSTILE: [HOSTILE]}}
        ),
        few_shot(**hostile, precision=HOSTILE),
        calibrated(**{**hostile, "split": HOSTILE, "data_sha256": HOSTILE, "prompts_sha256": HOSTILE}),
    ]
    page = html_report(results)
    tree = parsed(page)
    assert not list(tree.iter("script"))
    assert "&lt;script&gt;" in page
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    page.encode()


def test_values_that_are_no_numbers_leave_the_page_whole():
    bad_bins = [{"num": 1, "accuracy": math.nan, "confidence": 0.5}, {"num": 1}, "x", {"accuracy": "1"}]
    results = [
        result(metrics={"acc1": NAN}, groups={"rare": {"acc1": NAN}}),
        few_shot(metrics={"acc1@1_shot": NAN, "acc1@2_shot": seed_spread([0.5]), "acc1@16_shot": NAN}),
        few_shot(dataset="cars", metrics={"acc1@16_shot": NAN}),
        result(dataset="imagenetv2", metrics={"acc1": NAN}, details={"calibration": {"bins": bad_bins}}),
        result(dataset="imagenet-r", details={"calibration": "none"}, pretrained="a_s1b_b"),
        result(dataset="imagenet-r", metrics={"acc1": NAN}, pretrained="a_s2b_b"),
    ]
    page = html_report(results)
    heat = next(table for table in parsed(page).iter("table") if table.get("class") == "heat")
    assert "not a number" in "".join(heat.itertext())
    drawings = "".join(ElementTree.tostring(svg, "unicode") for svg in parsed(page).iter("svg"))
    assert not re.search(r'="[^"]*\b(nan|inf)\b', drawings)


def test_accuracies_of_0_and_100_percent_have_a_place_on_logit_axes():
    shift = [
        result(dataset="imagenetv2", metrics={"acc1": wilson(hits, 10)}, pretrained=tag, groups={})
        for tag, hits in (("x", 0), ("y", 10))
    ]
    page = html_report([*shift, result(pretrained="x"), result(pretrained="y")])
    assert "Robustness" in titles(page)


def test_twenty_models_are_numbered():
    results = [few_shot(pretrained=f"epoch_{n}") for n in range(20)]
    results += [
        r for n in range(20) for r in (result(pretrained=f"epoch_{n}"), *robust(pretrained=f"epoch_{n}"))
    ]
    tree = parsed(html_report(results))
    few = next(figure for figure in tree.iter("figure") if figure.findtext("h3") == "imagenet1k: few-shot")
    shown = {text.text for text in few.iter("text") if text.get("class") == "small"}
    assert shown == {str(n) for n in range(1, 21)}
    places = sorted(float(text.get("y", "nan")) for text in few.iter("text") if text.get("class") == "small")
    assert min(b - a for a, b in itertools.pairwise(places)) >= 12  # no label on another


def test_a_folder_without_results_gets_a_page_that_says_so(tmp_path):
    page = write_html([], tmp_path).read_text(encoding="utf-8")
    assert "There is no result yet" in page
    assert titles(page) == ["Results"]


def test_provenance_that_differs_between_results_is_shown_with_its_count():
    page = html_report([result(provenance={"commit": "aaa"}), few_shot(provenance={"commit": "bbb"})])
    assert "aaa (1 result)" in page
    same = html_report([result(provenance={"commit": "aaa"}), few_shot(provenance={"commit": "aaa"})])
    assert "(1 result)" not in same


@pytest.mark.parametrize(
    ("given", "shown"),
    [("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"), ("a\x00\u2028b\ud800", "a  b?"), (3, "3")],
)
def test_text_is_escaped(given, shown):
    assert escaped(given) == shown


def test_markup_is_kept_and_attributes_are_escaped():
    assert join(element("b", "<"), "<") == "<b>&lt;</b>&lt;"
    assert element("td", title='"><script>', class_="n", x=1.5, style=None) == (
        '<td title="&quot;&gt;&lt;script&gt;" class="n" x="1.5"></td>'
    )
    assert element("br") == "<br/>"
    assert clean("plain") == "plain"
