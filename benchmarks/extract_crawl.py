"""A made WAT file in Common Crawl's layout, for benchmarks/extract.py: the same bytes every time.

Keys stand in the order and spacing of the tool that writes Common Crawl's files (compact, the page's address last),
letters outside ASCII stand as they are, and each page has three records, of which one has links. A page has about 168
links, 23 of them images and 13 of those with an alt text. One page in three is not in English; one link in fifty has
an address or a text of the awkward kinds that real pages have.
"""

import json
import os
import random
import zlib
from pathlib import Path

_LETTERS = {
    "en": "etaoinshrdlcumwfgypbvk",
    "de": "enisratdhulcgmobwfkzäöüß",
    "es": "eaosrnidlctumpbgvyqhfáéíóúñ",
    "ru": "оеаинтсрвлкмдпуяыьгзбчйхжш",
    "zh": "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后",
    "ar": "ايلمونرتبةعدسفهكقحجشصخطثضغز",
}
_LANGUAGES = ("en",) * 8 + ("de", "es", "ru", "zh", "ar")
_PAGE_LINKS = ("A@/href",) * 19 + (
    "LINK@/href",
    "SCRIPT@/src",
    "FORM@/action",
    "DIV@/background",
    "IFRAME@/src",
)


def write_wat(path: Path, pages: int) -> None:
    """Writes a WAT of that many pages; a file that is there already is kept."""
    if path.exists():
        return
    rng = random.Random(0)
    vocabularies = {language: _words(rng, letters) for language, letters in _LETTERS.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp-write")
    with open(temporary, "wb") as file:
        file.write(_member(_record("warcinfo", "made", b"Software-Info: benchmarks/extract.py\r\n")))
        for number in range(pages):
            language = rng.choice(_LANGUAGES)
            for value in _page(rng, number, language, vocabularies[language], vocabularies["en"]):
                block = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
                url = value["Envelope"]["WARC-Header-Metadata"]["WARC-Target-URI"]
                file.write(_member(_record("metadata", url, block)))
    os.replace(temporary, path)


def _words(rng: random.Random, letters: str) -> list[str]:
    longest = 3 if letters.startswith("的") else 9
    return ["".join(rng.choices(letters, k=rng.randint(2, longest))) for _ in range(5000)]


def _page(rng: random.Random, number: int, language: str, words: list[str], latin: list[str]) -> list[dict]:
    words, latin = rng.choices(words, k=200), rng.choices(latin, k=60)  # a page repeats itself
    host = (
        f"www.{rng.choice(latin)}-{rng.choice(latin)}.{rng.choice(('com', 'org', 'net', 'de', 'ru', 'cn'))}"
    )
    url = f"https://{host}/{rng.choice(latin)}/{rng.choice(latin)}-{number}"

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    links = [_page_link(rng, host, latin, text) for _ in range(rng.randint(60, 230))]
    links += [_image(rng, host, latin, text) for _ in range(rng.randint(6, 41))]
    if rng.random() < 0.7:
        rng.shuffle(links)
    metas = [
        {"name": "HTML@/lang", "content": language},
        {"content": "text/html; charset=utf-8", "http-equiv": "content-type"},
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
        {"name": "description", "content": text(10, 25)},
        {"content": text(3, 8), "property": "og:title"},
        {"content": f"https://{host}/share.jpg", "property": "og:image"},
    ]
    sheets = [
        {"path": "LINK@/href", "url": f"https://{host}/{rng.choice(latin)}.css?ver={n}", "rel": "stylesheet"}
        for n in range(8)
    ]
    head = {"Metas": metas, "Title": text(3, 9), "Link": sheets}
    html = {"Head": head, "Links": links}
    headers = {
        "Content-Type": "text/html; charset=UTF-8",
        "Server": "nginx",
        "X-Cache": "HIT",
        "Vary": "Accept-Encoding",
    }
    response = {
        "Response-Message": {"Status": "200", "Version": "HTTP/1.1", "Reason": "OK"},
        "Headers": headers,
    }
    request = {
        "Request-Message": {"Method": "GET", "Path": "/", "Version": "HTTP/1.1"},
        "Headers": {"User-Agent": "CCBot/2.0 (https://commoncrawl.org/faq/)", "Host": host},
    }
    fetched = {"Metadata-Records": [{"Value": "99", "Name": "fetchTimeMs"}]}
    return [
        _value("request", url, rng, {"HTTP-Request-Metadata": request}),
        _value("response", url, rng, {"HTTP-Response-Metadata": response | {"HTML-Metadata": html}}),
        _value("metadata", url, rng, {"WARC-Metadata-Metadata": fetched}),
    ]  # fmt: skip


def _page_link(rng: random.Random, host: str, latin: list[str], text) -> dict[str, str]:
    path = "/".join(rng.choices(latin, k=rng.randint(3, 7)))
    link = {
        "path": rng.choice(_PAGE_LINKS),
        "url": f"https://{host}/{path}/" if rng.random() < 0.6 else f"/{path}.html?id={rng.getrandbits(24)}",
    }
    if rng.random() < 0.8:
        link["text"] = text(3, 9) if rng.random() > 0.01 else f'{text(1, 2)} "{text(1, 3)}" [more]'
    if rng.random() < 0.2:
        link["title"] = text(1, 6)
    if rng.random() < 0.15:
        link |= {"target": "_blank", "rel": "noopener nofollow"}
    return link


def _image(rng: random.Random, host: str, latin: list[str], text) -> dict[str, str]:
    name = (
        f"{'/'.join(rng.choices(latin, k=2))}/{rng.getrandbits(32):08x}.{rng.choice(('jpg', 'png', 'webp'))}"
    )
    chance = rng.random()
    if chance < 0.02:
        joined = (f"../{name}", f"./{name}", f"//cdn.{host}/{name}")
        respelt = (f"/a b/{name}", f"/é/{name}", f"{name}#top", f"HTTPS://CDN.{host}/{name}")
        url = rng.choice((*joined, *respelt, "data:image/gif;base64,R0lGODlhAQABAAAAACw=", "about:blank"))
    else:
        url = f"https://cdn.{host}/{name}" if chance < 0.5 else f"/{name}" if chance < 0.9 else name
    link = {"path": "IMG@/src", "url": url}
    if rng.random() < 0.56:
        link["alt"] = (
            text(1, 9) if rng.random() > 0.02 else f"{text(1, 3)} &amp; {text(1, 3)}\u200b  {text(0, 2)}"
        )
    elif rng.random() < 0.5:
        link["alt"] = ""
    return link


def _value(kind: str, url: str, rng: random.Random, payload: dict) -> dict:
    """The JSON value of one record."""
    header = {
        "WARC-Type": kind,
        "WARC-Date": "2024-05-18T01:58:10Z",
        "WARC-Record-ID": f"<urn:uuid:{rng.getrandbits(128):032x}>",
        "Content-Length": "20265",
        "Content-Type": f"application/http; msgtype={kind}",
        "WARC-Target-URI": url,
    }
    container = {"Filename": "CC-MAIN-made-00000.warc.gz", "Compressed": True, "Offset": "80610308"}
    actual = {"Actual-Content-Type": f"application/http; msgtype={kind}"}
    envelope = {"Payload-Metadata": actual | payload, "Format": "WARC/1.0", "WARC-Header-Length": "357"}
    return {"Container": container, "Envelope": envelope | {"WARC-Header-Metadata": header}}


def _record(kind: str, url: str, block: bytes) -> bytes:
    """One WARC record of a WAT file."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2024-05-31T01:17:49Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def _member(data: bytes) -> bytes:
    """A gzip member, the same bytes every time."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()
