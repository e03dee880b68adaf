"""The rewriting of a page for boilerplate removal: well nested, bounded, and with everything in its place."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.markup import read_tags
from data_pipeline.plain_markup import PlainMarkup, split_at_images, without_marks

MARK = chr(0x100000)


def rewritten(html):
    html = without_marks(html)
    plain = PlainMarkup(html)
    for tag in read_tags(html, {"img"}, others=True):
        plain.add(tag)
    assert not plain.too_large
    return plain.finish()


def body(html):
    return re.fullmatch(r".*<body>(.*)</body></html>", rewritten(html), re.DOTALL).group(1)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>a<p>b", "<p>a</p><p>b</p>"),
        ("<p>a<div class=x>b</p></div>c", "<p>a</p><div class=x>b</div>c"),
        ("<ul><li>a<li>b</ul>", "<ul><li>a</li><li>b</li></ul>"),
        ("<ul><li>a<ul><li>b</ul><li>c</ul>", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("<dl><dt>a<dd>b<dt>c</dl>", "<dl><dt>a</dt><dd>b</dd><dt>c</dt></dl>"),
        (
            "<table><tr><td>a<td>b<tr><th>c</table>",
            "<section><section><section>a</section><section>b</section></section>"
            "<section><section>c</section></section></section>",
        ),
        ("<table><tr><td></div>a</td></tr></table>", "<section><section><section>a</section></section></section>"),
        ("<b>a<i>b</b>c</i>", "abc"),
        ("<b class=x>a</b>", "<span class=x>a</span>"),
        ("<my-card id=x>a</my-card>", "<span id=x>a</span>"),
        ("<a href=/x>a<div>b</a>c</div>", "<a>a<div>b</div></a><div>c</div>"),
        ("<a href='x'>a</a>", "<a href='x'>a</a>"),
        ("<a>a<a>b", "<a>a</a><a>b</a>"),
        ("<a>a<table><a>b", "<a>a<section></section></a><section><a>b</a></section>"),
        (
            "<a>a<table><td class=x>b<a>c</a>d</table>",
            "<a>a<section><section class=x>b</section></section></a>"
            "<section><section class=x><a>c</a>d</section></section>",
        ),
        ("<h1>a<h2>b</h2>", "<h1>a</h1><h2>b</h2>"),
        ("a<script>b</script><style>c</style><textarea>d</textarea><title>e</title>f", "af"),
        ("a<noscript>b<div><img></div></noscript>c", f"a{MARK}c"),
        ("<div><svg><g><text>a</text></g></svg>b</div>", "<div>b</div>"),
        ("<svg><text>a<div>b</div>", "<div>b</div>"),
        ("<p>a <button>b</button> c", "<p>a <span hidden>b</span> c</p>"),
        ("<select><option>a<option>b</select>", "<span hidden><span hidden>a</span><span hidden>b</span></span>"),
        ("a<!-- b --><!doctype html><?php c ?></>d", "ad"),
        ("a < b &lt;p&gt; &amp; <3", "a &lt; b &lt;p&gt; &amp; &lt;3"),
        ("a<br>b<hr>c<wbr>d<br/>", "a<br>b<hr>cd<br>"),
        ("<a class=l>x<img>y</a>", f"<a class=l>x</a><span class=l>{MARK}</span><a class=l>y</a>"),
        (f"{MARK}a&#x100000;b&#1048576;<img>", f"ab{MARK}"),
        ("<img class='logo x'>", f'<span class="logo x">{MARK}</span>'),
        ("a</div></p></li>b", "ab"),
        ("<p title='\">x'>a</p>", "<p>a</p>"),
        ("a<!-- never closed", "a"),
        ("a<p class='never closed", "a"),
    ],
)  # fmt: skip
def test_what_is_written(html, expected):
    assert body(html) == expected


WORDS = st.sampled_from(["alpha ", "beta", " < ", "&amp;", "&#65;", "&#x100001;", "\n", "é", MARK])
NAMES = [
    "p",
    "div",
    "a",
    "b",
    "span",
    "ul",
    "li",
    "table",
    "tr",
    "td",
    "h1",
    "h2",
    "svg",
    "noscript",
    "button",
]
NAMES += [
    "object",
    "dl",
    "dd",
    "form",
    "select",
    "option",
    "my-tag",
    "section",
    "template",
    "article",
    "time",
]
ATTRIBUTES = st.sampled_from(
    [
        "",
        " class=x",
        ' id="a b"',
        " hidden",
        " style='display:none'",
        ' a=\'">\' b=">"',
        " href=x",
        " a",
        " =",
        " /",
    ]
)
TAGS = st.one_of(
    st.builds("<{}{}>".format, st.sampled_from(NAMES), ATTRIBUTES),
    st.builds("</{}>".format, st.sampled_from(NAMES)),
    st.sampled_from(
        ["<img>", "<img class=y src=a>", "<br>", "<!-- x -->", "</>", "<!doctype html>", "<body>"]
    ),
)
PAGES = st.lists(st.one_of(WORDS, TAGS), max_size=60).map("".join)


@settings(max_examples=300, deadline=None)
@given(PAGES)
def test_whatever_comes_in_is_well_nested(page):
    made = rewritten(page)
    stack: list[str] = []
    for tag in read_tags(made, frozenset(), others=True):
        if not tag.name or tag.name in ("br", "hr"):
            continue
        if tag.is_end:
            assert stack.pop() == tag.name
        else:
            stack.append(tag.name)
    assert stack == []
    assert "a" not in re.findall(r"<a[ >](?:(?!</a>).)*<(a)[ >]", made)  # no link within a link
    images = page.count("<img")
    marks = [piece for piece in split_at_images(made) if isinstance(piece, int)]
    assert marks == list(range(images))  # each once, in the page's order


def test_depth_and_size_are_bounded():
    made = rewritten("<div>" * 1000 + "deep" + "</div>" * 1000 + "<p>after")
    assert made.count("<div>") == made.count("</div>") == 128
    assert made.endswith("deep" + "</div>" * 128 + "<p>after</p></body></html>")
    for page in ("<p>" * 50_001, "</p>" * 200_001, "<img>" * 50_001):
        plain = PlainMarkup(page)
        for tag in read_tags(page, {"img"}, others=True):
            plain.add(tag)
        assert plain.too_large


def test_long_attributes_are_cut():
    made = body(f"<p class='{'x' * 100_000}' {'y=1 ' * 100_000}>a</p>")
    assert made == f'<p class="{"x" * 500}">a</p>'


def test_text_is_cut_at_its_images():
    assert split_at_images(f"a{MARK}{chr(0x100001)}b") == ["a", 0, "", 1, "b"]
    assert split_at_images("") == [""]
