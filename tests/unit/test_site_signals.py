"""Path patterns, TDMRep and AIPREF: what sites say beside robots.txt's allow and disallow."""

import json
import time

import pytest

from data_pipeline.aipref import UsageRules, aipref_decision, parse_usage
from data_pipeline.path_patterns import matches, normal_path, path_of
from data_pipeline.tdmrep import TdmRules, tdmrep_decision

URL = "https://example.org/a/b.jpg?x=1"


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/", "/a/b.jpg", True),
        ("/a", "/a/b.jpg", True),
        ("/b", "/a/b.jpg", False),
        ("/*.jpg", "/a/b.jpg", True),
        ("/*.jpg$", "/a/b.jpg", True),
        ("/*.jpg$", "/a/b.jpg?x", False),
        ("/a$", "/a", True),
        ("/a$", "/a/", False),
        ("/a*b*c", "/a-b-c-d", True),
        ("/a*b*c", "/a-c-b", False),
        ("/a*a$", "/a", False),
        ("", "/anything", True),
        ("*", "/anything", True),
    ],
)
def test_patterns(pattern, path, expected):
    assert matches(pattern, path) is expected


def test_spellings_are_compared_alike():
    assert path_of("https://example.org") == "/"
    assert path_of("https://example.org/%7ea/%c3%bc?q=%2f") == "/~a/%C3%BC?q=%2F"
    assert normal_path("/ü") == "/%C3%BC"


def test_a_hostile_pattern_takes_no_time():
    started = time.process_time()
    assert not matches("*a" * 2000 + "b", "/" + "a" * 8000)
    assert time.process_time() - started < 5


def tdm(*values: str, file: object = None, url: str = URL) -> str:
    body = file if isinstance(file, bytes) else json.dumps(file).encode()
    return str(tdmrep_decision(values, TdmRules.from_response(200 if file is not None else 404, body), url))


@pytest.mark.parametrize(
    ("values", "file", "decision"),
    [
        ((), None, "tdmrep=allowed:absent"),
        (("1",), None, "tdmrep=refused:header says 1"),
        (("0",), [{"location": "/", "tdm-reservation": 1}], "tdmrep=allowed:header says 0"),
        (("yes",), None, "tdmrep=allowed:absent"),
        ((), [{"location": "/", "tdm-reservation": 1}], "tdmrep=refused:file says 1"),
        ((), [{"location": "/a/*.jpg", "tdm-reservation": 0}, {"location": "/", "tdm-reservation": 1}],
         "tdmrep=allowed:file says 0"),
        ((), [{"location": "/other", "tdm-reservation": 1}], "tdmrep=allowed:absent"),
        ((), [{"location": "/", "tdm-reservation": 2}, {"tdm-reservation": 1}, 7], "tdmrep=allowed:absent"),
        ((), {"location": "/"}, "tdmrep=allowed:absent"),
        ((), b"<html>", "tdmrep=allowed:absent"),
        ((), b"[" * 100_000, "tdmrep=allowed:absent"),
        ((), b"\xff\xfe", "tdmrep=allowed:absent"),
    ],
)  # fmt: skip
def test_tdmrep(values, file, decision):
    assert tdm(*values, file=file) == decision


@pytest.mark.parametrize(
    ("value", "usages"),
    [
        ("train-ai=n", {"train-ai": False}),
        ("train-ai=y, search=n", {"train-ai": True, "search": False}),
        ("train-ai;allow=n, train-ai=y", {"train-ai": True}),
        ('train-ai=n;why="a, b; \\"c\\"" , search=y', {"train-ai": False, "search": True}),
        ('train-ai=y, train-ai, search=n, search="n"', {}),
        ("train-ai=maybe", {}),
        ("Train-AI=n", {}),
        ("train-ai=n,", {}),
        ("train-ai n", {}),
        ("", {}),
        ("train-ai=n, " * 1000, {}),
    ],
)
def test_usage_statements(value, usages):
    assert parse_usage(value) == usages


ROBOTS = """
User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y # a comment
content-usage :	/ai-ok/private/	train-ai=n

User-Agent: ExampleBot
User-Agent: another
Allow: /
Content-Usage: train-ai=y

User-Agent: quiet
Allow: /
"""


@pytest.mark.parametrize(
    ("token", "path", "header", "decision"),
    [
        ("crawl2clip", "/test", (), "aipref=refused:train-ai=n (vocab-06)"),
        ("crawl2clip", "/ai-ok/test", (), "aipref=allowed:train-ai=y (vocab-06)"),
        ("crawl2clip", "/ai-ok/private/x", (), "aipref=refused:train-ai=n (vocab-06)"),
        ("crawl2clip", "/ai-ok/test", ("train-ai=n",), "aipref=refused:train-ai=n (vocab-06)"),
        ("crawl2clip", "/ai-ok/test", ("search=n",), "aipref=allowed:train-ai=y (vocab-06)"),
        ("examplebot", "/test", (), "aipref=allowed:train-ai=y (vocab-06)"),
        ("another", "/test", (), "aipref=allowed:train-ai=y (vocab-06)"),
        ("quiet", "/test", (), "aipref=allowed:absent"),
        ("quiet", "/test", ("search=y", "train-ai=n"), "aipref=refused:train-ai=n (vocab-06)"),
    ],
)
def test_aipref(token, path, header, decision):
    rules = UsageRules.from_robots(ROBOTS, token)
    assert str(aipref_decision(header, rules, f"https://example.org{path}", usages=["train-ai"])) == decision
